"""Calibration of choices: does a model's accuracy match its confidence?

Confidence is the probability of the whole reply under the model. If a model reasons first, its probability is spread
over many possible reasonings and says little; if it only names an action, it is the confidence in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from verl_act.evaluate.metric_registry import METRICS, metric_items
from verl_act.evaluate.records import CHOICES
from verl_act.evaluate.statistics import Estimate
from verl_act.report.tables import Model

TITLE = "Calibration of choices"
BINS = 10
"""Of equal width, as usual for the expected calibration error (Guo et al., 2017)."""

_Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """Choices in one confidence bin: mean confidence and share of right choices, one entry per model."""

    name: str
    confidences: list[float | None]
    right: list[Estimate]


@dataclass(frozen=True, slots=True)
class Calibration:
    """One split. `errors` has each model's expected calibration error, 0 to 1; None if no confidence is recorded."""

    split: str
    errors: list[float | None]
    bins: list[ConfidenceBin]


def calibrations(compared: Sequence[Model]) -> list[Calibration]:
    """One entry for every split with a recorded confidence of any model."""
    known = [[_with_confidence(record) for record in _recorded(model)] for model in compared]
    splits = sorted({record["split"] for records in known for record in records})
    return [
        _calibration(split, [[record for record in records if record["split"] == split] for records in known])
        for split in splits
    ]


def _recorded(model: Model) -> _Records:
    return [record for record in model.evaluation.records[CHOICES] if record.get("log_probability") is not None]


def _with_confidence(record: Mapping[str, Any]) -> dict[str, Any]:
    confidence = min(1.0, math.exp(record["log_probability"]))
    question = f"{record['pair_id']}#{record['order']}"  # each order has its own confidence
    return {**record, "pair_id": question, "confidence": confidence, "bin": min(int(confidence * BINS), BINS - 1)}


def _calibration(split: str, models: Sequence[_Records]) -> Calibration:
    bins = []
    for index in range(BINS):
        by_model = [[record for record in records if record["bin"] == index] for records in models]
        if any(by_model):
            name = f"{100 * index // BINS}–{100 * (index + 1) // BINS}%"
            confidences = [fmean(record["confidence"] for record in group) if group else None for group in by_model]
            bins.append(ConfidenceBin(name, confidences, [_right(split, group) for group in by_model]))
    return Calibration(split, [_error(bins, model) for model in range(len(models))], bins)


def _right(split: str, records: _Records) -> Estimate:
    return METRICS["choice"].estimate([metric_items({CHOICES: records}).get((split, "choice", ""), {})])


def _error(bins: Sequence[ConfidenceBin], model: int) -> float | None:
    """The mean distance between confidence and accuracy over the bins, weighted by their number of choices."""
    gaps = [
        (entry.right[model].items, abs(value - confidence))
        for entry in bins
        if (confidence := entry.confidences[model]) is not None and (value := entry.right[model].value) is not None
    ]
    count = sum(items for items, _ in gaps)
    return sum(items * gap for items, gap in gaps) / count if count else None
