"""Tokens per second of sampling, evaluation and live rollouts, against vLLM alone on the same prompts.

    python benchmarks/rollout_throughput.py [--states 512] [--games 48] [--max-turns 20] [--rounds 2]

One engine with the embedded model does everything, on generated ALFWorld games:

- alternatives at expert states, four replies each, of log-normal lengths: shard by shard as before, streamed over
  shards, and streamed without request seeds;
- an evaluation: episodes, next actions and choices one kind after the other with 64 episodes at once as before, and
  together;
- live rollouts through the agent loop of verl, `stepwise` (prompts with eight turns, and with all) and `concat`, with a
  server in this process: verl's own server, its transfers and its updates are not part of it.

After each, vLLM alone gets the same prompts all at once, with the same number of tokens to generate. The prefix cache
is emptied before every measurement. Writes `benchmarks/results/rollout_throughput.json`: medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import ray
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap, ToolListWrap
from verl.workers.rollout.replica import TokenOutput
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from verl_act.concurrency import gather
from verl_act.data.dataset import ActDataset
from verl_act.data_prep.alternatives import sample_alternatives
from verl_act.data_prep.alternatives.sample_alternatives import SHARD_STATES, Sampler
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.engine import Engine, request_seed
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.base import read_tasks
from verl_act.envs.pool import EnvPool
from verl_act.envs.registry import get_env
from verl_act.evaluate.choices import evaluate_choices
from verl_act.evaluate.rollouts import PolicyUnderTest, evaluate_next_actions, rollout_tasks
from verl_act.manifest import process_versions
from verl_act.prompts import get_template
from verl_act.rollout.agent_loop import ActEnvAgentLoop
from verl_act.schema import Step, read_pairs, read_steps
from verl_act.settings.data import AlternativesSettings, ExpertSettings, GamesSettings, PairsSettings, TasksSettings
from verl_act.settings.model import ModelSettings, Sampling

RESULTS = Path(__file__).parent / "results" / "rollout_throughput.json"
MODEL = str(get_env("alfworld").models["embedded"])
REPLIES = 4
ROLLOUTS = 4
EPISODES_BEFORE = 64
# Mode, turns that a prompt shows (None: all), tokens of the longest prompt.
LIVE_WAYS = {
    "stepwise": ("stepwise", 8, 640),
    "stepwise, whole transcript": ("stepwise", None, 2000),
    "concat": ("concat", None, 640),
}
LIVE = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}


class Recorder:
    """vLLM's engine, with the requests that went through it."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.requests: list[tuple[dict[str, Any], SamplingParams, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    @property
    def tokens(self) -> int:
        return sum(tokens for _, _, tokens in self.requests)

    async def generate(
        self, prompt: Any, parameters: SamplingParams, request: str, **options: Any
    ) -> AsyncIterator[Any]:
        final = None
        async for output in self.llm.generate(prompt, parameters, request, **options):
            final = output
            yield output
        assert final is not None
        self.requests.append((prompt, parameters, sum(len(one.token_ids) for one in final.outputs)))


def measure(engine: Engine, work: Callable[[], Awaitable[Any]]) -> tuple[dict[str, float], Any]:
    """Tokens per second of `work`, and of vLLM alone on its requests; also what `work` returns."""
    recorder = Recorder(engine.llm)
    with patch.object(engine, "llm", recorder):
        seconds, result = _seconds(engine, work)

    async def alone() -> None:
        async def generate(request: tuple[dict[str, Any], SamplingParams, int]) -> None:
            prompt, parameters, tokens = request
            if parameters.n == 1:  # the episodes would end sooner or later with other noise
                parameters = parameters.clone()
                parameters.max_tokens, parameters.ignore_eos = tokens, True
            async for _ in recorder.llm.generate(prompt, parameters, uuid4().hex):
                pass

        await gather(generate(request) for request in recorder.requests)

    raw, _ = _seconds(engine, alone)
    tokens = recorder.tokens
    return {"tokens_per_second": tokens / seconds, "of_vllm_alone": raw / seconds, "tokens": tokens}, result


