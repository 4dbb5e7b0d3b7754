"""Tables of metrics. Evaluations side by side: a short table for the terminal, all metrics in Markdown and JSON."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_act.evaluate.metric_registry import METRICS, Metric, MetricItems, read_metrics, table_order
from verl_act.evaluate.records import METRICS_FILE, read_metrics_file
from verl_act.evaluate.statistics import Against, Estimate, ItemOutcome, against
from verl_act.evaluate.suites import incomparable
from verl_act.names import markdown_text, one_line
from verl_act.output_folder import replace_file, reserved_file
from verl_act.run_folder import COMPARISON
from verl_act.settings.evaluation import CompareSettings

WIDTH = 100
"""Columns of a terminal that a table fits in."""
_BY_SPLIT = ("success",)
_OF_ALL = ("choice", "next_action", "malformed_share")
_MOST_COLUMNS = 3
"""More models than this become rows."""
_MARKUP = re.compile(r"([\\`*|&]|<(?=\S)|\[(?![-+−\d]))")
"""What could be markup in a name; the brackets of an interval and `p < 0.001` are none."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one model or method as text; all empty if it does not have the metric."""

    value: str = ""
    details: tuple[str, ...] = ()
    """The interval and the number of items."""
    deviation: str = ""
    changes: tuple[tuple[str, bool], ...] = ()
    """The change against each other model, with whether it is clear."""

    @property
    def markdown(self) -> str:
        parts = (self.value or "–", ", ".join(self.details), self.deviation, *(text for text, _ in self.changes))
        return _MARKUP.sub(r"\\\1", one_line("; ".join(filter(None, parts))))


def estimate_cell(metric: Metric, result: Estimate, *details: str, changes: Iterable[tuple[str, bool]] = ()) -> Cell:
    """An estimate as text; `details` stand between its interval and its number of items."""
    if result.value is None:
        return Cell()
    return Cell(
        value=metric.format(result.value),
        details=(*filter(None, (metric.format_interval(result.low, result.high), *details)), f"n = {result.items}"),
        deviation="" if result.deviation is None else f"± {metric.format(result.deviation)} over seeds",
        changes=tuple(changes),
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str | Cell]], rule: str) -> str:
    """A table in Markdown without its last line end; `rule` has `l` or `r` for each column's alignment, and its last
    one is that of all further columns."""
    sides = {"l": "---", "r": "---:"}
    alignment = [sides[side] for side in rule.ljust(len(header), rule[-1])]
    lines = [
        [cell.markdown if isinstance(cell, Cell) else markdown_text(cell) for cell in row] for row in (header, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], alignment, *lines[1:]))


@dataclass(frozen=True, eq=False)
class Headline:
    """One of the rows that matter: a metric of all models, on one split or, if `split` is empty, on all of them."""

    metric: str
    split: str
    outcomes: list[list[dict[str, ItemOutcome]]]
    """Of each seed of each model."""

    @cached_property
    def estimates(self) -> list[Estimate]:
        return [METRICS[self.metric].estimate(seeds) for seeds in self.outcomes]

    @cached_property
    def change(self) -> Against | None:
        """The last model against the first."""
        return against(self.outcomes[-1], self.outcomes[0])

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (METRICS[self.metric].title, self.split)))


def compare(settings: CompareSettings, out: str | PathLike[str] | None = None) -> None:
    """Print the rows that matter, and why evaluations do not compare with the first one (`suites.incomparable`); with
    `out`, also write this and all metrics to comparison.md and comparison.json there.

    Raises `DataError` if a folder is not an evaluation or a file in it is damaged.
    """
    folders = settings.evaluations
    all_metrics = [read_metrics_file(folder / METRICS_FILE) for folder in folders]
    given = [metrics["name"] for metrics in all_metrics]
    names = [
        name if given.count(name) == 1 else f"{name} ({folder})" for name, folder in zip(given, folders, strict=True)
    ]
    items = [read_metrics(folder) for folder in folders]
    print(text_table(names, headlines([[each] for each in items])), end="")
    notes = [
        f"Not like {one_line(names[0])}: {one_line(name)} has {one_line(reason)}"
        for name, metrics in zip(names[1:], all_metrics[1:], strict=True)
        for reason in incomparable(all_metrics[0], metrics)
    ]
    print("".join(f"{textwrap.fill(note, WIDTH)}\n" for note in notes), end="")
    if out is not None:
        file = Path(out) / COMPARISON
        with reserved_file(file):
            text = "\n\n".join([markdown(names, items), *map(markdown_text, notes)])
            replace_file(file.with_suffix(".md"), f"{text}\n")
            replace_file(file, json.dumps(all_metrics, indent=2) + "\n")


def headlines(models: Sequence[Sequence[MetricItems]]) -> list[Headline]:
    """Tasks solved on each split, then choices, next actions and malformed replies on all splits.

    `models` has the metrics of each seed of each model.
    """
    rows = []
    for metric in (*_BY_SPLIT, *_OF_ALL):
        splits = sorted({split for seeds in models for items in seeds for split, name, _ in items if name == metric})
        for chosen in [[split] for split in splits] if metric in _BY_SPLIT else [splits] if splits else []:
            outcomes = [[_on(items, metric, chosen) for items in seeds] for seeds in models]
            rows.append(Headline(metric, chosen[0] if metric in _BY_SPLIT else "", outcomes))
    return rows


def _on(items: MetricItems, metric: str, splits: Sequence[str]) -> dict[str, ItemOutcome]:
    """The items of all `splits` together; their ids begin with the split."""
    return {item: outcome for split in splits for item, outcome in items.get((split, metric, ""), {}).items()}


def text_table(names: Sequence[str], rows: Sequence[Headline]) -> str:
    """The rows as text of at most `WIDTH` columns: with intervals if the models fit next to each other."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    side_by_side = len(names) <= _MOST_COLUMNS
    header = [_text(name) for name in names] if side_by_side else [_text(row.title) for row in rows]
    table.add_column("")
    for title in header:
        table.add_column(title, justify="right", overflow="fold")
    if side_by_side:
        for row in rows:
            table.add_row(_text(row.title), *(_cell(row, index, interval=True) for index in range(len(names))))
    else:
        for index, name in enumerate(names):
            table.add_row(_text(name), *(_cell(row, index) for row in rows))
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _cell(row: Headline, index: int, interval: bool = False) -> str:
    metric, result = METRICS[row.metric], row.estimates[index]
    return metric.format_estimate(result) if interval else metric.format(result.value)


def markdown(names: Sequence[str], models: Sequence[MetricItems]) -> str:
    """A Markdown table of all metrics: one line per split and metric, one column per model."""
    rows: list[list[str | Cell]] = []
    for key in sorted({key for items in models for key in items}, key=table_order):
        metric = METRICS[key[1]]
        results = [metric.estimate([items.get(key, {})]) for items in models]
        cells = (Cell(f"{metric.format_estimate(one)} n={one.items}") if one.items else "" for one in results)
        rows.append([key[0], ", ".join(filter(None, (metric.full_title, key[2]))), *cells])
    return markdown_table(["split", "metric", *names], rows, "llr")


def _text(name: str) -> Text:
    return Text(one_line(name))
