"""The verdict and the last words of a terminal: what they claim, on what evidence, and that they fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_run import plan

from verl_act.chain import run_recipe
from verl_act.chain.stages import CommandStage, TrainingStage
from verl_act.evaluate.method_comparison import compare_methods
from verl_act.evaluate.records import FILES
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.report import summary_text
from verl_act.report.content import content
from verl_act.report.read import read_runs
from verl_act.run_folder import ALTERNATIVES, PAIRS, REFLECTIONS, SFT_ROWS, TASKS, TRAJECTORIES
from verl_act.settings.evaluation import EvaluationSettings, MethodsTableSettings

pytest_plugins = "report_run"

SHARES = {"inadmissible_share": 0.0, "malformed_share": 0.0, "longest_failed_repeat": 0}


def evaluation(folder: Path, name: str, won: list[bool]) -> Path:
    """An evaluation of one episode per outcome."""
    folder.mkdir(parents=True)
    metrics = {"name": name, "model": name, "template": "cot", "sampling": {}, "metrics": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    episodes = [
        {"task_id": str(index), "task_type": "t", "split": "seen", "end": "over", "success": success, "steps": 4}
        | SHARES
        for index, success in enumerate(won)
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(episode) + "\n" for episode in episodes))
    return folder


def chain(folder: Path, before: list[bool], after: list[bool]) -> Path:
    for name, won in (("initial", before), ("action", after)):
        evaluation(folder / "evaluation" / name, name, won)
    plan(folder, {f"evaluate {name}": f"evaluation/{name}" for name in ("initial", "action")})
    return folder


def test_a_large_change_is_told_with_its_size_and_its_limit(tmp_path: Path) -> None:
    result = content(
        read_runs([chain(tmp_path / "run", [False] * 20 + [True] * 10, [True] * 25 + [False] * 5)]), 0
    ).verdict
    assert "improved: Tasks solved, seen" in result.sentence and "worse" not in result.sentence
    change = next(detail for detail in result.details if "Tasks solved, seen" in detail)
    assert "rose from 33.3% to 83.3%: +50.0 points [" in change
    assert "seed" in result.details[-1]


def test_a_fall_is_told_as_one(tmp_path: Path) -> None:
    result = content(read_runs([chain(tmp_path / "run", [True] * 30, [True] * 10 + [False] * 20)]), 0).verdict
    assert "got worse: Tasks solved, seen" in result.sentence and "improved" not in result.sentence
    assert any("fell from 100.0% to 33.3%" in detail for detail in result.details)


def test_two_tasks_are_too_few_to_be_sure(tmp_path: Path) -> None:
    result = content(read_runs([chain(tmp_path / "run", [False, False], [True, True])]), 0).verdict
    assert "nothing is sure" in result.sentence


@pytest.mark.parametrize("after", [[True] * 11 + [False] * 9, [True] * 10 + [False] * 10])
def test_nothing_is_sure_where_the_interval_holds_zero(after: list[bool], tmp_path: Path) -> None:
    result = content(read_runs([chain(tmp_path / "run", [False] * 10 + [True] * 10, after)]), 0).verdict
    assert "nothing is sure" in result.sentence
    assert not any("rose" in detail or "fell" in detail for detail in result.details)


def methods(folder: Path, seeds: int, won: dict[str, list[int]]) -> Path:
    """A comparison; `won` has how many of 40 tasks each seed of a method solves."""
    listed: dict[str, Any] = {}
    plan(folder, {"methods": "methods"})
    for name, counts in won.items():
        paths = {}
        for seed in range(seeds):
            paths[str(seed)] = f"seed-{seed}/evaluation/{name}"
            evaluation(folder / paths[str(seed)], name, [index < counts[seed] for index in range(40)])
        against = [] if name == "IL" else ["IL"]
        listed[name] = {"steps": {"action": 5}, "against": against, "evaluations": paths, "stages": []}
    compare_methods(MethodsTableSettings(run=folder, methods=listed), folder / "methods")
    return folder


@pytest.mark.parametrize(
    ("seeds", "il", "claimed"),
    [
        (3, [10, 11, 12], True),  # clear over tasks and over seeds
        (3, [2, 12, 34], False),  # clear over tasks, but trainings differ as much
        (1, [10], False),  # one training
    ],
)
def test_a_claim_about_methods_needs_tasks_and_seeds(seeds: int, il: list[int], claimed: bool, tmp_path: Path) -> None:
    folder = methods(tmp_path / "run", seeds, {"IL": il, "ACT": [36, 37, 36][:seeds]})
    result = content(read_runs([folder]), 0).verdict
    assert ("Nothing is sure" in result.sentence) == (not claimed)
    assert any("ACT is better than IL: Tasks solved, seen, +" in detail for detail in result.details) == claimed
    assert result.sentence in summary_text(folder).replace("\n", " ")


def test_the_last_words_of_a_chain_fit_a_terminal(run: Path) -> None:
    text = summary_text(run)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["initial", "critic", "action"]
    titles = ["Tasks solved, valid_seen", "Tasks solved, valid_unseen", "Better action chosen", "Expert's next action"]
    rows = [line.strip().startswith(title) for title in [*titles, "Malformed replies"] for line in lines[2:7]]
    assert sum(rows) == 5 and "From initial to action" in text
    assert "Report:" not in text


def test_the_last_words_name_the_report(compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "run", symlinks=True))
    (folder / "report.html").write_text("")
    text = summary_text(folder)
    assert text.splitlines()[-1].endswith("report.html")
    assert all(name in text for name in ("Prompting", "IL <b>bold</b>", "RL + ACT"))


def make(stage: CommandStage, log: Path) -> None:
    """What a command leaves: evaluations and the table of methods as they are, all other files without content."""
    if isinstance(stage.settings, MethodsTableSettings):
        compare_methods(stage.settings, stage.output)
        return
    if stage.output.suffix:
        stage.output.touch()
        return
    if isinstance(stage.settings, EvaluationSettings):
        evaluation(stage.output, stage.settings.name, [index % 3 > 0 for index in range(30)])
    stage.output.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, TRAJECTORIES, ALTERNATIVES, PAIRS, TASKS, REFLECTIONS, SFT_ROWS):
        (stage.output / name).touch()
    write_manifest(stage.output, make_manifest(stage.name, settings={}))


def train(stage: TrainingStage, manifest: Manifest) -> float:
    stage.folder.model.mkdir(parents=True, exist_ok=True)
    return 1.0


@pytest.mark.parametrize(
    ("recipe", "only", "models"),
    [("alfworld/quickstart", [], ["initial", "critic", "action"]), ("alfworld/methods", ["IL", "RL"], ["IL", "RL"])],
)
def test_a_run_ends_with_them(
    recipe: str,
    only: list[str],
    models: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("verl_act.chain.run_stages.run_command", make)
    monkeypatch.setattr("verl_act.chain.run_stages.train", train)
    for times in (1, 2):
        run_recipe(recipe, tmp_path, only=only)
        shown = capsys.readouterr().out
        assert shown.endswith(summary_text(tmp_path)) and "report.html" in shown.splitlines()[-1]
        assert all(model in summary_text(tmp_path).splitlines()[0] for model in models)
        assert (": done in" in shown) == (times == 1), "the second time, all stages are up to date"


def test_without_the_reports_packages_no_stage_is_run(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['altair'] = None\n"
        "from verl_act.__main__ import main\n"
        f"sys.argv = ['verl-act', 'run', 'alfworld/quickstart', '--out', {str(tmp_path / 'run')!r}]; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2 and "verl-act[report]" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_many_methods_fit_a_terminal(tmp_path: Path) -> None:
    names = ["IL", *(f"A method with quite a long name {index}" for index in range(11))]
    folder = methods(tmp_path / "run", 1, {name: [20] for name in names})
    lines = summary_text(folder).splitlines()
    assert max(map(len, lines)) <= 100 and sum("long name" in line for line in lines) == 11


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    plan(tmp_path, {"critic": "critic"}, ["critic"])
    (tmp_path / "critic.work").mkdir()
    (tmp_path / "critic.work" / "metrics-0.jsonl").write_text('{"step": 1, "data": {}}\n')
    assert "No model has been evaluated yet" in summary_text(tmp_path)
