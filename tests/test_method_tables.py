"""Cross-cutting: the method table on the report page: as Markdown, as JSON, and in a real browser on a narrow and on a
wide screen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from report_run import COMPARED, OF_SEED, Visit, copied, mark, training_metrics

from verl_act.errors import DataError
from verl_act.evaluate.method_comparison import compare_methods
from verl_act.manifest import read_manifest
from verl_act.report import write_report
from verl_act.report.content import content
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs
from verl_act.settings.evaluation import MethodsTableSettings, ReportSettings

pytest_plugins = "report_run"


@pytest.fixture(scope="module")
def page(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `visit` opens."""
    return write_report(ReportSettings(runs=[compared], examples=4), tmp_path_factory.mktemp("page") / "report.html")[0]


def test_the_numbers_are_those_of_the_comparison(compared: Path, page: Path) -> None:
    whole = json.loads((compared / "methods" / "methods.json").read_text())
    shown = content(read_runs([compared]), 0)
    (table,) = (table for table in shown.method_tables if not table.detail and table.split == "valid_seen")
    cells = dict(zip(table.columns, dict(table.rows)["Tasks solved"], strict=True))
    for name, cell in cells.items():
        (entry,) = (
            entry
            for entry in whole["entries"]
            if (entry["method"], entry["split"], entry["metric"]) == (name, "valid_seen", "success")
        )
        assert cell.value == f"{100 * entry['estimate']['value']:.1f}%"
        assert cell.deviation == "± 0.0% over seeds"
        assert bool(cell.changes) == (name != "Prompting")
    assert [budget.steps for budget in shown.method_budgets] == ["none", *["critic 40, action 40"] * 2]
    assert any("first seed" in note for note in shown.notes)
    assert {curve.stage for curve in shown.curves} == {"il+critic"}
    assert "| RL + ACT | critic 40, action 40 | Prompting | 0, 1 |" in page.with_suffix(".md").read_text()
    assert json.loads(page.with_suffix(".json").read_text())["comparisons"] == {"comparison": whole}


@pytest.fixture
def whole_comparison(compared: Path, run: Path, tmp_path: Path) -> Path:
    """With the shared data, and marks of all that the command did."""
    folder = Path(shutil.copytree(compared, tmp_path / "whole", symlinks=True))
    for data in ("expert", "pairs", "tasks", "alternatives"):
        (folder / data).symlink_to(run / data)
    for name in ("expert train", "expert valid_seen", "pairs train", "alternatives", "audit", "tasks eval"):
        mark(folder, name, 2.0)
    (folder / "seed-0" / "rows-il").mkdir()
    for name in ("rows il", "il+critic", "evaluate initial"):
        mark(folder, f"seed 0 {name}", 60.0)
    return folder


def test_a_comparison_tells_what_its_manifests_say(whole_comparison: Path) -> None:
    (found,) = content(read_runs([whole_comparison]), 0).runs
    assert (found.env, found.seeds) == ("alfworld", [0, 1])
    assert found.missing == ["seed 1 rows il", "seed 1 il+critic"]
    stages = {stage.name: stage for stage in found.stages}
    assert stages["pairs train"].counts["pairs"] > 0 and stages["pairs train"].inputs
    assert stages["seed 1 evaluate initial"].counts["choices"] > 0
    assert (stages["seed 0 il+critic"].state, stages["seed 0 il+critic"].seconds) == ("done", 60.0)
    *data, last, _ = COMPARED
    assert list(stages) == [*data, *(f"seed {seed} {title}" for seed in (0, 1) for title in OF_SEED), last]