def _seconds(engine: Engine, work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    async def timed() -> tuple[float, Any]:
        await engine.llm.reset_prefix_cache()
        started = time.monotonic()
        result = await work()
        return time.monotonic() - started, result

    return engine.run(timed())


def sampling_ways(engine: Engine, steps: Sequence[Step]) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Sampling as the stage does it, with replies that end at a limit of their own, which is log-normal."""
    settings = AlternativesSettings(model=MODEL, n=REPLIES, template="compact", trajectories=[Path("-")])
    lengths = random.Random(0)
    limits = {
        request_seed(0, step.state_id): min(256, max(1, round(lengths.lognormvariate(math.log(12), 0.9))))
        for step in steps
    }

    class Limited:
        """The engine, whose replies have the length of their state."""

        max_num_seqs = engine.max_num_seqs

        async def reply(self, messages: Any, sampling: Sampling, seed: int) -> list[str]:
            limited = sampling.model_copy(update={"max_tokens": limits[seed]})
            completions = await engine.generate(engine.encode(messages), limited, seed, ignore_eos=True)
            return [completion.text for completion in completions]

    with patch.object(sample_alternatives, "Engine", lambda *_, **__: Limited()):
        sampler = Sampler(settings)
    shards = {
        index: steps[start : start + SHARD_STATES] for index, start in enumerate(range(0, len(steps), SHARD_STATES))
    }

    async def streamed() -> None:
        await sampler.sample(shards, lambda index, rows: None)

    async def shard_by_shard() -> None:
        for index, shard in shards.items():
            await sampler.sample({index: shard}, lambda index, rows: None)

    async def one_seed() -> None:
        with patch.object(engine, "seed_requests", False):
            await streamed()

    return {"shard by shard": shard_by_shard, "streamed": streamed, "streamed, one seed": one_seed}


def evaluation_ways(engine: Engine, folder: Path, max_turns: int, data: dict[str, str]) -> dict[str, Any]:
    tasks = read_tasks(folder / "tasks" / "tasks.parquet")
    states = read_steps([folder / "expert" / "trajectories.parquet"])
    pairs = read_pairs([folder / "pairs" / "pairs.parquet"])
    template, greedy = get_template("compact", history_length=8), Sampling(temperature=0, max_tokens=16)

    def kinds(at_once: int, episodes: int | None) -> list[Any]:
        policy = PolicyUnderTest(engine, template, greedy, at_once=at_once)
        pool = EnvPool("alfworld", data)
        return [
            rollout_tasks(policy, tasks, pool, max_turns, at_once=episodes),
            evaluate_next_actions(policy, states),
            evaluate_choices(policy, pairs),
        ]

    async def together() -> list[Any]:
        return await gather(kinds(engine.max_num_seqs, None))

    async def one_after_the_other() -> list[Any]:
        return [await kind for kind in kinds(10**6, EPISODES_BEFORE)]

    return {"one kind after the other": one_after_the_other, "together": together}


class Server:
    """verl's server manager, as an agent loop sees it, around an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> Any:
        options = {name: value for name, value in sampling_params.items() if name in (*LIVE, "max_tokens")}
        parameters = SamplingParams(**options, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        final = None
        async for output in self.engine.llm.generate({"prompt_token_ids": prompt_ids}, parameters, uuid4().hex):
            final = output
        assert final is not None
        (completion,) = final.outputs
        ids = list(completion.token_ids)
        log_probs = [entry[token].logprob for entry, token in zip(completion.logprobs, ids, strict=True)]
        return TokenOutput(token_ids=ids, log_probs=log_probs)


def live_rollouts(engine: Engine, folder: Path, way: str, max_turns: int, data: dict[str, str]) -> Any:
    """Every task, several times at once, through the agent loop."""
    mode, history_length, prompt_length = LIVE_WAYS[way]
    episode = {"mode": mode, "max_turns": max_turns, "max_tokens_per_turn": 16, "env_settings": data}
    act = {"template": "compact", "history_length": history_length, "episode": episode}
    lengths = {"prompt_length": prompt_length, "response_length": 2040 - prompt_length, "max_model_len": 2048}
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {"rollout": lengths},
            "reward": {"reward_manager": {"name": "naive"}},
            "data": {"max_prompt_length": prompt_length, "act": act},
        }
    )
    rows = ActDataset([str(folder / "tasks" / "tasks.parquet")], engine.tokenizer, config.data)

    async def play(row: dict[str, Any], session: int) -> list[AgentLoopOutput]:
        make_loop: Any = ActEnvAgentLoop  # verl types what it passes more narrowly than the loop uses it
        loop = make_loop(
            trainer_config=DictConfigWrap(config=config),
            server_manager=Server(engine),
            tokenizer=engine.tokenizer,
            processor=None,
            hf_model_type="qwen3",
            dataset_cls=ActDataset,
            data_config=DictConfigWrap(config.data),
            tools=ToolListWrap([]),
        )
        columns = {name: value for name, value in row.items() if name != "agent_name"}
        played = await loop.run(dict(LIVE), uid=str(row["index"]), session_id=session, global_steps=1, **columns)
        return played if isinstance(played, list) else [played]

    async def play_all() -> list[list[AgentLoopOutput]]:
        return await gather(play(rows[index], session) for index in range(len(rows)) for session in range(ROLLOUTS))

    return play_all


