"""The small run that reports are made of: real stages with scripts as models; its page, and a browser to read it in."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from chromium import chromium
from made_once import made_once

from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.engine import Reply, Sampling
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.evaluate.choices import evaluate_choices
from verl_act.evaluate.evaluation import Answers, evaluation_manifest, write_evaluation
from verl_act.evaluate.method_comparison import compare_methods
from verl_act.evaluate.rollouts import PolicyUnderTest, evaluate_next_actions, rollout_tasks
from verl_act.manifest import digest, make_manifest, write_manifest
from verl_act.prompts import Message, Template, register_template
from verl_act.report import write_report
from verl_act.report.content import Content, content
from verl_act.report.read import read_runs
from verl_act.run_folder import PlannedStage, RunFolder
from verl_act.schema import TASK, Context, read_pairs, read_steps, read_table
from verl_act.settings.data import ExpertSettings, PairsSettings, TasksSettings
from verl_act.settings.evaluation import EvaluationSettings, MethodsTableSettings, ReportSettings

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


register_template("json", JsonTemplate)


class Script:
    """Stands where an engine would: one reply a prompt."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    async def reply(self, messages: list[Message], sampling: Sampling, seed: int | None = None) -> list[str]:
        shown = json.loads(messages[0]["content"])
        return [self.policy(Context.from_row(shown), shown["candidates"])]

    async def scored_reply(self, messages: list[Message], sampling: Sampling, seed: int | None = None) -> list[Reply]:
        """Surer of a short reply."""
        return [Reply(text, -len(text) / 100) for text in await self.reply(messages, sampling, seed)]


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


def as_played(trajectories: Sequence[Path]) -> Policy:
    """Does as the search expert did, and says why."""
    steps = {step.context: step for step in read_steps(trajectories)}

    def policy(context: Context, candidates: Sequence[str]) -> str:
        step = steps[context]
        why = f"The goal is to {context.goal} I have seen enough: {step.inferable}."
        return f"<think>{why}</think><action>{step.action}</action>"

    return policy


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
    files = [run / "tasks" / "eval" / "tasks.parquet"]
    files += [run / "expert" / split / "trajectories.parquet" for split in SPLITS]
    files += [run / "pairs" / split / "pairs.parquet" for split in SPLITS]
    settings = EvaluationSettings(
        model=f"models/{name}", name=name, template="json", tasks=files[:1], trajectories=files[1:3], pairs=files[3:]
    )
    policy = PolicyUnderTest(cast(Any, Script(policy)), JsonTemplate(), settings.sampling)

    async def ask() -> Answers:
        tasks = [Task(**row) for row in read_table(files[0], TASK).to_pylist()]
        return Answers(
            await rollout_tasks(policy, tasks, cast(Any, LocalPool(games)), max_turns=20),
            await evaluate_next_actions(policy, read_steps(files[1:3])),
            await evaluate_choices(policy, read_pairs(files[3:])),
        )

    out = run / "evaluation" / name
    write_evaluation(out, settings, evaluation_manifest(settings), asyncio.run(ask()), seconds=1.5)
    mark(run, f"evaluate {name}", 2.5)


def mark(run: Path, stage: str, seconds: float) -> None:
    """What a run leaves when a stage is done."""
    folder = RunFolder(run).record(stage)
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


def plan(run: Path, stages: dict[str, str], trains: Sequence[str] = (), seed: int | None = None) -> None:
    """Record the stages, title -> output, as planned."""
    planned = [PlannedStage(title, output, title in trains, seed=seed) for title, output in stages.items()]
    RunFolder(run).add_to_plan(planned)


MODELS = ("initial", "critic", "action")
PLAN = {
    **{f"expert {split}": f"expert/{split}" for split in ("train", *SPLITS)},
    "alternatives": "alternatives",
    **{f"pairs {split}": f"pairs/{split}" for split in ("train", *SPLITS)},
    "audit": "pairs/train/pairs.parquet",
    **{f"tasks {name}": f"tasks/{name}" for name in ("train", "eval")},
    "evaluate initial": "evaluation/initial",
    **{name: name for name in MODELS[1:]},
    **{f"evaluate {name}": f"evaluation/{name}" for name in MODELS[1:]},
    "comparison": "comparison",
    "report": "report.html",
}


