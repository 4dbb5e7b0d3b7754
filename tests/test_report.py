"""The report of a run: its numbers against values worked out by hand, its examples, its curves, damaged files."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from report_run import HOSTILE, MODELS, SPLITS, copied, training_metrics, with_reasoning
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.errors import ConfigError, DataError, OptionError
from verl_act.evaluate.metric_registry import format_value
from verl_act.evaluate.records import EPISODES, read_records
from verl_act.evaluate.statistics import ItemOutcome, against
from verl_act.evaluate.table import compare
from verl_act.manifest import digest, read_manifest
from verl_act.report import write_report
from verl_act.report.content import Content, content
from verl_act.report.curves import Curve, Series, curve_table
from verl_act.report.examples import turns_in_loops
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs
from verl_act.run_folder import RunFolder
from verl_act.schema import TRAJECTORY, read_pairs, read_steps, read_table, write_rows
from verl_act.settings.evaluation import CompareSettings, ReportSettings

pytest_plugins = "report_run"


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
    with pytest.raises(DataError, match=f"{tmp_path}.*`run`.*`eval run`"):
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
    with pytest.raises(DataError, match=str(run)):
        read_runs([run, run])


@pytest.mark.parametrize("file", ["episodes.jsonl", "next_actions.jsonl", "choices.jsonl"])
def test_a_damaged_line_is_named(file: str, run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    path = copy / "evaluation" / "critic" / file
    lines = path.read_text().splitlines()
    for text, message in (
        (lines[2][:-5], rf"{file}, line 3\b"),
        ("[1]", rf"{file}, line 3: .*list"),
        (json.dumps({"split": "valid_seen"}), rf"{file}, line 3: '\w+'"),
    ):
        path.write_text("\n".join([*lines[:2], text, *lines[3:]]) + "\n")
        with pytest.raises(DataError, match=message):
            read_runs([copy])
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=rf"{file}: .*\b{len(lines) - 1}\b.*manifest.json.*\b{len(lines)}\b"):
        read_runs([copy])


def test_damaged_metrics_and_figures_are_named(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    metrics = copy / "action" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 21, "da')
    with pytest.raises(DataError, match=r"action/metrics.jsonl, line 22"):
        read_runs([copy])
    metrics.write_text('{"step": "one"}\n')
    with pytest.raises(DataError, match=r"action/metrics.jsonl, line 1"):
        read_runs([copy])
    metrics.write_text(whole)
    (copy / "evaluation" / "action" / "metrics.json").write_text('{"name": "action"}')
    with pytest.raises(DataError, match=r"metrics.json"):
        read_runs([copy])


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
                == (pair.expert_action if answer["right"] else pair.alternative_action)
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
    with pytest.raises(ConfigError, match=r"\.html"):
        write_report(ReportSettings(runs=[run]), tmp_path / "report.pdf")
    with pytest.raises(OptionError) as refused:
        ReportSettings(runs=[run], examples=-1)
    assert refused.value.option == "examples"
    with pytest.raises(ConfigError, match=str(tmp_path / "file")):
        write_report(ReportSettings(runs=[run]), tmp_path / "file" / "report.html")


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["eval", "report", "--out", str(out), "--examples", "1", str(run)])
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(out.with_suffix(suffix)) for suffix in (".html", ".md", ".json")]


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