def test_curves_are_of_all_seeds(whole_comparison: Path) -> None:
    """Seed 1 has come to step 10 of 20, with rewards half as high."""
    lines = [json.loads(line) for line in training_metrics("choice", steps=10).splitlines()]
    for line in lines[1:]:
        line["data"]["critic/score/mean"] /= 2
    work = whole_comparison / "seed-1" / "il+critic.work"
    work.mkdir()
    (work / "metrics-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = content(read_runs([whole_comparison]), 0)
    (score,) = (curve.series[0] for curve in whole.curves if curve.key == "score")
    alone = [(step, 0.43 + 0.02 * step) for step in range(1, 21)]
    both = [(step, value * 0.75 if step <= 10 else value) for step, value in alone]
    assert score.points == [(step, pytest.approx(value)) for step, value in both]
    lowest = [value / 2 if step <= 10 else value for step, value in alone]
    assert score.ranges == [
        (step, pytest.approx(low), pytest.approx(value)) for (step, value), low in zip(alone, lowest, strict=True)
    ]
    assert score.span == "steps 1 to 20, mean of 2 seeds, lowest to highest shaded"
    assert "means of 2 seeds" in markdown(whole) and 'opacity="0.2"' in html(whole)


def test_an_unfinished_comparison_knows_what_it_has(whole_comparison: Path) -> None:
    shutil.rmtree(whole_comparison / "methods")
    for name in ("critic", "action"):
        (whole_comparison / "seed-1" / "evaluation" / name).unlink()
    work = whole_comparison / "seed-1" / "il+critic.work"
    work.mkdir()
    (work / "metrics-0.jsonl").write_text(training_metrics("choice", steps=3))
    whole = content(read_runs([whole_comparison]), 0)
    (found,) = whole.runs
    assert found.missing == [f"seed 1 {name}" for name in list(OF_SEED)[1:]] + ["methods"]
    states = {stage.name: stage.state for stage in found.stages}
    assert (states["seed 1 rows il"], states["seed 1 il+critic"]) == ("missing", "unfinished")
    assert (found.seeds, [model.label for model in whole.models]) == ([0, 1], ["initial", "critic", "action"])
    assert whole.method_tables == [] and {curve.stage for curve in whole.curves} == {"il+critic"}
    assert any("first seed" in note for note in whole.notes)


def test_a_method_without_the_first_seed_is_shown_too(compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "comparison", symlinks=True))
    methods = json.loads((folder / "methods" / "methods.json").read_text())
    del methods["methods"]["RL + ACT"]["evaluations"]["0"]
    (folder / "methods" / "methods.json").write_text(json.dumps(methods))
    (folder / "seed-0" / "evaluation" / "action").unlink()
    for finished in (True, False):
        models = {model.label: model.evaluation.folder for model in content(read_runs([folder]), 0).models}
        assert list(models) == ["initial", "critic", "action"]
        assert models["action"] == folder / "seed-1" / "evaluation" / "action"
        if finished:
            shutil.rmtree(folder / "methods")


def test_a_lost_evaluation_is_named(whole_comparison: Path) -> None:
    (whole_comparison / "seed-0" / "evaluation" / "critic").unlink()
    with pytest.raises(DataError, match="seed-0/evaluation/critic"):
        read_runs([whole_comparison])


def test_two_comparisons_are_told_apart(compared: Path, whole_comparison: Path) -> None:
    whole = content(read_runs([compared, whole_comparison]), 0)
    assert {table.run for table in whole.method_tables} == {row.run for row in whole.method_budgets}
    assert {row.run for row in whole.method_budgets} == {"comparison", "whole"}
    assert "### All metrics, valid_seen, whole\n" in markdown(whole)
    assert {table.run for table in content(read_runs([compared]), 0).method_tables} == {""}


def with_models(folder: Path, name: str, digest: str | None) -> None:
    """Names the initial model in the comparison and in its first seed's evaluation, whose folder may be a link."""
    path = folder / "methods" / "methods.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "initial_model": name}))
    initial = folder / "seed-0" / "evaluation" / "initial"
    files = {file.name: file.read_bytes() for file in initial.iterdir()}
    initial.unlink()
    initial.mkdir()
    for file, data in files.items():
        (initial / file).write_bytes(data)
    figures = json.loads(files["metrics.json"])
    (initial / "metrics.json").write_text(json.dumps({**figures, "model": name}))
    manifest = json.loads(files["manifest.json"])
    manifest["settings"]["model_digest"] = digest
    (initial / "manifest.json").write_text(json.dumps(manifest))


