"""Learning curves from verl's metrics: which keys are shown, with their titles and units."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from verl_act.evaluate.metric_registry import METRICS
from verl_act.report.read import Run, Steps
from verl_act.run_folder import DPO_MARGINS, ENTROPY, LOSS, RESPONSE_LENGTH, SCORE

Point = tuple[int, float]
Range = tuple[int, float, float]
_MOST_POINTS = 300

_VALIDATION = re.compile(r"val-(?:core|aux)/act/[^/]+/(choice|action|episode)(?:/(.+))?/(acc|success)/mean@\d+")
_TRAINING = re.compile(r"train/act/[^/]+/(choice|action|episode)(?:/.+)?/([^/]+)/mean")
_TIERS = {
    "acc": "Expert's action",
    "adm": "Other admissible action",
    "fmt": METRICS["malformed_share"].title,
    **{name: METRICS[name].title for name in ("success", "inadmissible_share", "malformed_share")},
}
_RIGHT = {"choice": "acc", "action": "acc", "episode": "success"}
"""The validation metric of each kind of row."""
_CORRECT = {
    kind: METRICS[name].title
    for kind, name in (("choice", "choice"), ("action", "next_action"), ("episode", "success"))
}
_About = tuple[str, str, str, str]
"""Key, title, note and unit of a chart."""
_VALIDATED: _About = ("validation", "Validation", "share of held-out rows", "share")
_TIER_SHARES: _About = ("tiers", "What replies earned", "share of the step's samples", "share")
_THOUGHTS: _About = ("thoughts", METRICS["thought_share"].title, "share of the step's samples", "share")
_DPO_LOSS: _About = ("loss", "Loss", "mean of the step's pairs", "nats")
_PLAIN: dict[str, _About] = {
    LOSS: ("loss", "Loss", "mean over the step's reply tokens", "nats"),
    SCORE: ("score", "Reward", "mean of the step's samples", "reward"),
    ENTROPY: ("entropy", "Entropy of the policy", "mean over reply tokens", "nats"),
    RESPONSE_LENGTH: ("length", METRICS["reply_length"].title, "mean of the step's samples", "tokens"),
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `points` are (step, value); each is the mean of `bin_steps` steps, which is 1 in short runs.

    With several seeds, `points` are means over the seeds that have reached the step, and `ranges` are (step, lowest,
    highest).
    """

    run: str
    name: str
    points: list[Point]
    bin_steps: int = 1
    seeds: int = 1
    ranges: list[Range] = field(default_factory=list)

    @property
    def span(self) -> str:
        """The steps that it covers, as text."""
        first, last = self.points[0][0], self.points[-1][0]
        notes = [
            f"steps {first} to {last}" if last > first else f"step {first}",
            f"each point the mean of {self.bin_steps}" if self.bin_steps > 1 else "",
            f"mean of {self.seeds} seeds, lowest to highest shaded" if self.seeds > 1 else "",
        ]
        return ", ".join(filter(None, notes))

    @property
    def first(self) -> float:
        return self.points[0][1]

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Curve:
    """One chart. `unit` is `share` (0 to 1) or the name of a unit."""

    stage: str
    key: str
    title: str
    note: str
    unit: str
    series: list[Series]

    @property
    def unit_in_words(self) -> str:
        """Empty where the values or the title say it."""
        return "" if self.unit in ("share", "reward") else self.unit


@dataclass(frozen=True, slots=True)
class CurveTable:
    """The points of a chart: one column per series; rows are (step, values), None if a series has no such step.

    `note` says how points were thinned or averaged.
    """

    columns: list[str]
    rows: list[tuple[int, list[float | None]]]
    note: str


def curve_table(curve: Curve, most: int) -> CurveTable:
    """About `most` rows at most, evenly spread over the steps, with the first and last point of every series."""
    several = len({series.run for series in curve.series}) > 1
    names = [" · ".join(filter(None, (series.run if several else "", series.name))) for series in curve.series]
    values = [dict(series.points) for series in curve.series]
    steps = sorted({step for points in values for step in points})
    kept = steps if len(steps) <= most else _thinned(curve, most)
    size, seeds = (max(getattr(series, attribute) for series in curve.series) for attribute in ("bin_steps", "seeds"))
    notes = [
        f"{len(kept)} of {len(steps)} points, evenly spread" if len(kept) < len(steps) else "",
        f"means of up to {size} steps" if size > 1 else "",
        f"means of {seeds} seeds" if seeds > 1 else "",
    ]
    return CurveTable(
        columns=[name or curve.title for name in names],
        rows=[(step, [points.get(step) for points in values]) for step in kept],
        note=", ".join(filter(None, notes)),
    )