@pytest.fixture(scope="session")
def run(games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without methods."""
    return made_once(tmp_path_factory, "quick<b>start", lambda folder: make_run(games, folder))


def make_run(games: Path, folder: Path) -> None:
    settings = {"data": str(games)}
    plan(folder, PLAN, MODELS[1:])
    for split in ("train", *SPLITS):
        collect_expert(
            ExpertSettings(env="alfworld", split=split, env_settings=settings, workers=0), folder / "expert" / split
        )
        trajectories = [folder / "expert" / split / "trajectories.parquet"]
        build_pairs(
            PairsSettings(
                trajectories=trajectories, alternatives=[], env_settings=settings, source="admissible", workers=0
            ),
            folder / "pairs" / split,
        )
        mark(folder, f"expert {split}", 4.0)
        mark(folder, f"pairs {split}", 3.0)
    for name, splits in (("train", ["train"]), ("eval", list(SPLITS))):
        make_tasks(TasksSettings(env="alfworld", splits=splits, env_settings=settings), folder / "tasks" / name)
        mark(folder, f"tasks {name}", 1.0)
    (folder / "alternatives").mkdir()
    mark(folder, "alternatives", 70.0)
    mark(folder, "audit", 1.0)
    for stage, kind in (("critic", "choice"), ("action", "action")):
        (folder / stage).mkdir()
        (folder / stage / "metrics.jsonl").write_text(training_metrics(kind))
        mark(folder, stage, 4000.0)
    expert = as_played([folder / "expert" / split / "trajectories.parquet" for split in SPLITS])
    for name, policy in zip(MODELS, (stubborn, hostile, expert), strict=True):
        evaluate_script(folder, name, policy, games)
    (folder / "comparison").mkdir()
    mark(folder, "comparison", 0.5)


@pytest.fixture(scope="session")
def whole(run: Path) -> Content:
    return content(read_runs([run]), most=8)


@pytest.fixture(scope="session")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written page."""
    return write_report(ReportSettings(runs=[run], examples=8), tmp_path_factory.mktemp("page") / "report.html")[0]


MATH = [{"problem": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(4)]


def with_reasoning(run: Path, tmp_path: Path) -> Path:
    """The run with answers to two files of questions of one name, which lie in the run's folder."""
    copy = copied(run, tmp_path)
    files = [copy / "questions" / folder / "math.jsonl" for folder in "ab"]
    for file in files:
        file.parent.mkdir(parents=True)
        rows = [{**row, "problem": f"{file.parent.name}: {row['problem']}"} for row in MATH]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("initial", "action"):
        folder = copy / "evaluation" / name
        answers = [
            {
                "item": str(number),
                "split": f"{file.parent.name}/math",
                "gold": row["answer"],
                "reply": f"{HOSTILE} {name} {file.parent.name} {number}",
                "right": number % 2 == 0 or name == "action",
            }
            for file in files
            for number, row in enumerate(MATH, 1)
        ]
        (folder / "reasoning.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["inputs"] |= {f"/gone/{'/'.join(file.parts[-3:])}": digest(file) for file in files}
        manifest["counts"]["reasoning"] = len(answers)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return copy


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    """It comes after `page`, which runs asyncio."""
    with chromium() as running:
        yield running


class Visit:
    """A page opened offline, and everything that it says or asks for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())

    def select(self, name: str, value: str) -> None:
        self.tab.get_by_role("combobox", name=name).select_option(value)

    def expect(self, locator: Any) -> Any:
        """Waits until what is claimed of `locator` holds."""
        from playwright.sync_api import expect

        return expect(locator)

    @property
    def where(self) -> str:
        return self.tab.locator("#view .where").inner_text()


@pytest.fixture
def visit(browser: Any, page: Path) -> Iterator[Callable[..., Visit]]:
    made: list[Visit] = []

    def open_page(path: Path = page, **options: Any) -> Visit:
        made.append(Visit(browser, path, **options))
        return made[-1]

    yield open_page
    for each in made:
        each.context.close()
        assert each.said == []
        assert [url for url in each.asked if not url.startswith("file://")] == []


METHODS = {"Prompting": "initial", "IL <b>bold</b>": "critic", "RL + ACT": "action"}
OF_SEED = {"evaluate initial": "evaluation/initial", "rows il": "rows-il", "il+critic": "il+critic"}
OF_SEED |= {f"evaluate {name}": f"evaluation/{name}" for name in ("critic", "action")}
COMPARED = {
    **{"expert train": "expert/train", "expert valid_seen": "expert/valid_seen", "alternatives": "alternatives"},
    **{"pairs train": "pairs/train", "audit": "pairs/train/pairs.parquet", "tasks eval": "tasks/eval"},
    **{"methods": "methods", "report": "report.html"},
}


@pytest.fixture(scope="module")
def compared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison over two seeds: the answers of the three scripts, which are the same for both."""
    folder = tmp_path_factory.mktemp("methods") / "comparison"
    methods = {}
    for name, evaluation in METHODS.items():
        paths = {}
        for seed in ("0", "1"):
            path = folder / f"seed-{seed}" / "evaluation" / evaluation
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(run / "evaluation" / evaluation)
            paths[seed] = str(path.relative_to(folder))
        steps = {} if name == "Prompting" else {"critic": 40, "action": 40}
        methods[name] = {
            "steps": steps,
            "against": [] if name == "Prompting" else ["Prompting"],
            "evaluations": paths,
            "stages": [],
        }
    plan(folder, COMPARED)
    for seed in (0, 1):
        plan(folder, {title: f"seed-{seed}/{output}" for title, output in OF_SEED.items()}, ["il+critic"], seed)
    (folder / "seed-0" / "il+critic").mkdir()
    (folder / "seed-0" / "il+critic" / "metrics.jsonl").write_text(training_metrics("choice"))
    compare_methods(MethodsTableSettings(run=folder, methods=methods), folder / "methods")
    return folder
