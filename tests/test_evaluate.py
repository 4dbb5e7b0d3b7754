"""The metrics of an evaluation, against values worked out by hand, and their tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import embedded_models, make_context, make_pair, make_step, make_tokenizer

from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.engine import Engine, Reply, Sampling
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.evaluate.choices import evaluate_choices
from verl_act.evaluate.evaluation import (
    Answers,
    evaluate_model,
    evaluation_manifest,
    some_of_each_split,
    write_evaluation,
)
from verl_act.evaluate.metric_registry import METRICS, SECTIONS, metric_items, read_metrics, summary
from verl_act.evaluate.reasoning import Question
from verl_act.evaluate.records import CHOICES, EPISODES, FILES
from verl_act.evaluate.rollouts import (
    PolicyUnderTest,
    evaluate_next_actions,
    evaluate_reasoning,
    require_one_environment,
    rollout_tasks,
)
from verl_act.evaluate.statistics import ItemOutcome, wilson_interval
from verl_act.evaluate.table import compare
from verl_act.journal import Journal, journal, key_of
from verl_act.manifest import digest, make_manifest
from verl_act.prompts import get_template
from verl_act.report.read import read_runs
from verl_act.report.tables import groups, models
from verl_act.settings.data import TasksSettings
from verl_act.settings.evaluation import CompareSettings, EvaluationSettings


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Brown, Cai and DasGupta's formula, as statsmodels' proportion_confint(method="wilson") gives it.
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 29, 0.0061, 0.1718),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_holds_the_share(case: tuple[int, int]) -> None:
    successes, count = case
    low, high = wilson_interval(successes, count)
    assert 0 <= low <= successes / count + 1e-12
    assert successes / count - 1e-12 <= high <= 1


@dataclass(frozen=True)
class Item:
    split: str
    name: str


def test_a_limit_draws_from_the_whole_of_each_split() -> None:
    """The files are sorted by task type."""
    items = [Item(split, f"{kind}-{number}") for split in "ab" for kind in "xyz" for number in range(50)]
    kept = some_of_each_split(items, 30, lambda item: item.name)
    assert [item for item in items if item in kept] == kept
    for split in "ab":
        kinds = [item.name[0] for item in kept if item.split == split]
        assert len(kinds) == 30 and min(map(kinds.count, "xyz")) >= 5
    # The same ones, whatever else was asked.
    assert some_of_each_split(items[150:], 30, lambda item: item.name) == kept[30:]
    assert some_of_each_split(items, None, lambda item: item.name) == items


def episode(**changes: Any) -> dict[str, Any]:
    base = {"task_id": "t", "split": "valid_seen", "task_type": "pick_and_place", "end": "over"}
    counts = {"steps": 6.0, "inadmissible_share": 0.0, "malformed_share": 0.0, "longest_failed_repeat": 0.0}
    return {**base, **counts, "success": 1.0, **changes}


def choice(**changes: Any) -> dict[str, Any]:
    base = {"pair_id": "p", "split": "valid_seen", "inferable": True, "well_formed": True, "admissible": True}
    base |= {"right": True, "named_a_candidate": True, "expert_position": 0, "chosen": 0, "candidates": ["a", "b"]}
    return {**base, "margin": 1, "order": 0, "consistent": True, **changes}


def numbered(records: list[dict[str, Any]], item: str) -> list[dict[str, Any]]:
    """The records with an id each."""
    return [{**record, item: str(index)} for index, record in enumerate(records)]


def values(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metric -> value, or group -> value."""
    return {
        name: entry["value"] if "value" in entry else {group: each["value"] for group, each in entry.items()}
        for name, entry in metrics.items()
    }


def test_metrics_of_episodes() -> None:
    records = [
        episode(),
        episode(steps=10.0, inadmissible_share=0.5, longest_failed_repeat=2.0),
        episode(success=0.0, steps=50.0, malformed_share=0.25, longest_failed_repeat=3.0, task_type="look_at_obj"),
        episode(success=0.0, steps=50.0, longest_failed_repeat=40.0, task_type="look_at_obj"),
    ]
    metrics = summary({EPISODES: numbered(records, "task_id")})["valid_seen"]
    assert (metrics["success"]["items"], metrics["steps_to_success"]["items"]) == (4, 2)
    assert values(metrics) == {
        "success": 0.5,
        "success_by_type": {"look_at_obj": 0.0, "pick_and_place": 1.0},
        "loops": 0.5,
        "inadmissible_share": 0.125,
        "malformed_share": 0.0625,
        "longest_failed_repeat": 11.25,
        "steps": 29.0,
        "steps_to_success": 8.0,
    }, "a metric whose columns are missing is left out"


