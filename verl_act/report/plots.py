"""Charts as SVG by Vega-Lite (altair, vl-convert), in the page's light and dark colours.

An SVG has no script, and its text is escaped. For screen readers it is one image, with its numbers in a table next to
it; every mark shows its value as a tooltip. Series always differ in shape or position too, not in colour only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from verl_act.evaluate.metric_registry import format_value
from verl_act.evaluate.statistics import Estimate
from verl_act.extras import needs_extra
from verl_act.report.calibration import Calibration
from verl_act.report.curves import Curve, Series
from verl_act.report.tables import Group

with needs_extra("report"):
    import altair as alt
    import vl_convert
    from markupsafe import Markup

WIDTH = 340
"""Width of every chart in CSS pixels: fits a narrow phone without scrolling."""
COLOURS = 12
"""How many colours the page defines (`--series-0`, ...); further series reuse them with another shape."""
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_SVG = "http://www.w3.org/2000/svg"
_LONGEST_LABEL = 60
_ROOM = 1.16
"""End of the axis of bars, which leaves room for the number after a bar of 100%."""
_UNPRINTABLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
# As JSON, since altair has no layout for several legends.
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "Arial, Helvetica, sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        **{f"{element}Color": "var(--muted)" for element in ("label", "title")},
        **{f"{element}Color": "var(--line)" for element in ("grid", "domain", "tick")},
        **{"titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11},
    },
    "legend": {
        **{"labelColor": "var(--ink)", "labelFontSize": 11, "symbolSize": 60, "columnPadding": 14, "offset": 6},
        "layout": {"top": {"direction": "vertical", "anchor": "start", "margin": 3}},
    },
}

Rows = list[dict[str, Any]]


def curve(chart: Curve) -> Markup:
    """One learning curve. With several runs, colours are runs and dashes are series. Series over several seeds have a
    band from the lowest to the highest seed."""
    runs = list(dict.fromkeys(series.run for series in chart.series))
    names = list(dict.fromkeys(series.name for series in chart.series))
    rows = [
        {
            "step": step,
            "value": value,
            "low": low,
            "high": high,
            "run": _plain(series.run),
            "name": _plain(series.name),
            "label": f"{_plain(_series_name(series.run, series.name, runs))}, step {step}: "
            f"{format_value(value, chart.unit)}",
        }
        for series in chart.series
        for (step, value), (low, high) in zip(series.points, _bounds(series), strict=True)
    ]
    by, other = ("run", "name") if len(runs) > 1 else ("name", "run")
    values = [_plain(value) for value in (runs if by == "run" else names)]
    encoding: dict[str, Any] = {
        "x": alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=6, format="d")),
        "y": _y_axis(chart.unit, rows),
        "color": _colour(by, values),
        "description": alt.Description("label:N"),
    }
    dashes = {}
    if len(runs) > 1 and len(names) > 1:
        dashed = [_plain(name) for name in names]
        scale = alt.Scale(domain=dashed, range=[_DASHES[index % len(_DASHES)] for index in range(len(dashed))])
        dashes["strokeDash"] = alt.StrokeDash(f"{other}:N", scale=scale, legend=_legend(dashed))
    base = _chart(rows).encode(**encoding)
    line = base.mark_line(strokeWidth=2, strokeJoin="round").encode(detail=f"{other}:N", **dashes)
    few = max(len(series.points) for series in chart.series) <= 60
    shapes = alt.Shape(f"{by}:N", scale=_shapes(values), legend=_legend(values))
    points = base.mark_point(filled=True, size=22 if few else 6, opacity=1).encode(shape=shapes)
    band = base.mark_area(opacity=0.2).encode(y=_y_axis(chart.unit, rows, "low"), y2="high:Q", detail=f"{other}:N")
    chart_layers = band + line + points if any(series.ranges for series in chart.series) else line + points
    return _svg(chart_layers, f"{chart.stage} stage: {chart.title}", height=160)


def bars(title: str, groups: Sequence[Group], labels: Sequence[str], neutral: float | None = None) -> Markup:
    """Shares with intervals: one row per group, with one bar per model. A line marks `neutral`."""
    order, rows = _interval_rows(groups, labels)
    models = [_plain(label) for label in labels]
    # Group names are above the bars: next to them, long names would leave no room on a phone.
    name, thickness, gap = 17, 11, 5
    step = name + thickness * len(models) + gap
    inner, outer = (name + gap) / step, name / step
    channels: dict[str, Any] = {
        "y": alt.Y(
            "group:N",
            sort=order,
            title=None,
            scale=alt.Scale(paddingInner=inner, paddingOuter=outer),
            axis=alt.Axis(
                domain=False,
                ticks=False,
                labelAlign="left",
                labelPadding=0,
                labelLimit=WIDTH - 20,
                labelOffset=-(step * (1 - inner) + name) / 2,
                labelColor="var(--ink)",
                maxExtent=0,
            ),
        ),
        "yOffset": alt.YOffset("model:N", scale=alt.Scale(domain=models, paddingInner=0.15)),
        "description": alt.Description("label:N"),
    }
    base = _chart(rows).encode(**channels)
    bar = base.mark_bar().encode(x=_share_axis("value", end=_ROOM), color=_colour("model", models))
    number = base.mark_text(align="left", baseline="middle", dx=4, fontSize=10, fill="var(--ink)").encode(
        x=_share_axis("end", end=_ROOM), text="text:N"
    )
    interval = base.mark_rule(size=1.5, stroke="var(--ink)").encode(x=_share_axis("low", end=_ROOM), x2="high:Q")
    chart = bar + interval + number
    if neutral is not None:
        line = _chart([{"at": neutral}]).mark_rule(stroke="var(--ink)", strokeDash=[3, 3], size=1)
        chart += line.encode(x="at:Q")
    return _svg(chart, title, height=round(step * (len(order) - inner + 2 * outer)))


def points(title: str, groups: Sequence[Group], labels: Sequence[str], axis: str) -> Markup:
    """Shares with intervals over ordered groups: one column per group, with one point per model."""
    order, rows = _interval_rows(groups, labels)
    models = [_plain(label) for label in labels]
    x = alt.X("group:N", sort=order, title=axis, axis=alt.Axis(labelAngle=0), scale=alt.Scale(paddingInner=0.3))
    layers = _points(rows, models, x=x, xOffset=alt.XOffset("model:N", scale=alt.Scale(domain=models)))
    return _svg(layers, title, height=170)


def reliability(title: str, calibration: Calibration, labels: Sequence[str]) -> Markup:
    """Share of right choices over confidence, with intervals: one point per bin and model, and the diagonal."""
    rows = [
        {
            **_interval_row(_plain(entry.name), label, metric),
            "confidence": confidence,
            "label": f"{_plain(label)}, confidence {format_value(confidence, 'share')}: right {_with_interval(metric)}",
        }
        for entry in calibration.bins
        for label, confidence, metric in zip(labels, entry.confidences, entry.right, strict=True)
        if confidence is not None
    ]
    models = [_plain(label) for label in labels]
    layers = _points(rows, models, "right", x=_share_axis("confidence", "confidence"))
    ends = _chart([{"at": 0}, {"at": 1}])
    agree = ends.mark_line(stroke="var(--ink)", strokeDash=[3, 3], strokeWidth=1).encode(x="at:Q", y="at:Q")
    return _svg(agree + layers, title, height=220)


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows))


def _interval_rows(groups: Sequence[Group], labels: Sequence[str]) -> tuple[list[str], Rows]:
    """The names of the groups, and a row for each value."""
    names = [_plain(group.name.replace("_", " ")) for group in groups]
    rows = [
        _interval_row(name, label, metric)
        for name, group in zip(names, groups, strict=True)
        for label, metric in zip(labels, group.estimates, strict=True)
        if metric.value is not None
    ]
    return names, rows


def _interval_row(group: str, model: str, metric: Estimate) -> dict[str, Any]:
    return {
        "group": group,
        "model": _plain(model),
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "end": max(filter(None, (metric.value, metric.high)), default=0),
        "text": format_value(metric.value, "share"),
        "label": f"{group}, {_plain(model)}: {_with_interval(metric)}",
    }


def _with_interval(metric: Estimate) -> str:
    value, low, high = (format_value(bound, "share") for bound in (metric.value, metric.low, metric.high))
    return f"{value} ({low} to {high}, n = {metric.items})"


def _points(rows: Rows, models: Sequence[str], title: str | None = None, **channels: Any) -> alt.LayerChart:
    description = alt.Description("label:N")
    base = _chart(rows).encode(color=_colour("model", models), description=description, **channels)
    shares = alt.Y("low:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=_percent())
    interval = base.mark_rule(size=2, opacity=0.6).encode(y=shares, y2="high:Q")
    shapes = alt.Shape("model:N", scale=_shapes(models), legend=_legend(models))
    points = base.mark_point(filled=True, size=50, opacity=1).encode(y="value:Q", shape=shapes)
    layers: alt.LayerChart = interval + points
    return layers


def _share_axis(column: str, title: str | None = None, end: float = 1) -> alt.X:
    return alt.X(f"{column}:Q", title=title, scale=alt.Scale(domain=[0, end]), axis=_percent())


def _percent() -> alt.Axis:
    return alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])


def _bounds(series: Series) -> list[tuple[float, float]]:
    """(lowest, highest) over the seeds for every point; the point itself for one seed."""
    return [(low, high) for _, low, high in series.ranges] or [(value, value) for _, value in series.points]


def _y_axis(unit: str, rows: Rows, column: str = "value") -> alt.Y:
    if unit == "share":
        return alt.Y(f"{column}:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=_percent())
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    # A flat line goes in the middle, not on the axis.
    flat = [low - 1, high + 1] if low == high else alt.Undefined
    return alt.Y(f"{column}:Q", title=unit, scale=alt.Scale(zero=False, domain=flat), axis=alt.Axis(tickCount=5))


def _colour(column: str, values: Sequence[str]) -> alt.Color:
    colours = [f"var(--series-{index % COLOURS})" for index in range(len(values))]
    scale = alt.Scale(domain=list(values), range=colours)
    return alt.Color(f"{column}:N", scale=scale, legend=_legend(values))


def _shapes(values: Sequence[str]) -> alt.Scale:
    # Shapes shift by one each time the colours repeat, so that no two series share both.
    shapes = [_SHAPES[(index + index // COLOURS) % len(_SHAPES)] for index in range(len(values))]
    return alt.Scale(domain=list(values), range=shapes)


def _legend(entries: Sequence[str]) -> alt.Legend | None:
    """A legend in one row if it fits, else in one column; None for a single entry."""
    if len(entries) < 2:
        return None
    fits = sum(9 * len(entry) + 28 for entry in entries) <= WIDTH
    columns = len(entries) if fits else 1
    return alt.Legend(orient="top", title=None, columns=columns, labelLimit=WIDTH - 110, symbolOpacity=1)


def _svg(chart: alt.LayerChart, title: str, height: int) -> Markup:
    fitted = chart.properties(width=WIDTH, height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    return _readable(vl_convert.vegalite_to_svg({**fitted.to_dict(), "config": _CONFIG}), title)


def _readable(svg: str, title: str) -> Markup:
    """Name the image, make it scale, and give every labelled mark a tooltip."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    root.attrib.pop("width")
    root.attrib.pop("height")
    root.set("role", "img")
    root.set("aria-label", _plain(title))
    for mark in list(root.iter()):
        label = mark.get("aria-label") if mark.get("aria-roledescription") in ("point", "bar", "rule mark") else None
        if mark is not root:  # one image for screen readers; the numbers are in a table next to it
            for name in [name for name in mark.attrib if name == "role" or name.startswith("aria-")]:
                del mark.attrib[name]
        if label:
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = label
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _series_name(run: str, name: str, runs: Sequence[str]) -> str:
    return " ".join(filter(None, (run if len(runs) > 1 else "", name))) or run


def _plain(text: str) -> str:
    """A label for XML and Vega's expressions: without control characters or line separators, and shortened to fit."""
    printable = "".join(" " if unicodedata.category(char) in _UNPRINTABLE else char for char in text)
    if len(printable) <= _LONGEST_LABEL:
        return printable
    # In the middle, because what distinguishes models is often at the end: `run · method`.
    return f"{printable[:20]}…{printable[21 - _LONGEST_LABEL :]}"
