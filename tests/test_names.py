"""Names that others have chosen, wherever they are shown: markup and control characters are text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_stages import script

from verl_act.chain.run_stages import run_stages
from verl_act.errors import DataError
from verl_act.evaluate.method_comparison import compare_methods
from verl_act.evaluate.table import compare
from verl_act.names import markdown_text, one_line
from verl_act.report import write_report
from verl_act.run_folder import RunFolder
from verl_act.settings.evaluation import CompareSettings, MethodsTableSettings, ReportSettings

ODD = "a [red]b[/x] | `c`\n| <b>d</b> *e* \x1b[2J\x07 \u202e :smile: \\|"


def cells(line: str) -> int:
    """The cells of a line of a Markdown table."""
    return line.replace("\\\\", "").replace("\\|", "").count("|") - 1


@given(text=st.text())
def test_any_text_is_one_printable_line(text: str) -> None:
    assert one_line(text).isprintable() and markdown_text(text).isprintable()
    assert cells(f"| {markdown_text(text)} |") == 1


@pytest.mark.parametrize("text", ["SmolLM2-135M", "RL + ACT", "valid_seen", "größer 2", "模型", "[/x]", ""])
def test_usual_names_stay_as_they_are(text: str) -> None:
    assert one_line(text) == text


def evaluation(folder: Path, name: str, value: str = "0.5") -> Path:
    folder.mkdir(parents=True)
    score = f'{{"value": {value}, "low": null, "high": null, "items": 1}}'
    metrics = {"name": name, "model": name, "template": name, "sampling": {}, "metrics": {name: {"score": "score"}}}
    text = json.dumps(metrics).replace(': "score"', f": {score}")
    (folder / "metrics.json").write_text(text)
    return folder


EPISODE = {
    **{"task_id": "t", "task_type": ODD, "split": ODD, "end": "turns", "success": True, "steps": 3.0},
    **{"inadmissible_share": 0.0, "malformed_share": 0.0, "longest_failed_repeat": 1},
}


def test_evaluations_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "one", ODD)
    (folder / "episodes.jsonl").write_text(json.dumps(EPISODE) + "\n")
    compare(CompareSettings(evaluations=[folder]), tmp_path / "out")
    shown = capsys.readouterr().out
    assert "[red]b[/x]" in shown and ":smile:" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)
    table = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert len(table) > 5 and {cells(line) for line in table} == {3}
    assert "<b>" not in table[0].replace("\\<", "") and "\x1b" not in table[0]


def test_methods(tmp_path: Path) -> None:
    methods = {}
    for number, name in enumerate((ODD, f"{ODD} again", "plain")):
        folder = evaluation(tmp_path / str(number), name)
        (folder / "episodes.jsonl").write_text(json.dumps(EPISODE) + "\n")
        against = [ODD, "plain"] if number == 1 else []
        methods[name] = {"steps": {}, "against": against, "evaluations": {"0": str(number)}, "stages": []}
    compare_methods(
        MethodsTableSettings(run=tmp_path, methods=methods, initial_model=f"models/{ODD.replace('/', '')}"),
        tmp_path / "out",
    )
    lines = (tmp_path / "out" / "methods.md").read_text(encoding="utf-8").splitlines()
    assert all(line.isprintable() for line in lines)
    budgets, tables = ([line for line in lines if line.startswith("|") and cells(line) == count] for count in (6, 4))
    assert len(budgets) == 5 and len(budgets) + len(tables) == sum(line.startswith("|") for line in lines)


def test_what_a_chain_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[" / "x]"
    for _ in range(2):
        run_stages([script("[red] \x1b[2J", f"open({str(out / 'y')!r}, 'w')", out / "y")], RunFolder(out))
    shown = capsys.readouterr().out
    assert "[red] \\x1b[2J: done" in shown and "[red] \\x1b[2J: up to date" in shown


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_metrics_that_are_not_numbers_are_refused(value: str, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "one", "one", value)
    with pytest.raises(DataError, match=rf"metrics\.json.*{value}"):
        compare(CompareSettings(evaluations=[folder]))
    with pytest.raises(DataError, match=rf"metrics\.json.*{value}"):
        write_report(ReportSettings(runs=[folder]), tmp_path / "page.html")


def test_records_that_hold_no_numbers_are_named(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "one", "one")
    (folder / "episodes.jsonl").write_text('{"score": NaN}\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl, line 1.*NaN"):
        write_report(ReportSettings(runs=[folder]), tmp_path / "page.html")