def started(folders: list[Path]) -> str:
    """What the page, the Markdown and the JSON say of the models that the methods start from."""
    whole = content(read_runs(folders), 0)
    assert whole.methods_start in html(whole) and whole.methods_start in whole.as_json()["methods_start"]
    assert whole.methods_start in markdown(whole)
    return whole.methods_start


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([("m", None)], "All methods start from the same model (m) and share the data."),
        ([("", None)], "All methods share the data; the model that they start from is not recorded."),
        ([("m", None), ("m", None)], "All methods start from the same model (m). Those of"),
        ([("m", "1" * 64), ("moved", "1" * 64)], "All methods start from the same model (m). Those of"),
        (
            [("m", "1" * 64), ("m", "2" * 64)],
            "those of one from m (SHA-256 111111111111), those of two from m (SHA-256 222222222222).",
        ),
        ([("m", None), ("other", None)], "those of one from m, those of two from other."),
        ([("m", None), ("", None)], "those of one from m, those of two from one not recorded."),
        ([("", None), ("", None)], "those of one from one not recorded, those of two from one not recorded."),
    ],
)
def test_the_same_model_is_said_only_where_it_is_known(
    models: list[tuple[str, str | None]], said: str, compared: Path, tmp_path: Path
) -> None:
    folders = []
    for place, (name, digest) in zip(("one", "two"), models, strict=False):
        folders.append(Path(shutil.copytree(compared, tmp_path / place, symlinks=True)))
        with_models(folders[-1], name, digest)
    found = started(folders)
    assert said in found
    assert ("same model (" in found) == ("same model (" in said)


def test_episodes_that_the_environment_ended_are_told_of_every_seed(compared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    shutil.copytree(compared, folder)
    path = folder / "seed-1" / "evaluation" / "critic" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["episode_errors"] = 2
    path.write_text(json.dumps(manifest))
    written = read_manifest(folder / "methods")
    assert written is not None
    shutil.rmtree(folder / "methods")
    compare_methods(MethodsTableSettings(run=folder, methods=written.settings["methods"]), folder / "methods")
    (note,) = (note for note in content(read_runs([folder]), 0).notes if "error of the environment" in note)
    assert "IL <b>bold</b>, seed 1: 2 of 12 episodes" in note


def test_a_run_without_a_comparison_has_no_method_table(run: Path, tmp_path: Path) -> None:
    shown = content(read_runs([copied(run, tmp_path)]), 0)
    assert shown.method_tables == shown.method_budgets == [] and shown.methods_start == ""


def test_the_page_shows_the_methods(visit: Callable[..., Visit]) -> None:
    opened = visit()
    section = opened.tab.locator("#methods")
    assert section.locator("> .blocks > table").count() == 3, "budget, and a table a split"
    assert section.locator("b b").count() == 0 and "IL <b>bold</b>" in section.inner_text()
    section.locator("summary").click()
    assert section.locator("details table").count() == 6


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_no_screen_needs_sideways_scrolling(width: int, visit: Callable[..., Visit]) -> None:
    opened = visit(viewport={"width": width, "height": 740})
    opened.tab.locator("#methods summary").click()
    assert opened.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = """(cells) => [...document.querySelectorAll(cells)].filter(
        (element) => element.scrollWidth > element.clientWidth + 1).map((element) => element.innerText)"""
    assert opened.tab.evaluate(cut, ".many td") == [], "a cell's text fits its cell"
    if width < 760:
        assert opened.tab.evaluate(cut, ".many") == [], "on a narrow screen no table scrolls either"
