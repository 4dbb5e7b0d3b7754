"""Render the content as HTML and Markdown. Texts of environments and models are escaped or embedded as JSON.

A content security policy forbids network access and all scripts but the page's own, so that even unescaped markup could
not do anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from verl_act.evaluate.method_comparison import NOTE, markdown_blocks
from verl_act.evaluate.metric_registry import METRICS, SECTIONS, format_value
from verl_act.evaluate.records import CHOICES
from verl_act.evaluate.table import Cell, estimate_cell, markdown_table
from verl_act.extras import needs_extra
from verl_act.names import markdown_text
from verl_act.report import calibration, plots
from verl_act.report.content import Content
from verl_act.report.curves import Curve, curve_table
from verl_act.report.examples import KINDS
from verl_act.report.summary import RunSummary, duration
from verl_act.report.tables import Group, MetricCell, Row, how_to_read

with needs_extra("report"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

_TEMPLATES = Path(__file__).with_name("templates")
_HEADLINES = ("success", "next_action", "choice")
_NOTHING = "No model has been evaluated yet."
_CALIBRATION = "Right choices by the probability of the whole reply; ECE is the expected calibration error."


def html(content: Content) -> str:
    """The HTML page."""
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "viewer.js"))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"show": format_value, "duration": duration, "count": _count, "moment": _moment}
    return environment.get_template("page.html").render(
        content=content,
        sections=SECTIONS,
        methods_note=NOTE,
        how_to_read=how_to_read(content.models),
        cell_of=_cell,
        points_of=curve_table,
        numbers=_numbers(content),
        charts=_charts(content),
        stages={
            stage: [(curve, plots.curve(curve)) for curve in content.curves if curve.stage == stage]
            for stage in dict.fromkeys(curve.stage for curve in content.curves)
        },
        colours=plots.COLOURS,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        viewer={
            "texts": content.texts,
            "models": [model.label for model in content.models],
            "colours": plots.COLOURS,
            "order": [group.kind for group in content.examples],
            "kinds": {
                group.kind: {"title": KINDS[group.kind].title, "items": group.items, "total": group.total}
                for group in content.examples
            },
        },
    )


def markdown(content: Content) -> str:
    """The same metrics as Markdown, for a terminal or an issue."""
    labels = [model.label for model in content.models]
    blocks = [f"# {markdown_text(content.title)}", f"**{markdown_text(content.verdict.sentence)}**"]
    blocks += _bullets(content.verdict.details)
    for run in content.runs:
        blocks += _run(run)
    blocks += [f"Note: {markdown_text(note)}" for note in content.notes]
    if content.method_tables:
        blocks += ["## Comparison of methods", markdown_text(f"{content.methods_start} {NOTE}")]
        blocks += markdown_blocks(content.method_budgets, content.method_tables)
    blocks += ["## Results", markdown_text(how_to_read(content.models))] if content.blocks else [_NOTHING]
    for block in content.blocks:
        rows: list[list[str | Cell]] = [
            [f"{row.title} ({row.note})" if row.note else row.title, *(_cell(row, cell) for cell in row.cells)]
            for row in block.rows
        ]
        blocks.append(f"### {SECTIONS[block.section].title}, {markdown_text(block.split)}")
        blocks.append(markdown_table(["metric", *labels], rows, "lr"))
    for table in _numbers(content).values():
        blocks += [f"## {table.title}", *filter(None, [table.note])]
        rows = [[split, name, *cells] for split, name, cells in table.rows]
        blocks.append(markdown_table(["split", table.first, *labels], rows, "llr"))
    return "\n\n".join([*blocks, *_learning(content.curves)]) + "\n"


def _bullets(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"* {markdown_text(line)}" for line in lines)] if lines else []


def _run(run: RunSummary) -> list[str]:
    unknown = "not recorded"
    splits, seeds = ", ".join(run.splits) or unknown, ", ".join(map(str, run.seeds)) or unknown
    about = [
        f"command: {run.command or unknown}",
        f"initial model: {run.model or unknown}",
        f"environment: {run.env or unknown}; splits: {splits}; seed: {seeds}",
        f"first and last stage ended (UTC): {_moment(run.first)}, {_moment(run.last)}; "
        f"time in stages: {duration(run.seconds)}",
        f"versions: {', '.join(f'{tool} {version}' for tool, version in run.versions.items())}",
    ]
    blocks = [f"## {markdown_text(run.name)}", *_bullets(about)]
    if run.missing:
        blocks.append(f"**Not finished.** Missing stages: {markdown_text(', '.join(run.missing))}.")
    if run.stages:
        header = ["stage", "state", "time", "seed", "counts"]
        rows = [
            [
                *(stage.name, stage.state, duration(stage.seconds), "" if stage.seed is None else str(stage.seed)),
                ", ".join(f"{name} {_count(value)}" for name, value in stage.gist.items()),
            ]
            for stage in run.stages
        ]
        blocks.append(markdown_table(header, rows, "llrrl"))
    return blocks


def _learning(curves: Sequence[Curve]) -> list[str]:
    if not curves:
        return []
    header = ["stage", "curve", "run", "series", "first step", "first", "last step", "last"]
    rows: list[list[str]] = []
    blocks: list[str] = []
    for curve in curves:
        for series in curve.series:
            ends = (series.points[0], series.points[-1])
            values = (text for step, value in ends for text in (str(step), format_value(value, curve.unit)))
            rows.append([curve.stage, curve.title, series.run, series.name, *values])
        table = curve_table(curve, 20)
        notes = "; ".join(filter(None, (curve.note, curve.unit_in_words, table.note)))
        blocks.append(f"### {markdown_text(f'{curve.title}, {curve.stage} stage ({notes})')}")
        points = [[str(step), *(format_value(value, curve.unit) for value in values)] for step, values in table.rows]
        blocks.append(markdown_table(["step", *table.columns], points, "r"))
    return ["## Learning", markdown_table(header, rows, "llllr"), *blocks]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _moment(time: str) -> str:
    """A manifest's ISO time (UTC), to the minute."""
    return time[:16].replace("T", " ") if time else "not recorded"


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of charts: `rows` are (split, group, cells of the models); `first` says what the groups are."""

    title: str
    first: str
    rows: list[tuple[str, str, list[Cell]]]
    note: str = ""


def _numbers(content: Content) -> dict[str, Numbers]:
    """Page section -> its numbers, if it has any."""
    numbers = {}
    for section, first, groups in (
        ("task_types", "type", content.task_types),
        ("positions", "position", content.positions),
        ("margins", "margin", content.margins),
    ):
        if groups:
            metric = METRICS[groups[0].key]
            rows = [
                (group.split, group.name.replace("_", " "), [estimate_cell(metric, one) for one in group.estimates])
                for group in groups
            ]
            numbers[section] = Numbers(metric.title, first, rows)
    if content.calibrations:
        rows = []
        for each in content.calibrations:
            rows.append((each.split, "ECE", [Cell(format_value(error, "share")) for error in each.errors]))
            for entry in each.bins:
                sure = [f"confidence {format_value(confidence, 'share')}" for confidence in entry.confidences]
                cells = [estimate_cell(METRICS["choice"], *cell) for cell in zip(entry.right, sure, strict=True)]
                rows.append((each.split, entry.name, cells))
        numbers["calibrations"] = Numbers(calibration.TITLE, "confidence", rows, _CALIBRATION)
    return numbers


def _chance(content: Content, split: str) -> float | None:
    """The accuracy of a random choice on `split`; None if the number of candidates is unknown, or differs."""
    records = (record for model in content.models for record in model.evaluation.records[CHOICES])
    sizes = {len(record["candidates"]) for record in records if record["split"] == split}
    return 1 / sizes.pop() if len(sizes) == 1 else None


def _charts(content: Content) -> dict[str, list[tuple[str, str, Markup]]]:
    """Page section -> (title, note, SVG) of its charts."""
    labels = [model.label for model in content.models]

    def by_split(groups: Sequence[Group], plot: Callable[..., Markup]) -> list[tuple[str, str, Markup]]:
        title = METRICS[groups[0].key].title if groups else ""
        of_each_split = [(split, list(of)) for split, of in groupby(groups, key=attrgetter("split"))]
        return [(title, split, plot(f"{title}, {split}", of, labels)) for split, of in of_each_split]

    return {
        "headlines": [
            (METRICS[metric].title, METRICS[metric].note, plots.bars(METRICS[metric].full_title, groups, labels))
            for metric in _HEADLINES
            if (groups := _by_split(content, metric))
        ],
        "task_types": by_split(content.task_types, plots.bars),
        "positions": by_split(
            content.positions,
            lambda title, groups, labels: plots.bars(title, groups, labels, _chance(content, groups[0].split)),
        ),
        "margins": by_split(content.margins, partial(plots.points, axis="margin, steps")),
        "calibrations": [
            (calibration.TITLE, each.split, plots.reliability(f"{calibration.TITLE}, {each.split}", each, labels))
            for each in content.calibrations
        ],
    }


def _by_split(content: Content, metric: str) -> list[Group]:
    """A metric of all items as one group per split."""
    return [
        Group(metric, block.split, block.split, [cell.estimate for cell in row.cells])
        for block in content.blocks
        for row in block.rows
        if row.key == metric
    ]


def _cell(row: Row, cell: MetricCell) -> Cell:
    """The metric with its change against the first model, which the first model itself does not have."""
    change, metric = cell.change, METRICS[row.key]
    if change is None:
        return estimate_cell(metric, cell.estimate)
    text = metric.format_change(change.difference, change.low, change.high)
    counts = f", {change.gained} up, {change.lost} down" if metric.average == "share" else ""
    return estimate_cell(metric, cell.estimate, changes=[(f"{text}{counts}", change.is_clear)])
