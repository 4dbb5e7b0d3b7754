"""The report page: its numbers against values worked out by hand, and the page itself in a real browser.

The run reported on is made by the real stages: generated games, the search expert, pairs, episodes on ALFWorld's
engine. Only the models are scripts, which read the prompt and answer it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from chromium import chromium
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.engine import Reply, Sampling
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.envs.registry import choice_prompt
from verl_act.errors import ConfigError, DataError, OptionError
from verl_act.evaluate.choices import evaluate_choices
from verl_act.evaluate.files import EPISODES
from verl_act.evaluate.metric_registry import format_value
from verl_act.evaluate.records import read_records
from verl_act.evaluate.rollouts import PolicyUnderTest, evaluate_next_actions, rollout_tasks
from verl_act.evaluate.run import Answers, evaluation_manifest, write_evaluation
from verl_act.evaluate.statistics import Estimate, ItemOutcome, against
from verl_act.evaluate.table import compare
from verl_act.manifest import digest, make_manifest, read_manifest, write_manifest
from verl_act.prompts import Message, Template, register_template
from verl_act.report import plots, write_report
from verl_act.report.content import Content, content
from verl_act.report.curves import Curve, Series, curve_table
from verl_act.report.examples import turns_in_loops
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs
from verl_act.report.tables import Group
from verl_act.run_folder import PlannedStage, RunFolder
from verl_act.schema import TASK, TRAJECTORY, Context, read_pairs, read_steps, read_table, write_rows
from verl_act.settings.data import ExpertSettings, PairsSettings, TasksSettings
from verl_act.settings.evaluation import CompareSettings, EvaluationSettings, ReportSettings

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
            await rollout_tasks(policy, tasks, {"alfworld": cast(Any, LocalPool(games))}, max_turns=20),
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


def plan(run: Path, stages: dict[str, str], trains: Sequence[str] = ()) -> None:
    """Record the stages, name -> output, as planned."""
    RunFolder(run).add_to_plan([PlannedStage(name, output, name in trains) for name, output in stages.items()])


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
    folder = tmp_path_factory.mktemp("report") / "quick<b>start"
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
    return folder


@pytest.fixture(scope="session")
def whole(run: Path) -> Content:
    return content(read_runs([run]), most=8)


@pytest.fixture(scope="session")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written page."""
    return write_report(ReportSettings(runs=[run], examples=8), tmp_path_factory.mktemp("page") / "report.html")[0]


# Statistics


def outcomes(holds: dict[int, bool], tasks: dict[int, int] | None = None) -> dict[str, ItemOutcome]:
    return {str(item): ItemOutcome(float(right), task=(tasks or {}).get(item)) for item, right in holds.items()}


def test_the_paired_test_is_mcnemars_exact_one() -> None:
    first = {number: number < 4 for number in range(20)}
    second = {number: 2 <= number < 14 for number in range(5, 25)} | {2: True, 3: True, 0: False, 1: False}
    change = against([outcomes(second)], [outcomes(first)])
    assert change is not None
    # Items 0 to 3 and 5 to 19 are in both: 0 and 1 are lost, 5 to 13 gained.
    assert (change.items, change.gained, change.lost) == (19, 9, 2)
    assert change.difference == pytest.approx(7 / 19)
    # Two-sided binomial: 2 * (C(11, 0) + C(11, 1) + C(11, 2)) / 2 ** 11.
    assert change.p_tasks == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert (change.p_seeds, change.p) == (None, None)


