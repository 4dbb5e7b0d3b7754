"""Evaluations side by side: a table in the terminal, in Markdown and in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_act.errors import DataError
from verl_act.evaluate.files import METRICS_FILE
from verl_act.evaluate.records import read_metrics_file
from verl_act.names import markdown_text, one_line
from verl_act.output_folder import replace_file, reserved_file


def compare(evaluations: Sequence[str | PathLike[str]], out: str | PathLike[str] | None = None) -> None:
    """Print one row per evaluation; with `out`, also write comparison.md and comparison.json there."""
    all_metrics = [_read(Path(folder) / METRICS_FILE) for folder in evaluations]
    header, rows = comparison(all_metrics)
    table = Table()
    for title in _as_text(header):
        table.add_column(title)
    for row in rows:
        table.add_row(*_as_text(row))
    Console(width=max(100, 14 * len(header))).print(table)
    if out is not None:
        file = Path(out) / "comparison.json"
        with reserved_file(file):
            replace_file(file.with_suffix(".md"), markdown(header, rows))
            replace_file(file, json.dumps(all_metrics, indent=2) + "\n")


def comparison(evaluations: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, with every column that any of the evaluations has."""
    columns = []
    for section, metrics in (
        ("episodes", ("success", "score", "steps", "inadmissible_share", "malformed_share", "loop_share")),
        ("next_action", ("right", "right_inferable")),
        ("choice", ("right", "right_inferable", "named_a_candidate", "consistent", "position_bias")),
        ("reasoning", ("right",)),
    ):
        splits = sorted({split for entry in evaluations for split in entry.get(section, {})})
        columns += [(section, split, metric) for split in splits for metric in metrics]
    # Not every evaluation has a score.
    columns = [column for column in columns if any(_metric(entry, *column) is not None for entry in evaluations)]
    header = ["model", *(f"{section} {split} {metric}".replace("_", " ") for section, split, metric in columns)]
    rows = [[entry["name"], *(_cell(_metric(entry, *column)) for column in columns)] for entry in evaluations]
    return header, rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with one line per metric: there are more metrics than models."""
    names = [markdown_text(row[0]) for row in rows]
    lines = [["metric", *names], ["---", *("---:" for _ in names)]]
    lines += [[markdown_text(title), *(row[index] for row in rows)] for index, title in enumerate(header) if index]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _as_text(cells: Sequence[str]) -> list[Text]:
    return [Text(one_line(cell)) for cell in cells]


def _metric(entry: Mapping[str, Any], section: str, split: str, metric: str) -> Any:
    return entry.get(section, {}).get(split, {}).get(metric)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if "mean" in value:
            if value["mean"] is None:
                return ""
            interval = "" if value["low"] is None else f" [{value['low']:.3g}, {value['high']:.3g}]"
            return f"{value['mean']:.3g}{interval} n={value['count']}"
        if value["share"] is None:
            return ""
        return f"{value['share']:.1%} [{value['low']:.1%}, {value['high']:.1%}] n={value['count']}"
    return f"{value:.3g}"


def _read(path: Path) -> dict[str, Any]:
    metrics = read_metrics_file(path)
    try:
        comparison([metrics])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: is damaged: a metric is not as `evaluate` writes it ({error!r}). Run the evaluation again."
        ) from error
    return metrics
