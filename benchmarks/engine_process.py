"""A CPU's engine with the model in its own process, as ours is, against one with a process of the model's own.

    python benchmarks/engine_process.py [--states 256] [--rounds 3]

Alternatives are sampled at expert states of generated ALFWorld games by the embedded model, with both kinds of engine
in turns, and have to be the same. Writes `benchmarks/results/engine_process.json`: seconds to start, seconds to sample,
and the engine processes' memory; medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.engine import Engine, request_seed
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.registry import get_env
from verl_act.prompts import Message, get_template
from verl_act.schema import read_steps
from verl_act.settings.data import ExpertSettings, GamesSettings
from verl_act.settings.model import ModelSettings, Sampling

RESULTS = Path(__file__).parent / "results" / "engine_process.json"
KINDS: dict[str, dict[str, Any]] = {"its own": {"distributed_executor_backend": "mp"}, "the engine's": {}}


def measure(prompts: list[list[Message]], extra: dict[str, Any]) -> tuple[dict[str, float], list[list[str]]]:
    started = time.monotonic()
    settings = ModelSettings(
        model=str(get_env("alfworld").models["embedded"]), max_model_len=1024, engine_options=extra
    )
    with Engine(settings) as engine:
        start = time.monotonic() - started
        sampling = Sampling(n=4, max_tokens=16)

        async def sample() -> list[list[str]]:
            wanted = (
                engine.reply(prompt, sampling, request_seed(0, str(number))) for number, prompt in enumerate(prompts)
            )
            return await asyncio.gather(*wanted)

        engine.run(sample())  # what is made at first use
        started = time.monotonic()
        replies = engine.run(sample())
        seconds = time.monotonic() - started
        memory = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    return {"start_seconds": start, "seconds": seconds, "memory_mb": memory / 2**20}, replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_games(GamesSettings(counts={"train": 48}, size="small", seed=5, workers=0), folder / "games")
        data = {"data": str(folder / "games")}
        collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=data, workers=0), folder / "expert")
        steps = read_steps([folder / "expert" / "trajectories.parquet"])[: arguments.states]
        template = get_template("compact", history_length=8)
        prompts = [template.action_messages(step.context) for step in steps]
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in tqdm(range(arguments.rounds), desc="rounds"):
            answers = []
            for kind, extra in KINDS.items():
                figures, replies = measure(prompts, extra)
                found[kind].append(figures)
                answers.append(replies)
            if answers[0] != answers[1]:
                raise SystemExit("the two engines sampled other replies.")
    result: dict[str, Any] = {"states": len(prompts), "rounds": arguments.rounds}
    for kind, rounds in found.items():
        result[kind] = {name: round(statistics.median(run[name] for run in rounds), 1) for name in rounds[0]}
    own, engines = result["its own"], result["the engine's"]
    result["ratio"] = {name: round(own[name] / engines[name], 2) for name in own}
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