def test_the_mean_score_has_an_interval() -> None:
    scores = [0.2, 1.0, 0.0, -1.0, 0.8, 0.5]
    records = numbered([episode(score=value) for value in scores], "task_id")
    score = summary({EPISODES: records})["valid_seen"]["score"]
    assert (score["value"], score["items"]) == (pytest.approx(0.25), 6)
    assert -1 <= score["low"] < 0.25 < score["high"] <= 1
    alike = numbered([episode(score=1.0), episode(score=1.0)], "task_id")
    assert summary({EPISODES: alike})["valid_seen"]["score"]["low"] is None


def test_states_of_one_game_widen_the_interval() -> None:
    records = numbered([choice(right=index // 5 % 3 > 0) for index in range(150)], "pair_id")
    by_game = [{**record, "task_id": f"game {index // 5}"} for index, record in enumerate(records)]
    alone, grouped = (summary({CHOICES: rows})["valid_seen"]["choice"] for rows in (records, by_game))
    assert grouped["value"] == alone["value"]
    assert grouped["high"] - grouped["low"] > 1.8 * (alone["high"] - alone["low"])
    assert (alone["low"], alone["high"]) == wilson_interval(100, 150)


def test_metrics_of_choices() -> None:
    records = [
        choice(chosen=0),
        choice(right=False, expert_position=1, chosen=0, margin=3),
        choice(expert_position=1, inferable=False, chosen=1, margin=None),
        choice(right=False, well_formed=False, named_a_candidate=False, inferable=False, chosen=None, margin=12),
    ]
    metrics = summary({CHOICES: numbered(records, "pair_id")})["valid_seen"]
    assert metrics["choice_inferable"]["items"] == 2
    assert values(metrics) == {
        "choice": 0.5,
        "choice_inferable": 0.5,
        "choice_named": 0.75,
        "choice_of_named_inferable": 0.5,
        "choice_consistent": 1.0,
        "position_bias": pytest.approx(1 / 6),
        "choice_malformed": 0.25,
        "choice_by_position": {"expert's action first": 0.5, "expert's action second": 0.5},
        "choice_by_margin": {"1": 1.0, "3–4": 0.0, "9+": 0.0, "unknown": 1.0},
    }
    assert list(metrics["choice_by_margin"]) == ["1", "3–4", "9+", "unknown"], "in their order"


def test_splits_have_their_own_metrics_in_order() -> None:
    records = numbered(
        [episode(split="valid_unseen", success=0.0), episode(), episode(split="valid_unseen")], "task_id"
    )
    metrics = summary({EPISODES: records})
    assert {split: entry["success"]["value"] for split, entry in metrics.items()} == {
        "valid_seen": 1.0,
        "valid_unseen": 0.5,
    }
    assert list(metrics) == ["valid_seen", "valid_unseen"] and summary({}) == {}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_defined_consistently(name: str) -> None:
    metric = METRICS[name]
    assert metric.section in SECTIONS and (metric.average != "share" or metric.unit == "share")
    titles = [other.full_title for other in METRICS.values()]
    assert titles.count(metric.full_title) == 1, "a table may hold all metrics"
    assert not (metric.tested and metric.group)


def test_values_as_text() -> None:
    share, turns = METRICS["success"], METRICS["steps"]
    assert (share.format(0.1234), turns.format(12.345), turns.format(123.4), turns.format(None)) == (
        *("12.3%", "12.3", "123", "–"),
    )
    assert (share.format_interval(0.1, 0.25), share.format_interval(None, None)) == ("10.0–25.0%", "")
    assert share.format_change(-0.05, -0.1, 0.01) == "−5.0 points [−10.0, +1.0]"
    assert turns.format_change(1.5) == "+1.5"


def written(folder: Path, name: str, episodes: list[dict[str, Any]], choices: list[dict[str, Any]]) -> Path:
    """A folder as `evaluate` leaves it."""
    records = {EPISODES: numbered(episodes, "task_id"), CHOICES: numbered(choices, "pair_id")}
    metrics = {"name": name, "model": "a-model", "template": "cot", "sampling": {}, "metrics": summary(records)}
    target = folder / name
    target.mkdir()
    (target / "metrics.json").write_text(json.dumps(metrics))
    for file, rows in records.items():
        lines = [json.dumps({"reply": "", **row}) + "\n" for row in rows]
        (target / file).write_text("".join(lines))
    return target


def test_evaluations_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path, "before", [episode(success=0.0, steps=50.0), episode()], [])
    after = written(tmp_path, "after", [episode(), episode(steps=8.0)], [choice()])
    compare(CompareSettings(evaluations=[before, after]), tmp_path / "comparison")
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    shown = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert shown[0] == ["before", "after"]
    assert ["Tasks solved, valid_seen", "50.0% [9.5–90.5%]", "100.0% [34.2–100.0%]"] in shown
    assert ["Better action chosen", "–", "100.0% [20.7–100.0%]"] in shown
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    assert table.startswith("| split | metric | before | after |\n| --- | --- | ---: | ---: |\n")
    assert "| valid_seen | Tasks solved | 50.0% [9.5–90.5%] n=2 | 100.0% [34.2–100.0%] n=2 |" in table
    assert "| Turns an episode (solved or not) | 28 [6–50] n=2 | 7 [6–8] n=2 |" in table
    assert "| Better action chosen (all states) |  | 100.0% [20.7–100.0%] n=1 |" in table
    stored = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [entry["name"] for entry in stored] == ["before", "after"]


@pytest.mark.parametrize("count", [1, 3, 4, 12])
def test_the_table_fits_a_terminal(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [episode(split=split) for split in ("valid_seen", "valid_unseen")]
    names = [f"a method with a long name {index}" for index in range(count)]
    compare(CompareSettings(evaluations=[written(tmp_path, name, records, [choice()]) for name in names]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6 and max(map(len, lines)) <= 100


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}.*`eval run`"):
        compare(CompareSettings(evaluations=[tmp_path]))


def test_an_evaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite, tasks, trajectories, pairs or reasoning"):
        evaluate_model(EvaluationSettings(name="model", model="none"), tmp_path / "out")
    with pytest.raises(ConfigError, match="n is 4 at temperature 0"):
        Sampling(n=4, temperature=0)


# What is asked of an engine, and what is written of its answers


class Says:
    """Stands where an engine would: one reply to every prompt; remembers the seeds."""

    def __init__(self, reply: str) -> None:
        self.text = reply
        self.seeds: list[int | None] = []

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        self.seeds.append(seed)
        return [self.text]

    async def scored_reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[Reply]:
        return [Reply(text, -0.5) for text in await self.reply(messages, sampling, seed)]


class Corridor:
    """Three steps to the goal. Pool and episode in one; fails at the task or at the action that it is told."""

    def __init__(self, fails: str = "", breaks_at: int = 0) -> None:
        self.fails, self.breaks_at = fails, breaks_at
        self.first = Observation("walk on", "a corridor", ("go",))
        self.steps = 0

    async def open(self, task: Task) -> Corridor:
        if task.task_id == self.fails:
            raise EnvError(f"{task.task_id} cannot be loaded")
        return Corridor(breaks_at=2 if task.task_id == f"{self.fails}, later" else 0)

    async def step(self, action: str) -> StepResult:
        self.steps += 1
        if self.steps == self.breaks_at:
            raise EnvError("the corridor has no floor")
        over = self.steps == 3
        return StepResult("a corridor", ("go",), float(over), over, over, True)

    async def close(self) -> None:
        pass


def corridors(*names: str) -> list[Task]:
    return [Task("corridor", "valid_seen", name, "walk") for name in names]


def policy(engine: object, seed: int = 0) -> PolicyUnderTest:
    return PolicyUnderTest(cast(Any, engine), get_template("plain"), Sampling(), seed)


def play(engine: object, pool: Corridor, *names: str, seed: int = 0, kept: Journal | None = None) -> list[Any]:
    return asyncio.run(rollout_tasks(policy(engine, seed), corridors(*names), cast(Any, pool), 5, kept))


def write(out: Path, model: str = "a/model", answers: Answers | None = None, **settings: Any) -> dict[str, Any]:
    """Write `answers`; returns the content of metrics.json."""
    given = EvaluationSettings(model=model, name="it", **settings)
    write_evaluation(out, given, evaluation_manifest(given), answers or Answers([], [], []))
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_every_item_and_turn_draws_its_own_noise() -> None:
    def drawn(seed: int) -> list[int | None]:
        engine = Says("<action>go</action>")
        play(engine, Corridor(), "one", "two", seed=seed)
        asked = policy(engine, seed)
        asyncio.run(evaluate_next_actions(asked, [make_step(number) for number in range(3)]))
        asyncio.run(evaluate_choices(asked, [make_pair(number) for number in range(3)]))
        asyncio.run(evaluate_reasoning(asked, [Question(str(number), "math", "?", "1", False) for number in range(3)]))
        return engine.seeds

    first = drawn(0)
    assert len(set(first)) == len(first) == 2 * 3 + 3 * (1 + 2 + 1)
    assert sorted(map(str, first)) == sorted(map(str, drawn(0)))
    assert not set(first) & set(drawn(1))


def test_an_episode_whose_environment_fails_is_counted_and_left_out(tmp_path: Path) -> None:
    engine = Says("<action>go</action>")
    played = play(engine, Corridor(fails="bad"), "one", "bad", "two", "bad, later")
    assert [record["end"] for record in played] == ["goal", "error", "goal", "error"]
    assert [played[at]["error"] for at in (1, 3)] == ["bad cannot be loaded", "the corridor has no floor"]
    metrics = write(tmp_path / "out", answers=Answers(played, [], []))["metrics"]["valid_seen"]
    assert (metrics["success"]["items"], metrics["success"]["value"]) == (2, 1.0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["counts"]["episodes"], manifest["counts"]["episode_errors"]) == (4, 2)
    assert read_metrics(tmp_path / "out")["valid_seen", "success", ""] == {
        f"valid_seen/{task}": ItemOutcome(1.0, task=f"valid_seen/{task}") for task in ("one", "two")
    }
    (group,) = groups(models(read_runs([tmp_path / "out"])), "success_by_type")
    assert (group.estimates[0].items, group.estimates[0].value) == (2, 1.0)
    with pytest.raises(EnvError, match="bad cannot be loaded"):
        play(engine, Corridor(fails="bad"), "bad")


class Tires(Says):
    """Its engine dies before the answer of this number."""

    def __init__(self, last: int) -> None:
        super().__init__("<action>go</action>")
        self.last = last

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        if len(self.seeds) == self.last:
            raise RuntimeError("the engine is dead")
        return await super().reply(messages, sampling, seed)


def examined(engine: Says, out: Path, key: str = "a") -> list[list[Any]]:
    """All four kinds of questions, with a journal for `out`."""
    asked, tasks = policy(engine), corridors("one", "two")
    steps, pairs = ([make(number) for number in range(3)] for make in (make_step, make_pair))
    questions = [Question(str(number), "math", "?", "1", False) for number in range(3)]

    async def ask(kept: Journal) -> list[list[Any]]:
        return [
            await rollout_tasks(asked, tasks, cast(Any, Corridor(fails="none")), 5, kept),
            await evaluate_next_actions(asked, steps, kept),
            await evaluate_choices(asked, pairs, kept),
            await evaluate_reasoning(asked, questions, kept),
        ]

    with journal(out, key, lambda: len(engine.seeds)) as kept:
        return asyncio.run(ask(kept))


def without_times(answers: list[list[Any]]) -> list[list[Any]]:
    return [[{**record, "env_seconds": 0.0} for record in records] for records in answers]


@pytest.mark.parametrize("killed_after", [0, 3, 7, 13])
def test_a_killed_evaluation_asks_only_for_the_rest(killed_after: int, tmp_path: Path) -> None:
    whole = Says("<action>go</action>")
    expected = examined(whole, tmp_path / "whole")
    killed = Tires(killed_after)
    with pytest.raises(RuntimeError, match="the engine is dead"):
        examined(killed, tmp_path / "out")
    (kept,) = (tmp_path / ".out.journal").iterdir()
    kept.write_bytes(kept.read_bytes() + b'{"what": "choices", "num')  # what a kill leaves of a line
    again = Says("<action>go</action>")
    assert without_times(examined(again, tmp_path / "out")) == without_times(expected)
    # The turns of an episode in progress are asked again.
    assert set(killed.seeds) | set(again.seeds) == set(whole.seeds)
    assert len(set(killed.seeds) & set(again.seeds)) <= min(killed_after, 4)
    assert not (tmp_path / ".out.journal").exists()


def test_answers_by_other_settings_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the engine is dead"):
        examined(Tires(9), tmp_path / "out", key="a")
    other = Says("<action>go</action>")
    examined(other, tmp_path / "out", key="b")
    assert len(other.seeds) == 2 * 3 + 3 * (1 + 2 + 1)


def test_answers_to_the_same_files_in_another_order_are_not_taken(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text(file.name)
    here, there = (make_manifest("evaluate", settings={}, inputs=order) for order in (files, files[::-1]))
    assert here.key() == there.key() and key_of(here) != key_of(there)


def test_an_episode_that_failed_is_played_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out", "a")
    play(Says("<action>go</action>"), Corridor(fails="bad"), "one", "bad", kept=first)
    first.close()
    second = Journal(tmp_path / "out", "a")
    engine = Says("<action>go</action>")
    played = play(engine, Corridor(fails="none"), "one", "bad", kept=second)
    assert [record["end"] for record in played] == ["goal", "goal"] and len(engine.seeds) == 3
    second.close()


def test_what_records_do_not_say_is_counted_over_all_attempts(tmp_path: Path) -> None:
    for attempt in range(3):
        kept = Journal(tmp_path / "out", "a", lambda: 2)
        assert kept.counted == 2 * attempt
        kept.add("choices", attempt, {"right": True})
        kept.close()


def test_choices_of_four_are_counted_by_what_was_chosen(tmp_path: Path) -> None:
    pairs = [make_pair(number, further_alternatives=("look", "inventory", "wait")) for number in range(8)]
    choices = asyncio.run(evaluate_choices(policy(Says("<action>Action 3</action>")), pairs))
    assert [record["chosen"] for record in choices] == [2] * 8 * 5
    metrics = write(tmp_path / "out", answers=Answers([], [], choices))["metrics"]["train"]
    # Each candidate is third once, so the one position is right in a fifth, and never first.
    assert (metrics["choice"]["value"], metrics["choice"]["items"]) == (pytest.approx(0.2), 8)
    assert (metrics["choice_consistent"]["value"], metrics["position_bias"]["value"]) == (0.0, pytest.approx(-0.2))
    items = read_metrics(tmp_path / "out")
    assert {item.amount for item in items["train", "choice", ""].values()} == {0.2}
    assert len(items["train", "position_bias", ""]) == 8
    shown = groups(models(read_runs([tmp_path / "out"])), "choice_by_position")
    assert {group.name: group.estimates[0].value for group in shown} == {
        "expert's action first": 0.0,
        "expert's action second": 0.0,
        "expert's action third": 1.0,
        "expert's action after the third": 0.0,
    }


class Prefers(Says):
    """Names the first candidate of these texts that the prompt proposes."""

    def __init__(self, *texts: str) -> None:
        super().__init__("")
        self.texts = texts

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        self.seeds.append(seed)
        _, proposed = messages[0]["content"].split("proposed for the next step:")
        return [f"<action>{next(text for text in self.texts if text in proposed)}</action>"]


@given(st.integers(0, 3), st.integers(1, 9))
def test_whoever_judges_by_the_text_is_consistent_and_not_biased(further: int, count: int) -> None:
    more = ("look", "inventory", "wait")[:further]
    pairs = [make_pair(number, further_alternatives=more) for number in range(count)]
    records = asyncio.run(evaluate_choices(policy(Prefers("take mug")), pairs))
    assert not any(record["named_a_candidate"] for record in records), "a part of its text does not name a candidate"
    assert not any(record["consistent"] for record in records)
    records = asyncio.run(evaluate_choices(policy(Prefers("go to shelf 1")), pairs))
    (metrics,) = summary({CHOICES: records}).values()
    assert (metrics["choice"]["value"], metrics["choice_consistent"]["value"]) == (0.0, 1.0)
    assert (metrics["position_bias"]["value"], metrics["position_bias"]["items"]) == (pytest.approx(0.0), count)
    for pair in pairs:
        orders = [record["candidates"] for record in records if record["pair_id"] == pair.pair_id]
        assert [record["order"] for record in records if record["pair_id"] == pair.pair_id] == list(range(2 + further))
        for place in zip(*orders, strict=True):
            assert sorted(place) == sorted((pair.expert_action, *pair.alternatives))


def test_a_task_lost_in_one_sampling_is_left_out_of_all() -> None:
    records = [
        episode(task_id=task, sample=sample, success=float(task == "a"), end="error" if lost else "over")
        for task in "ab"
        for sample in range(3)
        for lost in [(task, sample) == ("b", 1)]
    ]
    (metrics,) = summary({EPISODES: records}).values()
    assert (metrics["success"]["value"], metrics["success"]["items"]) == (1.0, 1)
    items = metric_items({EPISODES: records})["valid_seen", "success", ""]
    assert list(items) == ["valid_seen/a"]


def test_an_order_that_comes_twice_is_refused(tmp_path: Path) -> None:
    choices = asyncio.run(evaluate_choices(policy(Says("<action>1</action>")), [make_pair()]))
    with pytest.raises(DataError, match=r"out: .*train/\S+ .*choices\.jsonl"):
        write(tmp_path / "out", answers=Answers([], [], [*choices, choices[0]]))


@pytest.mark.parametrize(("reply", "warnings"), [("no tag", 1), ("<action>A</action>", 0)])
def test_an_evaluation_of_malformed_replies_warns(
    reply: str, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choices = asyncio.run(evaluate_choices(policy(Says(reply)), [make_pair(number) for number in range(4)]))
    write(tmp_path / "out", answers=Answers([], [], choices))
    assert [record.levelname for record in caplog.records if "8 choices" in record.getMessage()] == [
        "WARNING"
    ] * warnings


@pytest.mark.parametrize("flag", [False, True])
def test_an_inadmissible_alternative_that_is_chosen_is_not_admissible(flag: bool) -> None:
    """As in the reward: the pair's flag decides, in whatever words the candidate is named."""
    pairs = [make_pair(number, alternative_admissible=flag) for number in range(8)]
    choices = asyncio.run(
        evaluate_choices(policy(Says("<think>The first one looks good.</think><action>(A)</action>")), pairs)
    )
    assert {record["right"] for record in choices} == {False, True}
    assert all(record["admissible"] == (record["right"] or flag) and record["thought"] for record in choices)
    (metrics,) = summary({CHOICES: choices}).values()
    assert metrics["choice_thought"]["value"] == 1.0


def test_always_the_same_position_is_right_in_half_of_each_pairs_orders() -> None:
    pairs = [make_pair(number, inferable=number % 3 > 0) for number in range(57)]
    engine = policy(Says("<action>Action 2</action>"))
    choices = asyncio.run(evaluate_choices(engine, pairs))
    for inferable in (True, False):
        group = [entry for entry in choices if entry["inferable"] == inferable]
        assert sum(entry["right"] for entry in group) == len(group) / 2
    assert 10 < sum(entry["right"] for entry in choices if entry["order"] == 0) < 47, "no order tells the expert's"
    (metrics,) = summary({CHOICES: choices}).values()
    assert (metrics["choice_consistent"]["value"], metrics["position_bias"]["value"]) == (0.0, -0.5)
    backwards = asyncio.run(evaluate_choices(engine, pairs[::-1]))
    assert {str(record) for record in backwards} == {str(record) for record in choices}


def test_items_of_two_environments_are_refused() -> None:
    items = [make_step(0), make_pair(0)]
    require_one_environment(items)
    require_one_environment([])
    with pytest.raises(DataError, match="alfworld, corridor"):
        require_one_environment([*items, *corridors("one")])


def test_all_that_decides_the_answers_decides_the_key(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")
    settings: dict[str, Any] = {"max_turns": 5, "template_options": {}, "env_settings": {}}
    changes: list[dict[str, Any]] = [
        {},
        {"max_turns": 6},
        {"template_options": {"history_length": 2}},
        {"env_settings": {"data": "/games"}},
    ]
    keys = []
    for change in changes:
        write(tmp_path / "out", str(model), **{**settings, **change})
        keys.append(digest(tmp_path / "out"))
    (model / "weights").write_text("2")
    write(tmp_path / "out", str(model), **settings)
    keys.append(digest(tmp_path / "out"))
    assert len(set(keys)) == len(keys)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "manifest.json"}


class Requests:
    """Stands where vLLM would: remembers the bounds of the requests."""

    def __init__(self) -> None:
        self.max_tokens: list[int] = []

    async def generate(self, prompt: dict[str, Any], parameters: Any, request: str) -> AsyncIterator[Any]:
        self.max_tokens.append(parameters.max_tokens)
        sums = {"cumulative_logprob": -0.25 if parameters.logprobs == 0 else None}
        yield SimpleNamespace(outputs=[SimpleNamespace(text="yes", finish_reason="stop", **sums)] * parameters.n)


def test_a_prompt_is_refused_only_where_no_reply_fits() -> None:
    engine, vllm = Engine.__new__(Engine), Requests()
    engine.tokenizer, engine.llm = make_tokenizer(["go"]), cast(Any, vllm)
    engine.chat_template_kwargs, engine.without_room, engine.reply_prefix = {}, 0, ""
    messages = get_template("plain").action_messages(make_context())
    length = len(engine.encode(messages))
    replies = []
    for room in (100, 20, 1, 0, -5):
        engine.max_model_len = length + room
        replies.append(asyncio.run(engine.reply(messages, Sampling(n=2, max_tokens=50))))
    assert replies == [["yes", "yes"]] * 3 + [["", ""]] * 2
    assert vllm.max_tokens == [50, 20, 1]
    assert engine.without_room == 2
    assert asyncio.run(engine.scored_reply(messages, Sampling())) == [Reply("", None, cut=True)]
    engine.max_model_len = length + 1
    assert asyncio.run(engine.scored_reply(messages, Sampling(n=2))) == [Reply("yes", -0.25)] * 2
    engine.reply_prefix = "<think>"  # as templates do that open the thought
    assert asyncio.run(engine.reply(messages, Sampling())) == ["<think>yes"]
    assert asyncio.run(engine.scored_reply(messages, Sampling())) == [Reply("<think>yes", -0.25)]


class FourAtOnce(Says):
    """An engine that runs four requests at once, and takes long for those of episodes."""

    max_num_seqs, without_room, tokenizer = 4, 0, None

    def __init__(self) -> None:
        super().__init__("<action>go</action>")
        self.running = self.most = 0
        self.kinds: set[str] = set()

    def __enter__(self) -> FourAtOnce:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, coroutine: Any) -> Any:
        return asyncio.run(coroutine)

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        text = " ".join(message["content"] for message in messages)
        kinds = {"walk on": "episode", "proposed for the next step": "choice", "one and one": "question"}
        kind = next((kind for words, kind in kinds.items() if words in text), "next action")
        self.kinds.add(kind)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(200 if kind == "episode" else 1):
            await asyncio.sleep(0)
        self.running -= 1
        return await super().reply(messages, sampling, seed)


class Watched(Corridor):
    """A pool that notes at the end of each episode which kinds of questions have begun."""

    memory_mb = 0.0

    def __init__(self, engine: FourAtOnce) -> None:
        super().__init__(fails="none")
        self.engine, self.begun = engine, list[set[str]]()

    async def open(self, task: Task) -> Corridor:
        session = await super().open(task)
        session.close = self.close  # type: ignore[method-assign]
        return session

    async def close(self) -> None:
        self.begun.append(set(self.engine.kinds))


def test_all_kinds_are_asked_at_once_and_keep_the_engine_full(
    games: Path, trajectories: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, Any] = {"env": "alfworld", "env_settings": {"data": str(games)}}
    make_tasks(TasksSettings(**where, splits=["valid_seen"]), tmp_path / "tasks")
    (tmp_path / "math.jsonl").write_text(json.dumps({"problem": "How much is one and one?", "answer": "2"}) + "\n")
    engine = FourAtOnce()
    pool = Watched(engine)
    monkeypatch.setattr("verl_act.evaluate.evaluation.Engine", lambda *_, **__: engine)
    monkeypatch.setattr("verl_act.evaluate.evaluation.EnvPool", lambda *_, **__: pool)
    monkeypatch.setattr("verl_act.evaluate.evaluation.ray_session", nullcontext)
    settings = EvaluationSettings(
        model=str(embedded_models()["alfworld"]),
        template="plain",
        tasks=[tmp_path / "tasks" / "tasks.parquet"],
        trajectories=[trajectories],
        pairs=[pairs],
        reasoning=[tmp_path / "math.jsonl"],
        env_settings=where["env_settings"],
        max_turns=5,
        limit=20,
    )
    counts = evaluate_model(settings, tmp_path / "out").counts
    assert (counts["episodes"], counts["next_actions"], counts["choices"], counts["reasoning"]) == (6, 20, 40, 1)
    assert engine.most == engine.max_num_seqs
    assert pool.begun[-1] == {"episode", "next action", "choice", "question"}, "before the last episode ended"