def test_a_game_has_one_sign() -> None:
    first = {number: False for number in range(30)}
    second = {number: number < 20 for number in range(30)}
    games = {number: number // 5 for number in range(30)}
    alone, by_game = (against([outcomes(second, tasks)], [outcomes(first, tasks)]) for tasks in (None, games))
    assert alone is not None and by_game is not None
    assert (by_game.gained, by_game.difference) == (alone.gained, alone.difference) == (20, 20 / 30)
    assert alone.p_tasks == pytest.approx(2 * 0.5**20)
    assert by_game.p_tasks == pytest.approx(2 * 0.5**4, abs=0.01), "four games, all up"


# Numbers


def test_the_metrics_are_those_of_the_evaluation(run: Path, whole: Content) -> None:
    compared = 0
    for block in whole.blocks:
        for row in block.rows:
            for model, cell in zip(whole.models, row.cells, strict=True):
                stored = json.loads((run / "evaluation" / model.label / "metrics.json").read_text())["metrics"]
                result = cell.estimate
                values = {"value": result.value, "low": result.low, "high": result.high, "items": result.items}
                assert stored[block.split].get(row.key, values) == values
                compared += row.key in stored[block.split]
    assert compared > 2 * 3 * 15, "splits, models, metrics"


def test_behaviour_is_that_of_the_records(whole: Content) -> None:
    (block,) = (block for block in whole.blocks if (block.section, block.split) == ("episodes", "valid_seen"))
    rows = {row.key: [cell.estimate for cell in row.cells] for row in block.rows}
    for index, model in enumerate(whole.models):
        episodes = [record for record in model.evaluation.records[EPISODES] if record["split"] == "valid_seen"]
        won = [record["steps"] for record in episodes if record["success"]]
        assert rows["steps_to_success"][index].items == len(won)
        assert rows["steps_to_success"][index].value == (pytest.approx(sum(won) / len(won)) if won else None)
        for key in ("score", "steps", "longest_failed_repeat"):
            assert rows[key][index].value == pytest.approx(sum(record[key] for record in episodes) / len(episodes))
    assert not {"reply_length", "useful_tokens"} & set(rows), "a script has no tokens"


def test_interventions_and_hard_pairs_have_rows(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    for name in MODELS:
        folder = copy / "evaluation" / name
        choices = [json.loads(line) for line in (folder / "choices.jsonl").read_text().splitlines()]
        answers = [
            {key: choice[key] for key in ("pair_id", "split", "order", "reply", "well_formed", "right")}
            | {"task_id": choice["pair_id"], "thought": True, "follows": not choice["right"]}
            | {"rationale": rationale, "question": "choice"}
            for choice in choices
            for rationale in ("free", "wrong")
        ]
        hard = [{**choice, "hard": True, "probe": 0.5} for choice in choices]
        for file, records in (("rationales.jsonl", answers), ("choices.jsonl", hard)):
            (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "manifest.json").unlink()
    whole = content(read_runs([copy]), 0)
    rows = {
        (row.key, row.note): [cell.estimate.value for cell in row.cells]
        for block in whole.blocks
        for row in block.rows
        if block.split == "valid_seen"
    }
    choice = next(values for (key, _), values in rows.items() if key == "choice")
    for thought in ("free thought", "wrong thought"):
        assert rows["rationale_choice", thought] == choice
        assert rows["rationale_choice_follows", thought] == pytest.approx([1 - value for value in choice])
    assert [values for (key, _), values in rows.items() if key in ("choice_hard", "choice_probe")] == [
        choice,
        [0.5] * 3,
    ]
    assert "Better action chosen by thought" in html(whole)
    assert "Better action chosen by thought (wrong thought)" in markdown(whole)


def test_models_are_compared_with_the_first(whole: Content) -> None:
    assert [model.label for model in whole.models] == ["initial", "critic", "action"]
    success = next(row for block in whole.blocks for row in block.rows if row.key == "success")
    assert success.cells[0].change is None
    change = success.cells[2].change
    assert change is not None and change.items == success.cells[2].estimate.items
    assert success.cells[2].estimate.value == 1.0, "the search expert wins every game"
    assert change.gained == round((1 - (success.cells[0].estimate.value or 0)) * change.items)


def test_a_preference_for_a_position_shows(whole: Content) -> None:
    by_name = {group.name: [result.value for result in group.estimates] for group in whole.positions}
    assert by_name["expert's action first"] == [1.0, 0.0, 1.0]
    assert by_name["expert's action second"] == [0.0, 1.0, 1.0]
    bias = next(row for block in whole.blocks for row in block.rows if row.key == "position_bias")
    assert [cell.estimate.value for cell in bias.cells] == [0.5, -0.5, 0.0]


def test_calibration_is_confidence_against_right_choices(run: Path, tmp_path: Path) -> None:
    """Four choices at 0.95 of which three are right, six at 0.35 of which three are right."""
    copy = copied(run, tmp_path)
    path = copy / "evaluation" / "action" / "choices.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for number, record in enumerate(records):
        sure = number % 10 < 4
        record |= {"split": "valid_seen", "log_probability": math.log(0.95 if sure else 0.35)}
        record["right"] = number % 10 in (0, 1, 2, 4, 5, 6)
    records = records[: len(records) // 10 * 10]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (copy / "evaluation" / "action" / "manifest.json").unlink()
    for older in ("initial", "critic"):
        old = copy / "evaluation" / older / "choices.jsonl"
        lines = [json.loads(line) for line in old.read_text().splitlines()]
        old.write_text("".join(json.dumps({**line, "log_probability": None}) + "\n" for line in lines))
    whole = content(read_runs([copy]), 0)
    (found,) = whole.calibrations
    shown = {part.name: (part.confidences[2], part.right[2].value, part.right[2].items) for part in found.bins}
    tens = len(records) // 10
    assert shown == {
        "30–40%": (pytest.approx(0.35), 0.5, 6 * tens),
        "90–100%": (pytest.approx(0.95), 0.75, 4 * tens),
    }
    assert found.errors == [None, None, pytest.approx(0.4 * 0.2 + 0.6 * 0.15)]
    assert "| ECE | – | – | 17.0% |" in markdown(whole)
    assert html(whole).count("Calibration of choices, valid_seen") == 1


def test_general_reasoning_is_shown_where_it_was_asked(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    for name, right in (("initial", 3), ("critic", 1)):
        rows = [{"item": str(at), "split": "math500", "gold": "1", "reply": "", "right": at < right} for at in range(4)]
        path = copy / "evaluation" / name / "reasoning.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (path.parent / "manifest.json").unlink()
    whole = content(read_runs([copy]), 0)
    (block,) = (block for block in whole.blocks if block.section == "reasoning")
    first, second, third = block.rows[0].cells
    assert (first.estimate.value, second.estimate.value, third.estimate.value) == (0.75, 0.25, None)
    assert second.change is not None and (second.change.lost, second.change.gained) == (2, 0)
    assert third.change is None
    assert "### General reasoning, math500" in markdown(whole) and "General reasoning" in html(whole)


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


def test_questions_of_general_reasoning_stand_beside_their_answers(run: Path, tmp_path: Path) -> None:
    copy = with_reasoning(run, tmp_path)
    whole = content(read_runs([copy]), 6)
    part = whole.examples[3]
    assert (part.kind, len(part.items), part.total) == ("reasoning", 6, 8)
    assert {item["split"] for item in part.items} == {"a/math", "b/math"}
    for item in part.items:
        split, number = item["id"].rsplit("/", 1)
        asked = f"{split[0]}: What is {int(number) - 1} + 1?"
        assert whole.texts[item["goal"]].startswith(asked) and whole.texts[item["expected"]] == number
        initial, critic, action = item["answers"]
        assert critic is None and action["right"] and initial["right"] == (int(number) % 2 == 0)
        assert whole.texts[initial["reply"]] == f"{HOSTILE} initial {split[0]} {number}"
    assert whole.as_json()["examples"]["reasoning"] == {"shown": 6, "total": 8}
    (copy / "questions" / "b" / "math.jsonl").write_text("{}")
    lost = content(read_runs([copy]), 6).examples[3]
    assert all((item["goal"] is None) == (item["split"] == "b/math") for item in lost.items)


def test_episodes_that_the_environment_ended_are_told(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    path = copy / "evaluation" / "critic" / "episodes.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[:3]:
        record |= {"end": "error", "error": "the engine died"}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    whole = content(read_runs([copy]), 0)
    told = "3 of 12 episodes of critic ended in an error of the environment and are not counted."
    assert whole.notes == [told]
    assert told in html(whole) and told in markdown(whole) and told in whole.as_json()["notes"]
    counted = sum(block.rows[0].cells[1].estimate.items for block in whole.blocks if block.section == "episodes")
    assert counted == 9


def test_an_evaluation_from_before_has_no_calibration(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    for path in copy.glob("evaluation/*/choices.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(
            "".join(json.dumps({k: v for k, v in line.items() if k != "log_probability"}) + "\n" for line in lines)
        )
    whole = content(read_runs([copy]), 0)
    assert whole.calibrations == [] and "alibration" not in html(whole) + markdown(whole)


def test_margins_and_task_types_cover_every_record(run: Path, whole: Content) -> None:
    pairs = read_pairs([run / "pairs" / split / "pairs.parquet" for split in SPLITS])
    for groups, wanted in ((whole.margins, len(pairs)), (whole.task_types, 12)):
        assert [sum(group.estimates[model].items for group in groups) for model in range(3)] == [wanted] * 3
    names = [group.name for group in whole.margins if group.split == "valid_seen"]
    assert names == sorted(names, key=["1", "2", "3–4", "5–8", "9+"].index)


def test_curves_come_from_the_metrics(whole: Content) -> None:
    by_key = {(curve.stage, curve.key): curve for curve in whole.curves}
    assert [key for stage, key in by_key if stage == "critic"] == ["score", "validation", "tiers", "entropy", "length"]
    validation = by_key["critic", "validation"]
    assert [(series.name, series.first, series.last) for series in validation.series] == [
        ("valid_seen", 0.45, pytest.approx(0.85)),
        ("valid_unseen", 0.4, pytest.approx(0.7)),
    ]
    assert [step for step, _ in validation.series[0].points] == [0, 5, 10, 15, 20]
    tiers = {series.name: series.last for series in by_key["critic", "tiers"].series}
    assert tiers == {
        "Expert's action": pytest.approx(0.8),
        "Other admissible action": 0.3,
        "Malformed replies": 0.1,
    }


def test_labels_that_cannot_be_inferred_and_kinds_of_rows_stand_apart(run: Path, tmp_path: Path) -> None:
    data = {
        "val-core/act/alfworld/choice/valid_seen/acc/mean@1": 0.7,
        "val-core/act/alfworld/choice/valid_seen/not_inferable/acc/mean@1": 0.5,
        "val-core/act/alfworld/action/valid_seen/acc/mean@1": 0.6,
        "val-core/openai/gsm8k/acc/mean@1": 0.1,
        "val-aux/act/alfworld/choice/valid_seen/adm/mean@1": 0.2,
        "train/act/alfworld/choice/acc/mean": float("nan"),
        "train/act/alfworld/choice/thought/mean": 0.9,
        "train/act/alfworld/action/thought/mean": 0.0,
    }
    copy = copied(run, tmp_path)
    (copy / "critic" / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": data}) + "\n")
    curves = [curve for curve in content(read_runs([copy]), 0).curves if curve.stage == "critic"]
    assert [curve.key for curve in curves] == ["validation", "thoughts"]
    assert {series.name: series.last for series in curves[1].series} == {"choice: Replies with a thought": 0.9}
    assert {series.name: series.last for series in curves[0].series} == {
        "action: valid_seen": 0.6,
        "choice: valid_seen": 0.7,
        "choice: valid_seen, not inferable": 0.5,
    }


@pytest.mark.parametrize(
    ("further", "note"),
    [("train/lr", "mean over the step's reply tokens"), ("train/margins", "mean of the step's pairs")],
)
def test_the_loss_says_what_it_is_a_mean_of(further: str, note: str, run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    line = {"step": 1, "data": {"train/loss": 0.7, further: 0.1}}
    (copy / "critic" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (loss,) = (curve for curve in content(read_runs([copy]), 0).curves if curve.key == "loss")
    assert loss.note == note


def test_long_runs_are_drawn_in_means(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    (copy / "critic" / "metrics.jsonl").write_text(training_metrics("choice", steps=1000))
    score = next(curve for curve in content(read_runs([copy]), 0).curves if curve.key == "score").series[0]
    assert (score.bin_steps, len(score.points)) == (4, 250)
    assert score.points[0] == (4, pytest.approx(0.4 + 0.02 * 2.5 + 0.03))


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of HTML tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(?:<span.*?</span>)?(.*?)</t[hd]>", row) for row in rows]


def test_every_curve_has_a_table_of_its_points(whole: Content) -> None:
    shown, text = table_rows(html(whole)), markdown(whole)
    for curve in whole.curves:
        for number, series in enumerate(curve.series):
            for step, value in series.points:
                words = format_value(value, curve.unit)
                assert any(row[0] == str(step) and row[1 + number] == words for row in shown if len(row) > 1 + number)
    assert ["step", "Expert's action", "Other admissible action", "Malformed replies"] in [
        [cell.replace("&#39;", "'") for cell in row] for row in shown
    ]
    assert "### Validation, critic stage (share of held-out rows)\n" in text
    assert "| 0 | 45.0% | 40.0% |\n| 5 | 55.0% | 47.5% |\n" in text


def test_long_curves_are_thinned_evenly_and_say_so(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    (copy / "critic" / "metrics.jsonl").write_text(training_metrics("choice", steps=1000))
    whole = content(read_runs([copy]), 0)
    score = next(curve for curve in whole.curves if curve.key == "score")
    for most in (50, 20):
        table = curve_table(score, most)
        steps = [step for step, _ in table.rows]
        assert (len(steps), steps[0], steps[-1]) == (most, 4, 1000)
        gaps = [after - before for before, after in pairwise(steps)]
        assert max(gaps) - min(gaps) <= 4, "the points are four steps apart"
        assert table.note == f"{most} of 250 points, evenly spread, means of up to 4 steps"
    assert "50 of 250 points" in html(whole) and "20 of 250 points" in markdown(whole)


def test_no_series_loses_its_points_to_another() -> None:
    """Validated at other steps: what is evenly spread over all steps could be of one series alone."""
    odd, even = (Series(name, "", [(step, 0.5) for step in range(start, 400, 2)]) for start, name in enumerate("ab"))
    table = curve_table(Curve("critic", "validation", "Validation", "", "share", [odd, even]), 50)
    assert table.columns == ["a", "b"] and len(table.rows) == 50
    for column, ends in ((0, [0, 398]), (1, [1, 399])):
        steps = [step for step, values in table.rows if values[column] is not None]
        assert len(steps) == 25 and [steps[0], steps[-1]] == ends


# What a run folder may hold


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def test_the_pipeline_tells_what_every_manifest_says(whole: Content) -> None:
    (summary,) = whole.runs
    stages = {stage.name: stage for stage in summary.stages}
    assert list(stages) == [
        *("expert train", "expert valid_seen", "expert valid_unseen", "alternatives"),
        *("pairs train", "pairs valid_seen", "pairs valid_unseen", "audit", "tasks train", "tasks eval"),
        *("evaluate initial", "critic", "action", "evaluate critic", "evaluate action", "comparison"),
    ]
    pairs = stages["pairs valid_seen"]
    assert pairs.seconds == 3.0, "the chain's time, not the stage's own"
    assert pairs.inputs[0][0] == "expert/valid_seen/trajectories.parquet" and len(pairs.inputs[0][1]) == 64
    assert pairs.counts["pairs"] > 0 and pairs.seed == 0 and len(pairs.key) == 64
    assert stages["critic"].counts == {"steps logged": 21}
    assert (summary.env, summary.model, summary.missing) == ("alfworld", "models/initial", [])


def test_an_unfinished_run_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    for name in ("evaluation", "action", "comparison", "pairs/valid_unseen"):
        shutil.rmtree(copy / name)
    shutil.rmtree(RunFolder(copy).record("critic"))
    (copy / "critic").rename(copy / "critic.work")
    lines = training_metrics("choice").splitlines(keepends=True)
    (copy / "critic.work" / "metrics.jsonl").unlink()
    # A killed attempt leaves half a line, and the next one goes on from the last checkpoint.
    (copy / "critic.work" / "metrics-0.jsonl").write_text("".join(lines[:9]) + lines[9][:30])
    (copy / "critic.work" / "metrics-1.jsonl").write_text("".join(lines[6:12]))
    whole = content(read_runs([copy]), 8)
    (summary,) = whole.runs
    assert summary.missing == [
        *("pairs valid_unseen", "evaluate initial", "critic", "action"),
        *("evaluate critic", "evaluate action", "comparison"),
    ]
    assert {stage.name: stage.state for stage in summary.stages}["critic"] == "unfinished"
    score = next(curve for curve in whole.curves if curve.key == "score").series[0]
    assert [step for step, _ in score.points] == list(range(1, 12))
    text = html(whole)
    assert "Not finished" in text and "No model has been evaluated yet" in text
    assert "evaluate action" in markdown(whole)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a folder that `run` writes .* nor one of `eval run`"):
        read_runs([tmp_path])


def test_a_single_evaluation_is_a_report_too(run: Path) -> None:
    whole = content(read_runs([run / "evaluation" / "action", run / "evaluation" / "initial"]), 2)
    assert [model.label for model in whole.models] == ["action", "initial"]
    assert whole.title == "Comparison of action, initial"
    assert "is a single evaluation" in html(whole)


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    whole = content(read_runs([run, copy]), 2)
    names = [f"{folder.parent.name}/{run.name}" for folder in (run, copy)]
    assert [model.label for model in whole.models] == [
        f"{name} · {model}" for name in names for model in ("initial", "critic", "action")
    ]
    assert {series.run for curve in whole.curves for series in curve.series} == set(names)
    fourth = whole.blocks[0].rows[0].cells[3].change
    assert fourth is not None and (fourth.gained, fourth.lost) == (0, 0), "the same model on the same tasks"
    assert html(whole).count("<svg") > 10
    with pytest.raises(DataError, match="given twice"):
        read_runs([run, run])


@pytest.mark.parametrize("file", ["episodes.jsonl", "next_actions.jsonl", "choices.jsonl"])
def test_a_damaged_line_is_named(file: str, run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    path = copy / "evaluation" / "critic" / file
    lines = path.read_text().splitlines()
    for text, message in (
        (lines[2][:-5], rf"{file}, line 3: is not JSON"),
        ("[1]", rf"{file}, line 3: is list, not an object"),
        (json.dumps({"split": "valid_seen"}), rf"{file}, line 3: '\w+' is missing"),
    ):
        path.write_text("\n".join([*lines[:2], text, *lines[3:]]) + "\n")
        with pytest.raises(DataError, match=message):
            read_runs([copy])
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(
        DataError, match=rf"{file}: holds {len(lines) - 1} records, but \S+manifest.json counts {len(lines)}"
    ):
        read_runs([copy])


def test_damaged_metrics_and_figures_are_named(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    metrics = copy / "action" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 21, "da')
    with pytest.raises(DataError, match=r"action/metrics.jsonl, line 22: has no step and data"):
        read_runs([copy])
    metrics.write_text('{"step": "one"}\n')
    with pytest.raises(DataError, match=r"action/metrics.jsonl, line 1: has no step and data"):
        read_runs([copy])
    metrics.write_text(whole)
    (copy / "evaluation" / "action" / "metrics.json").write_text('{"name": "action"}')
    with pytest.raises(DataError, match=r"metrics.json: is damaged"):
        read_runs([copy])


# Examples


def test_examples_show_every_split_and_outcome(whole: Content) -> None:
    *asked, reasoning = whole.examples
    assert reasoning.total == 0
    for part in asked:
        assert len(part.items) == 8 < part.total
        assert {item["split"] for item in part.items} == set(SPLITS)
        assert {item["answers"][0]["right"] for item in part.items} == {True, False}


def test_loops_are_marked_as_the_evaluation_counts_them(run: Path) -> None:
    for name in ("initial", "critic", "action"):
        for line in (run / "evaluation" / name / "episodes.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert max(turns_in_loops(record["turns"])) == record["longest_failed_repeat"]


def test_the_experts_action_is_known_until_the_ways_part(run: Path, whole: Content) -> None:
    steps = read_steps([run / "expert" / split / "trajectories.parquet" for split in SPLITS])
    for item in whole.examples[0].items:
        plan = [step.action for step in steps if f"{step.split}/{step.task_id}" == item["id"]]
        assert [whole.texts[action] for action in item["expert"]] == plan
        for answer in item["answers"]:
            together = [turn["as_expert"] for turn in answer["turns"]]
            same = together.index(False) if False in together else len(together)
            shown = [turn["expert"] for turn in answer["turns"]]
            known = min(same + 1, len(plan), len(shown))
            assert [whole.texts[action] for action in shown[:known]] == plan[:known]
            assert set(shown[known:]) <= {None}
        assert all(turn["as_expert"] for turn in item["answers"][2]["turns"])


def test_of_several_trajectories_of_a_task_one_is_the_experts_plan(run: Path, tmp_path: Path) -> None:
    """Published data have several; laid over each other they would be a plan that nobody played."""
    copy = copied(run, tmp_path)
    path = copy / "expert" / "valid_seen" / "trajectories.parquet"
    rows = read_table(path, TRAJECTORY).to_pylist()
    longer = [{**row, "trajectory_id": f"0 {row['trajectory_id']}", "step": row["step"] + 1} for row in rows]
    looks = [{**row, "step": 0, "action": "look"} for row in longer if row["step"] == 1]
    write_rows(path, [*rows, *looks, *longer], TRAJECTORY)
    for manifest in copy.glob("evaluation/*/manifest.json"):
        written = json.loads(manifest.read_text())
        written["inputs"] = {name: digest(copy / Path(name).relative_to(run)) for name in written["inputs"]}
        manifest.write_text(json.dumps(written))
    whole = content(read_runs([copy]), 30)
    shown = [item for item in whole.examples[0].items if item["split"] == "valid_seen"]
    for item in shown:
        plan = [row["action"] for row in rows if f"{row['split']}/{row['task_id']}" == item["id"]]
        assert [whole.texts[action] for action in item["expert"]] == ["look", *plan]
    assert shown


def test_questions_stand_beside_the_answers(run: Path, whole: Content) -> None:
    pairs = {pair.pair_id: pair for pair in read_pairs([run / "pairs" / split / "pairs.parquet" for split in SPLITS])}
    for item in whole.examples[2].items:
        pair = pairs[item["id"]]
        assert whole.texts[item["observation"]] == pair.context.observation
        assert [whole.texts[action] for action in item["list"]] == list(pair.context.admissible_actions)
        assert (whole.texts[item["expert"]], whole.texts[item["alternative"]]) == (
            pair.expert_action,
            pair.alternative_action,
        )
        for answer in item["answers"]:
            assert (
                whole.texts[answer["candidates"][answer["chosen"]]]
                == whole.texts[answer["action"]]
                == (pair.expert_action if answer["chose"] == "expert" else pair.alternative_action)
            )


def test_a_moved_run_finds_its_questions_and_a_changed_file_is_not_believed(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    for path in copy.glob("evaluation/*/manifest.json"):
        path.write_text(path.read_text().replace(str(run), "/gone/run"))
    whole = content(read_runs([copy]), 8)
    assert not whole.notes
    assert all(item["goal"] is not None for part in whole.examples for item in part.items)
    for split in SPLITS:
        shutil.copy(copy / "pairs" / "train" / "pairs.parquet", copy / "pairs" / split / "pairs.parquet")
    changed = content(read_runs([copy]), 8)
    assert "For 8 of 16 single answers shown" in changed.notes[0]
    assert all(item["goal"] is None for item in changed.examples[2].items)


# The files


def test_three_files_hold_the_same_numbers(run: Path, page: Path, whole: Content) -> None:
    stored = json.loads(page.with_suffix(".json").read_text())
    assert [model["label"] for model in stored["models"]] == ["initial", "critic", "action"]
    assert stored["examples"]["episodes"] == {"shown": 8, "total": 12}
    texts = [page.read_text(), page.with_suffix(".md").read_text()]
    for block, there in zip(whole.blocks, stored["blocks"], strict=True):
        for row, kept in zip(block.rows, there["rows"], strict=True):
            for cell, entry in zip(row.cells, kept["cells"], strict=True):
                assert entry["estimate"]["value"] == cell.estimate.value
                assert all(format_value(cell.estimate.value, row.unit) in text for text in texts)


def test_the_same_run_gives_the_same_bytes(run: Path, page: Path, tmp_path: Path) -> None:
    again = write_report(ReportSettings(runs=[run], examples=8), tmp_path / "again" / "report.html")
    for path in again:
        same = path.read_bytes() == page.with_suffix(path.suffix).read_bytes()
        assert same, path.name  # not the bytes themselves: pytest would take minutes to show how they differ
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["report.html", "report.json", "report.md"]


def test_a_bad_place_or_number_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_report(ReportSettings(runs=[run]), tmp_path / "report.pdf")
    with pytest.raises(OptionError) as refused:
        ReportSettings(runs=[run], examples=-1)
    assert refused.value.option == "examples"
    with pytest.raises(ConfigError, match="is a file"):
        write_report(ReportSettings(runs=[run]), tmp_path / "file" / "report.html")


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["eval", "report", "--out", str(out), "--examples", "1", str(run)])
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(out.with_suffix(suffix)) for suffix in (".html", ".md", ".json")]


def test_charts_are_text_that_scales(page: Path) -> None:
    charts = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert len(charts) == 3 + 2 + 2 + 2 + 2 + 5 + 5
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("viewBox") and not root.get("width")
        assert not [element for element in root.iter() if element.get("id") or element.tag.endswith("script")]
        titles = [element for element in root.iter("{http://www.w3.org/2000/svg}title")]
        assert titles and all(re.search(r"\d", element.text or "") for element in titles)


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def oklab(colour: str) -> tuple[float, ...]:
    """In OKLab, where distances are about as large as they look."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


def test_colours_can_be_read_light_and_dark(page: Path) -> None:
    light, dark = re.findall(r":root \{(.*?)\n *\}", page.read_text(), re.DOTALL)
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))

        def contrast(one: str, other: str, colours: dict[str, str] = colours) -> float:
            low, high = sorted((luminance(colours[one]), luminance(colours[other])))
            return (high + 0.05) / (low + 0.05)

        for text, ground in (
            *((text, ground) for text in ("ink", "muted", "link", "good", "bad") for ground in ("page", "card")),
            *(("ink", "notice"), ("ink", "soft"), ("muted", "soft"), ("good", "good-soft"), ("bad", "bad-soft")),
            *(("loop", "loop-soft"), ("ink", "loop-soft"), ("bad", "loop-soft"), ("muted", "loop-soft")),
        ):
            assert contrast(text, ground) >= 4.5, f"{text} on {ground}"
        series = [f"series-{number}" for number in range(plots.COLOURS)]
        for name in series:
            assert contrast(name, "card") >= 3, name
        for one, other in combinations(series, 2):
            assert math.dist(oklab(colours[one]), oklab(colours[other])) >= 0.1, f"{one} and {other} look alike"


def test_twelve_models_have_twelve_colours(page: Path) -> None:
    labels = [f"model {number}" for number in range(12)]
    chart = plots.bars(
        "Shares", [Group("success", "split", "all", [Estimate(0.5, 0.4, 0.6, 10, [0.5], None)] * 12)], labels
    )
    used = set(re.findall(r"var\(--series-\d+\)", chart))
    assert len(used) == 12
    defined = re.findall(r"--series-(\d+):", page.read_text())
    assert sorted(map(int, defined)) == sorted([*range(12), *range(12)]), "light and dark"


# Hostile text


class Skeleton(HTMLParser):
    """The elements of a page and their attributes' names, and what the scripts hold."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def skeleton(text: str) -> Skeleton:
    parser = Skeleton()
    parser.feed(text)
    parser.close()
    return parser


def small_run(folder: Path, text: str) -> Path:
    """An evaluation of one episode and one answer of each other kind, with `text` wherever others write."""
    folder.mkdir()
    turn = {"observation": text, "reply": text, "action": text, "admissible_actions": [text]}
    episode = {
        "task_id": text,
        "task_type": text,
        "split": text,
        "end": text,
        "success": 0.0,
        "steps": 1.0,
        "goal": text,
    }
    shares = {"inadmissible_share": 1.0, "malformed_share": 0.0, "longest_failed_repeat": 1.0}
    turns = [{**turn, "malformed": None, "admissible": False}]
    answer = {"split": text, "inferable": True, "reply": text, "well_formed": True, "admissible": True, "right": False}
    choice = {"pair_id": text, "margin": None, "named_a_candidate": False, "expert_position": 0, "order": 0}
    choice |= {"candidates": ["a", "b"], "chosen": None, "consistent": False}
    figures = {"name": text, "model": text, "template": text, "sampling": {}, "metrics": {}}
    for name, record in (
        ("metrics.json", figures),
        ("episodes.jsonl", {**episode, **shares, "turns": turns}),
        ("next_actions.jsonl", {**answer, "state_id": text}),
        ("choices.jsonl", {**answer, **choice}),
        ("reasoning.jsonl", {"item": text, "split": text, "gold": text, "reply": text, "right": False}),
    ):
        (folder / name).write_text(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="session")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    folder = small_run(tmp_path_factory.mktemp("harmless") / "run", "text")
    return skeleton(html(content(read_runs([folder]), 4)))


markup = st.one_of(
    st.sampled_from(
        [HOSTILE, "<!--", "]]>", "&lt;script&gt;", "\ud800", "\x00\x1b", "'\"><svg onload=alert(1)>", "{% raw %}"]
    ),
    st.text(alphabet=st.sampled_from("<>/!-&;'\"=script{}% \u2028\n"), min_size=1, max_size=30),
)


@settings(max_examples=15)
@given(text=markup)
def test_no_text_becomes_markup(text: str, harmless: Skeleton, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small_run(tmp_path_factory.mktemp("hostile") / "run", text)
    whole = content(read_runs([folder]), 4)
    found = skeleton(html(whole).encode(errors="replace").decode())
    assert found.elements == harmless.elements
    data, script = found.scripts
    assert script == harmless.scripts[1]
    assert json.loads(data)["kinds"]["episodes"]["items"][0]["id"].endswith(f"/{text}")
    assert not re.search(r"(?<!\\)<(?!br)", markdown(whole)), "nor in Markdown"


# In a browser


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


def test_the_page_opens_offline_and_silently(visit: Callable[..., Visit], page: Path) -> None:
    opened = visit()
    assert opened.asked == [page.as_uri()]
    assert "quick<b>start" in opened.tab.title()
    assert opened.tab.locator("article.column").count() == 2
    assert opened.tab.locator("#results table").count() == 6


def test_the_viewer_by_keyboard(visit: Callable[..., Visit]) -> None:
    opened = visit()
    press = opened.tab.keyboard.press
    opened.tab.locator("#view").focus()
    first = opened.tab.locator("#answer .goal").inner_text()
    assert opened.where.startswith("1 of 8; 4 of 12 are left out")
    press("j")
    assert opened.where.startswith("2 of 8")
    assert opened.tab.locator("#answer .goal").inner_text() != first
    press("k")
    press("k")
    assert opened.where.startswith("1 of 8")
    press("Tab")
    assert opened.tab.evaluate("document.activeElement.getAttribute('role')") == "tab"
    press("ArrowRight")
    assert opened.tab.locator("[role=tab][aria-selected=true]").inner_text().startswith("Next actions")
    press("ArrowLeft")
    press("3")
    assert opened.tab.locator("[role=tab][aria-selected=true]").inner_text().startswith("Choices")
    for _ in range(30):
        press("Tab")
        if opened.tab.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    press("Enter")
    assert opened.tab.locator("#answer details[open]").count() == 1
    place = int(opened.where.split(" of ")[0])
    press("j" if place == 1 else "k")
    press("k" if place == 1 else "j")
    assert int(opened.where.split(" of ")[0]) == place, "the keys are heard still, though what had the focus is gone"
    last = int(opened.where.split(" of ")[1].split(";")[0])
    opened.tab.get_by_role("button", name="Next").focus()
    for _ in range(last - place):
        press("Enter")
    press("k")
    assert opened.where.startswith(f"{last - 1} of {last}"), "from a button that is disabled by its last use too"


def test_the_viewer_shows_what_happened(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit()
    answer = opened.tab.locator("#answer")
    opened.select("Show", "loop")
    assert answer.locator(".turn.loop").count() > 0
    assert re.search(r"loop: same failed action \d+ times", answer.inner_text())
    assert "leaves the expert's path" in answer.inner_text()
    assert re.search(r"the same failed action \d+ more times, to turn 20", answer.inner_text())
    opened.select("Show", "gained")
    for number in range(int(opened.where.split(" of ")[1].split(";")[0])):
        opened.select("Item", str(number))
        left, right = (answer.locator("article").nth(side).inner_text() for side in (0, 1))
        assert "not solved" in left and "not solved" not in right
    opened.tab.get_by_role("tab", name="Choices").click()
    assert answer.locator("article").first.locator("ol.candidates li").count() == 2
    assert "chosen" in answer.inner_text()
    address = opened.tab.url
    again = visit()
    again.tab.goto("about:blank")
    again.tab.goto(address)
    assert again.tab.locator("#answer").inner_text() == answer.inner_text()
    opened.select("Right-hand model", "-1")
    assert answer.locator("article").count() == 1


def test_the_verdict_comes_first_and_the_navigation_stays(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    assert opened.tab.locator("main section").first.get_attribute("id") == "verdict"
    assert whole.verdict.sentence in opened.tab.locator("#verdict").inner_text()
    opened.tab.get_by_role("link", name="Pipeline").click()
    navigation = opened.tab.get_by_role("navigation")
    opened.expect(navigation).to_be_in_viewport()
    opened.expect(opened.tab.locator("#pipeline h2")).to_be_in_viewport()
    below = (
        "(title) => title.getBoundingClientRect().top >= document.querySelector('nav').getBoundingClientRect().bottom"
    )
    assert opened.tab.locator("#pipeline h2").evaluate(below), "the navigation does not cover the title"


def test_bars_show_their_numbers_inside_the_chart(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit()
    chart = opened.tab.locator("#verdict figure svg").first
    values = [
        cell.estimate.value
        for block in whole.blocks
        for row in block.rows
        if row.key == "success"
        for cell in row.cells
    ]
    texts = chart.locator("text").all_text_contents()
    for value in values:
        assert format_value(value, "share") in texts
    inside = """(svg) => { const box = svg.getBoundingClientRect(); return [...svg.querySelectorAll("text")].every(
        (text) => text.getBoundingClientRect().right <= box.right + 1); }"""
    assert chart.evaluate(inside)


def test_the_prompt_is_shown_as_it_was_sent(visit: Callable[..., Visit], run: Path, whole: Content) -> None:
    pairs = {pair.pair_id: pair for pair in read_pairs([run / "pairs" / split / "pairs.parquet" for split in SPLITS])}
    for item in whole.examples[2].items:
        for answer in item["answers"]:
            candidates = [whole.texts[index] for index in answer["candidates"]]
            (message,) = choice_prompt(JsonTemplate(), pairs[item["id"]], candidates)
            assert whole.texts[answer["prompt"]] == f"[{message['role']}]\n{message['content']}"
    opened = visit()
    opened.tab.get_by_role("tab", name="Choices").click()
    prompt = opened.tab.locator("article").first.locator("details", has_text="the prompt as sent")
    prompt.locator("summary").click()
    assert prompt.locator("pre").text_content() in whole.texts


def test_transcripts_can_be_searched(visit: Callable[..., Visit], whole: Content) -> None:
    opened = visit()
    search = opened.tab.get_by_role("searchbox", name="Search")
    search.fill("open DOOR 1")
    count = int(opened.where.split(" of ")[1].split(";")[0])
    shown = [
        item
        for item in whole.examples[0].items
        if any(
            turn["action"] is not None and whole.texts[turn["action"]] == "open door 1"
            for turn in item["answers"][0]["turns"]
        )
    ]
    assert 0 < count == len(shown) < 8
    search.press("j")
    assert search.input_value() == "open DOOR 1j", "keys are letters here"
    assert opened.where.startswith("no match")
    search.fill("")
    assert opened.where.startswith("1 of 8")


def test_hostile_replies_stay_text(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.select("Right-hand model", "1")
    for kind in ("Episodes", "Next actions", "Choices"):
        opened.tab.get_by_role("tab", name=kind).click()
        shown = opened.tab.locator("article").nth(1).inner_text()
        assert '</script><img src="https://example.org/x.png" onerror="window.hacked = 1"><b>bold</b>' in shown
    assert opened.tab.locator("img, #answer script, #answer b b").count() == 0
    assert opened.tab.evaluate("window.hacked") is None


def test_a_narrow_screen_needs_no_sideways_scrolling(visit: Callable[..., Visit], page: Path) -> None:
    opened = visit(viewport={"width": 360, "height": 740})
    fits = """() => [...document.querySelectorAll("body *")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1)
            && !element.closest("thead, .skip, .sections"); // the navigation scrolls on its own
    }).map((element) => element.tagName + "." + element.getAttribute("class"))"""
    for kind in ("Episodes", "Next actions", "Choices"):
        opened.tab.get_by_role("tab", name=kind).click()
        opened.tab.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
        assert opened.tab.evaluate(fits) == []
        assert opened.tab.evaluate("document.documentElement.scrollWidth") == 360
    columns = opened.tab.locator("article.column")
    assert [columns.nth(side).is_visible() for side in (0, 1)] == [True, False], "one model at a time"
    opened.tab.locator(".switch button").nth(1).click()
    assert [columns.nth(side).is_visible() for side in (0, 1)] == [False, True]


def test_one_column_is_always_shown_on_a_narrow_screen(visit: Callable[..., Visit]) -> None:
    opened = visit(viewport={"width": 360, "height": 740})
    columns = opened.tab.locator("article.column:visible")
    opened.tab.locator(".switch button").nth(1).click()
    for alone in ("-1", "0"):
        opened.select("Right-hand model", alone)
        assert columns.count() == 1 and columns.get_attribute("aria-label") == "initial"
        opened.select("Right-hand model", "2")
        assert columns.get_attribute("aria-label") == "action"


def test_the_address_changes_by_what_a_reader_does_alone(visit: Callable[..., Visit], page: Path) -> None:
    opened = visit()
    assert opened.tab.url == page.as_uri()
    opened.tab.reload()
    assert opened.tab.evaluate("scrollY") == 0
    opened.tab.goto(f"{page.as_uri()}#pipeline")
    assert opened.tab.url.endswith("#pipeline")
    assert opened.where.startswith("1 of 8")
    opened.tab.get_by_role("button", name="Next").click()
    assert "#kind=episodes&id=" in opened.tab.url


def test_links_to_answers_work_in_an_open_page(visit: Callable[..., Visit], page: Path) -> None:
    opened, other = visit(), visit()
    goal = opened.tab.locator("#answer .question")
    first = goal.inner_text()
    other.tab.get_by_role("tab", name="Choices").click()
    other.select("Item", "3")
    link = other.tab.url
    opened.select("Show", "wrong")
    filtered, place = goal.inner_text(), opened.where
    opened.tab.goto(link)
    assert goal.inner_text() == other.tab.locator("#answer .question").inner_text()
    opened.expect(opened.tab.locator("#view .tabs")).to_be_in_viewport()
    opened.tab.go_back()
    assert (goal.inner_text(), opened.where) == (filtered, place)
    other.tab.get_by_role("link", name="Pipeline").click()
    assert opened.tab.get_by_role("combobox", name="Show").input_value() == "wrong"
    assert other.where.startswith("4 of 8"), "another part of the page leaves the viewer as it is"
    fresh = visit()
    fresh.tab.goto(link)
    fresh.tab.go_back()
    assert fresh.tab.url == page.as_uri() and fresh.tab.locator("#answer .question").inner_text() == first


def test_the_viewer_and_what_scrolls_have_a_role_and_a_name(visit: Callable[..., Visit], tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", "text")
    path = folder / "episodes.jsonl"
    record = json.loads(path.read_text())
    (turn,) = record["turns"]
    replies = ("short", "line\n" * 60, "word " * 320)
    path.write_text(json.dumps({**record, "turns": [{**turn, "reply": reply} for reply in replies]}) + "\n")
    opened = visit(write_report(ReportSettings(runs=[folder]), tmp_path / "report.html")[0])
    assert opened.tab.get_by_role("group", name="Answers").get_attribute("id") == "view"
    boxes = opened.tab.locator(".reply")
    opened.tab.get_by_role("group", name="Reply").wait_for()
    scrolling = "(box) => [box.scrollHeight > box.clientHeight, box.tabIndex, box.getAttribute('role')]"
    assert [boxes.nth(number).evaluate(scrolling) for number in range(3)] == [
        [False, -1, None],
        [True, 0, "group"],
        [False, -1, None],
    ]
    opened.tab.set_viewport_size({"width": 360, "height": 740})
    opened.expect(boxes.nth(2)).to_have_attribute("tabindex", "0")


def test_settings_can_be_scrolled_by_keys(visit: Callable[..., Visit]) -> None:
    opened = visit()
    boxes = opened.tab.locator("#pipeline pre")
    assert boxes.count() > 5
    for number in range(boxes.count()):
        names = [boxes.nth(number).get_attribute(name) for name in ("tabindex", "role")]
        assert names == ["0", "group"] and (boxes.nth(number).get_attribute("aria-label") or "").startswith("Settings")


def test_general_reasoning_can_be_looked_at(visit: Callable[..., Visit], run: Path, tmp_path: Path) -> None:
    opened = visit(write_report(ReportSettings(runs=[with_reasoning(run, tmp_path)]), tmp_path / "report.html")[0])
    opened.tab.locator("#view").focus()
    opened.tab.keyboard.press("4")
    assert opened.tab.locator("[role=tab][aria-selected=true]").inner_text() == "General reasoning (8)"
    answer = opened.tab.locator("#answer")
    opened.select("Show", "gained")
    shown = answer.inner_text()
    assert re.search(r"[ab]: What is [02] \+ 1\?", shown) and re.search(r"expected answer: [13]", shown)
    left, right = (answer.locator("article").nth(side).inner_text() for side in (0, 1))
    assert "wrong" in left and "right" in right and f"{HOSTILE.splitlines()[0]}" in left.replace("\u2028", "")
    assert answer.locator("img, script").count() == 0
    options = opened.tab.get_by_role("combobox", name="Show").locator("option").all_inner_texts()
    assert "with a malformed reply" not in options and "with a loop" not in options
    opened.select("Left-hand model", "1")
    opened.select("Show", "")
    assert "This model was not evaluated on this item." in answer.inner_text()


def test_dark_readers_get_a_dark_page(visit: Callable[..., Visit]) -> None:
    grounds = {
        scheme: visit(color_scheme=scheme).tab.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert grounds == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 24, 27)"}


def test_without_script_the_numbers_are_there(visit: Callable[..., Visit]) -> None:
    opened = visit(java_script_enabled=False)
    assert opened.tab.locator("#results table").count() == 6
    assert "need JavaScript" in opened.tab.locator("#viewer").inner_text()


def test_a_damaged_byte_in_a_side_file_is_never_a_raw_error(run: Path, tmp_path: Path) -> None:
    """A digit that became another one cannot be told from a figure; whatever is no longer readable is named."""
    folder = Path(shutil.copytree(run / "evaluation" / "critic", tmp_path / "critic"))
    drawn, named = random.Random(0), 0
    for path in sorted(path for path in folder.glob("*.json*") if path.stat().st_size):
        whole = path.read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            place = drawn.randrange(len(content))
            content[place] ^= 1 << drawn.randrange(8)
            path.write_bytes(content)
            try:
                if path.name == "metrics.json":
                    compare(CompareSettings(evaluations=[folder]))
                read_records(folder)
                read_manifest(folder)
            except DataError as error:
                assert str(path) in str(error)
                named += 1
        path.write_bytes(whole)
    assert named > 50


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"name": "critic", "metrics": [1]}', "\ufeff{", "", "[" * 9_999])
@pytest.mark.parametrize("file", ["metrics.json", "manifest.json"])
def test_a_side_file_of_another_shape_is_named(file: str, text: str, run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "evaluation" / "critic", tmp_path / "critic"))
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=file):
        read_runs([folder])
