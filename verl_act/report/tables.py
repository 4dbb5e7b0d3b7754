"""The tables of a report: the metrics of every model by split, and by group, with intervals and changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_act.evaluate.metric_registry import HOW_TO_READ, METRICS, SECTIONS, MetricItems, metric_items, table_order
from verl_act.evaluate.statistics import Against, Estimate, against
from verl_act.report.read import Evaluation, Run

CHARTED = ("success_by_type", "choice_by_position", "choice_by_margin")
"""Metrics whose groups have a chart, and no rows in the tables."""


@dataclass(frozen=True, slots=True)
class Model:
    """One column of the tables: an evaluated model with a unique label."""

    label: str
    run: str
    evaluation: Evaluation
    items: MetricItems


@dataclass(frozen=True, slots=True)
class MetricCell:
    """One metric of one model; `change` compares it with the first model on the same items."""

    estimate: Estimate
    change: Against | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The metric `key` of all models, in their order. `note` names the group, or else is the metric's."""

    key: str
    title: str
    note: str
    unit: str
    cells: list[MetricCell]


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of one section of the metrics on one split."""

    section: str
    split: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Group:
    """The metric `key` of one group of one split's items, for all models in their order."""

    key: str
    split: str
    name: str
    estimates: list[Estimate]


def models(runs: Sequence[Run]) -> list[Model]:
    """The evaluated models of all runs; several runs put their name before the model's."""
    listed: list[Model] = []
    for run in runs:
        for evaluation in run.evaluations:
            alone = len(run.evaluations) == 1 and not run.stages
            label = evaluation.name if len(runs) == 1 else run.name if alone else f"{run.name} · {evaluation.name}"
            if label in {model.label for model in listed}:
                label = f"{label} ({evaluation.folder.name})"
            items = metric_items(evaluation.records, str(evaluation.folder))
            listed.append(Model(label, run.name, evaluation, items))
    return listed


def how_to_read(compared: Sequence[Model]) -> str:
    """How to read the tables, as text."""
    if len(compared) < 2:
        return HOW_TO_READ
    first = compared[0].label
    return (
        f"{HOW_TO_READ} Changes are against {first}: “up” counts items that only the other model gets, “down” those "
        f"that only {first} gets. A change is clear, bold in the page, if its interval excludes 0 and a paired test "
        "over tasks has p below 0.05. All of this is about these models on other tasks: another training may come out "
        "differently."
    )


def blocks(compared: Sequence[Model]) -> list[Block]:
    """All sections and splits for which any model has answers."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for key in _keys(compared):
        split, name, _ = key
        row = _row(key, compared)
        if name not in CHARTED and not (METRICS[name].optional and not any(cell.estimate.value for cell in row.cells)):
            rows.setdefault((METRICS[name].section, split), []).append(row)
    order = list(SECTIONS)
    return [Block(*key, rows[key]) for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]


def groups(compared: Sequence[Model], metric: str) -> list[Group]:
    """The groups of a metric by split; a metric without groups is one group with the metric's title."""
    return [
        Group(metric, key[0], key[2] or METRICS[metric].title, [_estimate(key, model) for model in compared])
        for key in _keys(compared)
        if key[1] == metric
    ]


def _keys(compared: Sequence[Model]) -> list[tuple[str, str, str]]:
    return sorted({key for model in compared for key in model.items}, key=table_order)


def _row(key: tuple[str, str, str], compared: Sequence[Model]) -> Row:
    metric = METRICS[key[1]]
    first = compared[0].items.get(key, {})
    cells = [
        MetricCell(_estimate(key, model), against([model.items.get(key, {})], [first]) if index else None)
        for index, model in enumerate(compared)
    ]
    return Row(key[1], metric.title, key[2] or metric.note, metric.unit, cells)


def _estimate(key: tuple[str, str, str], model: Model) -> Estimate:
    return METRICS[key[1]].estimate([model.items.get(key, {})])