def trajectories(played: list[list[AgentLoopOutput]], max_turns: int, generated: int) -> dict[str, float]:
    """Tokens that a trainer processes for a trajectory of `max_turns`; the share of generated ones without a loss."""
    whole = [outputs for outputs in played if outputs and outputs[0].num_turns == 2 * max_turns]
    processed = [sum(len(one.prompt_ids) + len(one.response_ids) for one in outputs) for outputs in whole]
    trained = sum(sum(one.response_mask) for outputs in played for one in outputs)
    return {
        "trajectories": len(played),
        "of_all_turns": len(whole),
        "processed_tokens": statistics.mean(processed) if processed else math.nan,
        "wasted_share": 1 - trained / generated,
    }


def prepare(folder: Path, games: int) -> dict[str, str]:
    """Tasks, expert trajectories and pairs."""
    counts = {"train": 2 * games, "valid_seen": games}
    make_games(GamesSettings(counts=counts, size="small", seed=5, workers=0), folder / "games")
    where: dict[str, Any] = {"env": "alfworld", "env_settings": {"data": str(folder / "games")}}
    make_tasks(TasksSettings(**where, splits=["valid_seen"]), folder / "tasks")
    for split, name in (("train", "train"), ("valid_seen", "expert")):
        collect_expert(ExpertSettings(**where, split=split, workers=0), folder / name)
    steps = folder / "expert" / "trajectories.parquet"
    settings = PairsSettings(
        env_settings=where["env_settings"], trajectories=[steps], source="admissible", margins=False, workers=0
    )
    build_pairs(settings, folder / "pairs")
    return where["env_settings"]


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=2 * SHARD_STATES)
    parser.add_argument("--games", type=int, default=48)
    parser.add_argument("--max-turns", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepare(folder, arguments.games)
        steps = read_steps([folder / "train" / "trajectories.parquet"])[: arguments.states]
        ray.init(include_dashboard=False, log_to_driver=False)
        try:
            with Engine(ModelSettings(model=MODEL, max_model_len=2048)) as engine:
                result = run(engine, folder, steps, data, arguments)
        finally:
            ray.shutdown()
    result = {
        "states": len(steps),
        "replies_per_state": REPLIES,
        "games": arguments.games,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 1),
        **result,
        "versions": process_versions(),
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def run(
    engine: Engine, folder: Path, steps: Sequence[Step], data: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Any]:
    turns = arguments.max_turns
    ways: dict[str, dict[str, Any]] = {
        "sampling": sampling_ways(engine, steps),
        "evaluation": evaluation_ways(engine, folder, turns, data),
        "live": {way: live_rollouts(engine, folder, way, turns, data) for way in LIVE_WAYS},
    }
    measured: dict[str, dict[str, list[dict[str, float]]]] = {
        kind: {name: [] for name in of_kind} for kind, of_kind in ways.items()
    }
    _seconds(engine, ways["live"]["concat"])  # starts what is started at first use
    for _ in range(arguments.rounds):
        for kind, of_kind in ways.items():
            for name, work in of_kind.items():
                figures, played = measure(engine, work)
                if kind == "live":
                    figures |= trajectories(played, turns, round(figures["tokens"]))
                measured[kind][name].append(figures)
    result: dict[str, Any] = {
        kind: {name: medians(rounds) for name, rounds in of_kind.items()} for kind, of_kind in measured.items()
    }

    def ratio(kind: str, one: str, other: str, name: str = "tokens_per_second") -> float:
        return round(result[kind][one][name] / result[kind][other][name], 3)

    result["ratios"] = {
        "streamed, of shard by shard": ratio("sampling", "streamed", "shard by shard"),
        "one seed, of request seeds": ratio("sampling", "streamed, one seed", "streamed"),
        "evaluation together, of one kind after the other": ratio("evaluation", "together", "one kind after the other"),
        **{
            f"processed tokens of concat, of {way}": ratio("live", "concat", way, "processed_tokens")
            for way in LIVE_WAYS
            if way != "concat"
        },
    }
    return result


if __name__ == "__main__":
    main()
