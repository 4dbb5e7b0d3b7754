"""Render the content as HTML and Markdown. Texts of environments and models are escaped or embedded as JSON.

A content security policy forbids network access and all scripts but the page's own, so that even unescaped markup could
not do anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from itertools import groupby
from typing import Any

from verl_act.evaluate.files import CHOICES
from verl_act.evaluate.method_comparison import NOTE
from verl_act.evaluate.metric_registry import METRICS, SECTIONS, format_value
from verl_act.extras import needs_extra
from verl_act.names import markdown_text
from verl_act.report import calibration, plots
from verl_act.report.content import Content
from verl_act.report.curves import curve_table
from verl_act.report.examples import KINDS
from verl_act.report.summary import duration
from verl_act.report.tables import Group, MetricCell, Row, how_to_read

with needs_extra("report"):
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

_HEADLINES = ("success", "next_action", "choice")


def html(content: Content) -> str:
    """The HTML page."""
    script = _asset("viewer.js")
    viewer = {
        "texts": content.texts,
        "models": [model.label for model in content.models],
        "colours": plots.COLOURS,
        "order": [group.kind for group in content.examples],
        "kinds": {
            group.kind: {"title": KINDS[group.kind].title, "items": group.items, "total": group.total}
            for group in content.examples
        },
    }
    return (
        _environment(content, autoescape=True)
        .get_template("page.html")
        .render(
            charts=_charts(content),
            stages={
                stage: [(curve, plots.curve(curve)) for curve in content.curves if curve.stage == stage]
                for stage in dict.fromkeys(curve.stage for curve in content.curves)
            },
            colours=plots.COLOURS,
            style=Markup(_asset("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            viewer=viewer,
        )
    )


def markdown(content: Content) -> str:
    """The same metrics as Markdown, for a terminal or an issue."""
    environment = _environment(content, autoescape=False, finalize=_markdown_text)
    return environment.get_template("report.md").render()


def _environment(content: Content, **options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("verl_act.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.globals |= {
        "content": content,
        "sections": SECTIONS,
        "calibration_title": calibration.TITLE,
        "methods_note": NOTE,
        "how_to_read": how_to_read(content.models),
    }
    environment.filters |= {
        "title_of": lambda key: METRICS[key].title,
        "show": format_value,
        "interval": lambda estimate, key: METRICS[key].format_interval(estimate.low, estimate.high),
        "change": _change,
        "duration": duration,
        "spaced": lambda text: text.replace("_", " "),
        "count": lambda value: f"{value:,}" if isinstance(value, int) else str(value),
        # A manifest's ISO time (UTC), to the minute.
        "moment": lambda text: text[:16].replace("T", " ") if text else "not recorded",
        "points_of": curve_table,
    }
    return environment


def _asset(name: str) -> str:
    return (files("verl_act.report") / "templates" / name).read_text(encoding="utf-8")


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
        return [(title, split, plot(f"{title}, {split}", of, labels)) for split, of in _of_each_split(groups)]

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


def _of_each_split(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    def split(group: Group) -> str:
        return group.split

    return [(name, list(members)) for name, members in groupby(sorted(groups, key=split), key=split)]


def _change(row: Row, cell: MetricCell) -> str:
    """The change against the first model as text; empty for the first model itself."""
    change, metric = cell.change, METRICS[row.key]
    if change is None:
        return ""
    text = metric.format_change(change.difference, change.low, change.high)
    return f"{text}, {change.gained} up, {change.lost} down" if metric.average == "share" else text


def _markdown_text(value: Any) -> Any:
    """Escape strings, so that no text becomes markup."""
    return markdown_text(value) if isinstance(value, str) else value
