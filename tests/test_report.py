"""The report page: its numbers against values worked out by hand, and the page itself in a real browser.

The run reported on is made by the real stages: generated games, the search expert, pairs, episodes on ALFWorld's
engine. Only the models are scripts, which read the prompt and answer it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from samples import ROOM

from verl_act.data_prep.build_pairs import build_pairs
from verl_act.data_prep.collect_expert import collect_expert
from verl_act.data_prep.make_tasks import make_tasks
from verl_act.engine import EngineSettings, Sampling
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.evaluate.ask import Examinee, ask_choices, ask_next_actions, play_tasks
from verl_act.evaluate.run import Answers, write_evaluation
from verl_act.manifest import make_manifest, write_manifest
from verl_act.prompts import Message, Template
from verl_act.schema import TASK, Context, Turn, read_pairs, read_steps, read_table

HOSTILE = '</script><img src="https://example.org/x.png" onerror="window.hacked = 1"><b>bold</b>\u2028{{ 7 * 7 }}'
SPLITS = ("valid_seen", "valid_unseen")
Policy = Callable[[Context, Sequence[str]], str]


class JsonTemplate(Template):
    """Shows the state as JSON, so that a script can read it."""

    def action_messages(self, context: Context) -> list[Message]:
        return self.choice_messages(context, [])

    def choice_messages(self, context: Context, candidates: Sequence[str]) -> list[Message]:
        return [{"role": "user", "content": json.dumps({"candidates": candidates, **context.to_row()})}]

    def followup(self, observation: str, admissible_actions: Sequence[str]) -> str:
        return observation


class Script:
    """Stands where an engine would: one reply a prompt."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    async def reply(self, messages: list[Message], sampling: Sampling, seed: int | None = None) -> list[str]:
        shown = json.loads(messages[0]["content"])
        return [self.policy(Context.from_row(shown), shown["candidates"])]


class LocalSession:
    """An episode in this process."""

    def __init__(self, games: Path, task: Task) -> None:
        self.environment = AlfworldEnvironment(data=games)
        self.first: Observation = self.environment.reset(task)

    async def step(self, action: str) -> StepResult:
        return self.environment.step(action)

    async def close(self) -> None:
        self.environment.close()


class LocalPool:
    """Every episode in this process, in place of Ray's workers."""

    def __init__(self, games: Path) -> None:
        self.games = games

    async def open(self, task: Task) -> LocalSession:
        return LocalSession(self.games, task)


def expert(context: Context, candidates: Sequence[str]) -> str:
    """Does as the search expert does, and says why."""
    action, inferable = SearchExpert().act(context)
    chosen = action if action in candidates or not candidates else candidates[0]
    return f"<think>The goal is to {context.goal} I have seen enough: {inferable}.</think><action>{chosen}</action>"


def stubborn(context: Context, candidates: Sequence[str]) -> str:
    """Begins like the expert; in every second game it soon tries to open a door that is not there, for ever."""
    if candidates:
        return f"<action>{candidates[0]}</action>"
    if len(context.history) > 2 and len(context.goal) % 2:
        return "<action>open door 1</action>"
    return f"<action>{SearchExpert().act(context)[0]}</action>" if len(context.history) < 9 else "I am lost."


def hostile(context: Context, candidates: Sequence[str]) -> str:
    """Tries to break out of the page."""
    if context.history and not candidates:
        return f"<think>{HOSTILE}</think><action>{HOSTILE}</action>"
    return f"{HOSTILE} <action>{candidates[-1] if candidates else context.admissible_actions[0]}</action>"


def evaluate_script(run: Path, name: str, policy: Policy, games: Path) -> None:
    """What `evaluate` does, with a script for a model."""
    files = [run / "tasks" / "panel" / "tasks.parquet"]
    files += [run / "expert" / split / "trajectories.parquet" for split in SPLITS]
    files += [run / "pairs" / split / "pairs.parquet" for split in SPLITS]
    sampling = Sampling(temperature=0)
    examinee = Examinee(cast(Any, Script(policy)), JsonTemplate(), sampling)

    async def ask() -> Answers:
        tasks = [Task(**row) for row in read_table(files[0], TASK).to_pylist()]
        return Answers(
            await play_tasks(examinee, tasks, cast(Any, LocalPool(games)), max_turns=20),
            await ask_next_actions(examinee, read_steps(files[1:3])),
            await ask_choices(examinee, read_pairs(files[3:])),
        )

    engine = EngineSettings(model=f"models/{name}")
    out = run / "evaluation" / name
    write_evaluation(out, name, engine, sampling, asyncio.run(ask()), template="json", inputs=files, seconds=1.5)
    mark(run, f"evaluate {name}", 2.5)


def mark(run: Path, stage: str, seconds: float) -> None:
    """What the chain leaves when a stage is done."""
    folder = run / ".done" / stage.replace(" ", "-")
    folder.mkdir(parents=True)
    write_manifest(folder, make_manifest(stage, settings={"command": ["-m", "verl_act", stage]}, seconds=seconds))


def metrics_line(step: int, split_shares: dict[str, float], kind: str) -> str:
    """A line as verl's file logger writes it."""
    data: dict[str, float] = {
        f"val-core/act/alfworld/{kind}/{split}/acc/mean@1": x for split, x in split_shares.items()
    }
    if step:
        right = 0.4 + 0.02 * step
        data |= {"critic/score/mean": right + 0.03, "response_length/mean": 30 - step, "actor/entropy": 2 / step}
        tiers = {"acc": right, "adm": 0.3, "fmt": 0.1, "score": right}
        data |= {f"train/act/alfworld/{kind}/{tier}/mean": share for tier, share in tiers.items()}
    return json.dumps({"step": step, "data": data}) + "\n"


def training_metrics(kind: str, steps: int = 20) -> str:
    lines = []
    for step in range(steps + 1):
        shares = {"valid_seen": 0.45 + 0.02 * step, "valid_unseen": 0.4 + 0.015 * step} if step % 5 == 0 else {}
        lines.append(metrics_line(step, shares, kind))
    return "".join(lines)


@pytest.fixture(scope="session")
def run(games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished chain."""
    folder = tmp_path_factory.mktemp("report") / "quick<b>start"
    settings = {"data": str(games)}
    for split in ("train", *SPLITS):
        collect_expert(folder / "expert" / split, "alfworld", split, env_settings=settings, progress=False)
        trajectories = [folder / "expert" / split / "trajectories.parquet"]
        build_pairs(folder / "pairs" / split, trajectories, (), settings, source="admissible")
        mark(folder, f"expert {split}", 4.0)
        mark(folder, f"pairs {split}", 3.0)
    for name, splits in (("train", ["train"]), ("panel", SPLITS)):
        make_tasks(folder / "tasks" / name, "alfworld", splits, env_settings=settings)
        mark(folder, f"tasks {name}", 1.0)
    (folder / "alternatives").mkdir()
    mark(folder, "alternatives", 70.0)
    mark(folder, "audit", 1.0)
    for stage, kind in (("critic", "choice"), ("action", "action")):
        (folder / stage).mkdir()
        (folder / stage / "metrics.jsonl").write_text(training_metrics(kind))
        mark(folder, stage, 4000.0)
    for name, policy in (("initial", stubborn), ("critic", hostile), ("action", expert)):
        evaluate_script(folder, name, policy, games)
    (folder / "comparison").mkdir()
    mark(folder, "comparison", 0.5)
    return folder
