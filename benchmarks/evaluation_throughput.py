"""Episodes per second of the evaluation, against the same episodes one at a time.

    python benchmarks/evaluation_throughput.py [--games 36] [--max-turns 30]

One engine with the embedded model plays an eval set of generated ALFWorld games greedily, first all of them at once as
`evaluate` does, then each after the other, and checks that both won the same games. Neither the engine's start nor that
of the environments is counted. Writes `benchmarks/results/evaluation_throughput.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.engine import Engine
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.base import Task, read_tasks
from verl_act.envs.pool import EnvPool
from verl_act.envs.registry import get_env
from verl_act.evaluate.rollouts import PolicyUnderTest, rollout_tasks
from verl_act.prompts import get_template
from verl_act.settings.data import GamesSettings, TasksSettings
from verl_act.settings.model import ModelSettings, Sampling

RESULTS = Path(__file__).parent / "results" / "evaluation_throughput.json"


def play(policy: PolicyUnderTest, eval_tasks: list[Task], data: dict[str, Any], max_turns: int) -> dict[str, Any]:
    """Both ways on one engine and one pool."""

    async def both() -> dict[str, Any]:
        pool = EnvPool("alfworld", data)
        await rollout_tasks(policy, eval_tasks[:1], pool, 2)  # starts what is started at first use
        started = time.monotonic()
        together = await rollout_tasks(policy, eval_tasks, pool, max_turns)
        seconds = {"all at once": time.monotonic() - started}
        started = time.monotonic()
        alone = [
            (await rollout_tasks(policy, [task], pool, max_turns))[0] for task in tqdm(eval_tasks, desc="one at a time")
        ]
        seconds["one at a time"] = time.monotonic() - started
        won = [[record["success"] for record in answers] for answers in (together, alone)]
        if won[0] != won[1]:
            raise SystemExit("played all at once and one at a time, other games were won.")
        turns = [sum(record["steps"] for record in answers) for answers in (together, alone)]
        return {"seconds": seconds, "same_outcome": sum(map(lambda a, b: a == b, *won)), "turns": turns}

    return policy.engine.run(both())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=36)
    parser.add_argument("--max-turns", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        counts = {"train": 6, "valid_seen": arguments.games}
        make_games(GamesSettings(counts=counts, size="small", seed=5, workers=0), folder / "games")
        data = {"data": str(folder / "games")}
        make_tasks(TasksSettings(env="alfworld", splits=["valid_seen"], env_settings=data), folder / "tasks")
        eval_tasks = read_tasks(folder / "tasks" / "tasks.parquet")
        settings = ModelSettings(model=str(get_env("alfworld").models["embedded"]), max_model_len=1024)
        template = get_template("compact", history_length=8)
        ray.init(include_dashboard=False, log_to_driver=False)
        try:
            with Engine(settings) as engine:
                policy = PolicyUnderTest(engine, template, Sampling(temperature=0, max_tokens=16), 0)
                measured = play(policy, eval_tasks, data, arguments.max_turns)
        finally:
            ray.shutdown()
    seconds = measured["seconds"]
    result = {
        "episodes": len(eval_tasks),
        "turns": measured["turns"],
        "same_outcome": measured["same_outcome"],
        "episodes_per_second": {way: round(len(eval_tasks) / taken, 2) for way, taken in seconds.items()},
        "ratio": round(seconds["one at a time"] / seconds["all at once"], 2),
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