def _thinned(curve: Curve, most: int) -> list[int]:
    """A subset of the steps. Series with different steps are thinned separately, so that none loses all its points."""
    tracks = {tuple(step for step, _ in series.points) for series in curve.series}
    count = max(2, most // len(tracks))
    return sorted({track[index] for track in tracks for index in _spread(len(track), count)})


def _spread(length: int, count: int) -> list[int]:
    """At most `count` evenly spread indices below `length`, including the first and the last."""
    if length <= count:
        return list(range(length))
    return [round(index * (length - 1) / (count - 1)) for index in range(count)]


def curves(runs: Sequence[Run]) -> list[Curve]:
    """The charts of all training stages; charts without values are left out."""
    ordered = []
    for stage in dict.fromkeys(stage for run in runs for stage in run.trained):
        charts: dict[str, Curve] = {}
        for run in runs:
            by_seed = [_all_series(steps) for steps in run.trained.get(stage, [])]
            for about, name in dict.fromkeys(line for seed in by_seed for line in seed):
                key, title, note, unit = about
                chart = charts.setdefault(key, Curve(stage, key, title, note, unit, []))
                chart.series.append(_series(run.name, name, [seed.get((about, name), []) for seed in by_seed]))
        order = ("loss", "score", "validation", "tiers", "thoughts", "entropy", "length")
        ordered += [charts[key] for key in order if key in charts]
    return ordered


def _all_series(steps: Steps) -> dict[tuple[_About, str], list[Point]]:
    points: dict[str, list[Point]] = {}
    for step, metrics in steps.items():
        for key, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(key, []).append((step, float(value)))
    series = {}
    for key in sorted(points):
        if key == LOSS and DPO_MARGINS in points:
            series[_DPO_LOSS, ""] = points[key]
        elif key in _PLAIN:
            series[_PLAIN[key], ""] = points[key]
        elif (match := _VALIDATION.fullmatch(key)) and match[3] == _RIGHT[match[1]]:
            name = (match[2] or _CORRECT[match[1]]).replace("/not_inferable", ", not inferable")
            series[_VALIDATED, _with_kind(name, match, points)] = points[key]
        elif (match := _TRAINING.fullmatch(key)) and match[2] in _TIERS:
            series[_TIER_SHARES, _with_kind(_TIERS[match[2]], match, points)] = points[key]
        elif match and match[2] == "thought" and any(value for _, value in points[key]):
            series[_THOUGHTS, _with_kind(METRICS["thought_share"].title, match, points)] = points[key]
    return series


def _with_kind(name: str, key_match: re.Match[str], keys: Iterable[str]) -> str:
    """The name of a series, prefixed with its kind of row if the run has rows of several kinds."""
    kinds = {match[1] for key in keys if (match := key_match.re.fullmatch(key))}
    return f"{key_match[1]}: {name}" if len(kinds) > 1 else name


def _series(run: str, name: str, seeds: Sequence[list[Point]]) -> Series:
    """One line over all seeds with at most 300 points, each the mean of neighbouring steps, at the last of them."""
    by_step: dict[int, list[float]] = {}
    for step, value in (point for points in seeds for point in points):
        by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    size = math.ceil(len(steps) / _MOST_POINTS)
    windows = [steps[start : start + size] for start in range(0, len(steps), size)]
    points, lowest, highest = (
        [fmean(of(by_step[step]) for step in window) for window in windows] for of in (fmean, min, max)
    )
    last_steps = [window[-1] for window in windows]
    count = sum(map(bool, seeds))
    ranges = list(zip(last_steps, lowest, highest, strict=True)) if count > 1 else []
    return Series(run, name, list(zip(last_steps, points, strict=True)), size, count, ranges)
