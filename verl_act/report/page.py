"""Render the content as HTML and Markdown. Texts of environments and models are escaped or embedded as JSON.

A content security policy forbids network access and all scripts but the page's own, so that even unescaped markup could
not do anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from verl_act.evaluate.methods import NOTE, format_p
from verl_act.names import markdown_text
from verl_act.report import plots
from verl_act.report.content import Content
from verl_act.report.curves import curve_table
from verl_act.report.statistics import MetricValue
from verl_act.report.summary import duration
from verl_act.report.tables import Group, MetricCell

SECTIONS = {
    "episodes": "Episodes",
    "next_action": "Next actions",
    "choice": "Choices",
    "reasoning": "General reasoning",
}
_HEADLINES = {"episodes": "success", "next_action": "right_inferable", "choice": "right_inferable"}


def html(content: Content) -> str:
    """The HTML page."""
    script = _asset("viewer.js")
    viewer = {
        "texts": content.texts,
        "models": [model.label for model in content.models],
        "colours": plots.COLOURS,
        "kinds": {group.kind: {"items": group.items, "total": group.total} for group in content.examples},
    }
    return (
        _environment(autoescape=True)
        .get_template("page.html")
        .render(
            content=content,
            charts=_charts(content),
            stages={
                stage: [(curve, plots.curve(curve)) for curve in content.curves if curve.stage == stage]
                for stage in dict.fromkeys(curve.stage for curve in content.curves)
            },
            sections=SECTIONS,
            methods_note=NOTE,
            colours=plots.COLOURS,
            style=Markup(_asset("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            viewer=viewer,
        )
    )


def markdown(content: Content) -> str:
    """The same metrics as Markdown, for a terminal or an issue."""
    environment = _environment(autoescape=False, finalize=_markdown_text)
    return environment.get_template("report.md").render(content=content, sections=SECTIONS, methods_note=NOTE)


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("verl_act.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters |= {
        "show": plots.show,
        "interval": _interval,
        "paired": _paired,
        "duration": duration,
        "spaced": lambda text: text.replace("_", " "),
        "count": lambda value: f"{value:,}" if isinstance(value, int) else str(value),
        "moment": _moment,
        "points_of": curve_table,
    }
    return environment


def _asset(name: str) -> str:
    return (files("verl_act.report") / "templates" / name).read_text(encoding="utf-8")


def _chance(content: Content, split: str) -> float | None:
    """The accuracy of a random choice on `split`; None if the number of candidates is unknown."""
    places = {group.name for group in content.positions if group.split == split}
    return 1 / len(places) if len(places) > 1 else None


def _charts(content: Content) -> dict[str, list[tuple[str, str, Markup]]]:
    """Page section -> (title, note, SVG) of its charts."""
    labels = [model.label for model in content.models]
    return {
        "headlines": [
            (SECTIONS[section], row_title, plots.bars(f"{SECTIONS[section]}: {row_title}", groups, labels))
            for section, row_title, groups in _headlines(content)
        ],
        "task_types": [
            (split, "tasks solved", plots.bars(f"Tasks solved by type, {split}", groups, labels))
            for split, groups in _by_split(content.task_types)
        ],
        "positions": [
            (
                split,
                "choices by position",
                plots.bars(f"Choices by position, {split}", both, labels, _chance(content, split)),
            )
            for split, both in _by_split([*content.positions, *content.first_picked])
        ],
        "margins": [
            (
                split,
                "choices by margin",
                plots.points(f"Right choices by margin, {split}", groups, labels, "margin, steps"),
            )
            for split, groups in _by_split(content.margins)
        ],
        "calibrations": [
            (
                calibration.split,
                "calibration",
                plots.reliability(f"Calibration of choices, {calibration.split}", calibration, labels),
            )
            for calibration in content.calibrations
        ],
    }


def _headlines(content: Content) -> list[tuple[str, str, list[Group]]]:
    """(section, title, one group per split) of each section's main metric."""
    headlines = []
    for section, key in _HEADLINES.items():
        rows = {
            block.split: row
            for block in content.blocks
            if block.section == section
            for row in block.rows
            if row.key == key and any(cell.figure.count for cell in row.cells)
        }
        if rows:
            groups = [Group(split, split, [cell.figure for cell in row.cells]) for split, row in rows.items()]
            headlines.append((section, next(iter(rows.values())).title, groups))
    return headlines


def _by_split(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    splits = dict.fromkeys(group.split for group in groups)
    return [(split, [replace(group) for group in groups if group.split == split]) for split in splits]


def _interval(metric: MetricValue, unit: str) -> str:
    if metric.low is None:
        return ""
    low, high = plots.show(metric.low, unit), plots.show(metric.high, unit)
    return f"{low.removesuffix('%')}–{high}"


def _paired(cell: MetricCell) -> str:
    test = cell.against_first
    if test is None:
        return ""
    if not test.gained + test.lost:
        return "no item differs"
    points = f"{100 * test.difference:+.1f}".replace("-", "−")
    return f"{points} points, {test.gained} up, {test.lost} down, {format_p(test.p)}"


def _moment(text: str) -> str:
    """A manifest's ISO time (UTC), to the minute."""
    return text[:16].replace("T", " ") if text else "not recorded"


def _markdown_text(value: Any) -> Any:
    """Escape strings, so that no text becomes markup."""
    return markdown_text(value) if isinstance(value, str) else value
