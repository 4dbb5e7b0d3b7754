"""Every metric of an evaluation: title, unit, direction, and how it is computed, averaged and tested.

This is the only place that knows them. To add a metric, add an entry to `METRICS`: `metrics.json`, the tables of
`eval compare` and `dev methods-table`, the report and its charts then have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from verl_act.errors import DataError
from verl_act.evaluate.records import CHOICES, EPISODES, NEXT_ACTIONS, RATIONALES, REASONING, read_records
from verl_act.evaluate.statistics import Estimate, ItemOutcome, estimate, mean_outcome
from verl_act.rollout.episode import End
from verl_act.settings.evaluation import Rationale

Record = Mapping[str, Any]
MetricItems = dict[tuple[str, str, str], dict[str, ItemOutcome]]
"""(split, metric, group) -> item -> its outcome; the group is empty for all items. In the order of the tables."""

HOW_TO_READ = (
    "A share has Wilson's 95% interval, with the effective number of independent items given the spread between tasks. "
    "All other metrics have a bootstrap interval over tasks, since the states of one game are not independent (answers "
    "that do not name their task count as independent). A change is on the same items, with its 95% interval over "
    "tasks."
)
"""How metrics are averaged, for readers of any table."""
LOOP_LENGTH = 3
"""How many times a failed action must be repeated to count as a loop (paper section 5)."""


@dataclass(frozen=True, slots=True)
class Section:
    """One kind of evaluation: its title, the file of its records, and the key of an item's id."""

    title: str
    file: str
    item: str


SECTIONS: dict[str, Section] = {
    "episodes": Section("Episodes", EPISODES, "task_id"),
    "next_action": Section("Next actions", NEXT_ACTIONS, "state_id"),
    "choice": Section("Choices", CHOICES, "pair_id"),
    "reasoning": Section("General reasoning", REASONING, "item"),
    "rationale": Section("Rationale intervention", RATIONALES, "pair_id"),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric over the items of a section.

    `average`: a `share` is the mean of 0 or 1 per item, with Wilson's interval and McNemar's exact test; a `mean` is
    one of any number per item, and a `ratio` is the sum of `amount` over the sum of `size`, both with a bootstrap
    interval over tasks and a test by random sign flips (see `evaluate.statistics`).
    `direction`: 1 if higher is better, -1 if lower is better, 0 if neither.
    `tested`: methods are tested on it; any other metric has intervals only, so that a table has few tests.
    `optional`: a table in which it is 0 everywhere leaves it out.
    `group`: metrics with it have one result per group, in the order of `groups` and then by name.
    A record whose `amount` is None is left out.
    """

    section: str
    title: str
    amount: Callable[[Record], float | None]
    size: Callable[[Record], float] = lambda record: 1.0
    unit: Literal["share", "reward", "turns", "tokens"] = "share"
    direction: Literal[-1, 0, 1] = 1
    average: Literal["share", "mean", "ratio"] = "share"
    tested: bool = False
    optional: bool = False
    note: str = ""
    group: Callable[[Record], str] | None = None
    groups: Sequence[str] = ()

    @property
    def full_title(self) -> str:
        """The title with its note."""
        return f"{self.title} ({self.note})" if self.note else self.title

    def estimate(self, seeds: Sequence[Mapping[str, ItemOutcome]]) -> Estimate:
        """The metric with its interval; `seeds` has the items of each seed."""
        return estimate(seeds, self.average == "share")

    def format(self, value: float | None) -> str:
        """A value as text; shares in percent, all others with three significant digits."""
        return format_value(value, self.unit)

    def format_interval(self, low: float | None, high: float | None) -> str:
        """`low–high`, or nothing without an interval."""
        if low is None or high is None:
            return ""
        return f"{self.format(low).removesuffix('%')}–{self.format(high)}"

    def format_estimate(self, result: Estimate) -> str:
        """The value, with its interval if there is one."""
        interval = self.format_interval(result.low, result.high)
        return f"{self.format(result.value)} [{interval}]" if interval else self.format(result.value)

    def format_change(self, difference: float, low: float | None = None, high: float | None = None) -> str:
        """A signed difference with its interval, in percentage points for shares."""

        def signed(value: float) -> str:
            return (f"{100 * value:+.1f}" if self.unit == "share" else f"{value:+.3g}").replace("-", "−")

        points = " points" if self.unit == "share" else ""
        interval = "" if low is None or high is None else f" [{signed(low)}, {signed(high)}]"
        return f"{signed(difference)}{points}{interval}"


def format_value(value: float | None, unit: str) -> str:
    """A value as text: a dash for None, percent for the unit `share`, else three significant digits."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _column(name: str) -> Callable[[Record], float | None]:
    """The value of a column; None for a record without it."""

    def amount(record: Record) -> float | None:
        value = record.get(name)
        return None if value is None else float(value)

    return amount


def _if(condition: str, name: str) -> Callable[[Record], float | None]:
    """The value of a column, of records with a true `condition` only."""
    return lambda record: float(record[name]) if record.get(condition) else None


def _is_false(name: str) -> Callable[[Record], float]:
    return lambda record: float(not record[name])


def _first_excess(record: Record) -> float:
    """1 if the first candidate was chosen, else 0, minus what chance gives; 0 if none was named."""
    return float(record["chosen"] == 0) - 1 / len(record["candidates"]) if record["named_a_candidate"] else 0.0


_POSITIONS = tuple(f"expert's action {position}" for position in ("first", "second", "third", "after the third"))
_MARGINS = ((0, "≤ 0"), (1, "1"), (2, "2"), (4, "3–4"), (8, "5–8"))
_LARGE_MARGIN, _NO_MARGIN = "9+", "unknown"
_THOUGHTS = {
    Rationale.FREE: "free thought",
    Rationale.NONE: "no thought",
    Rationale.WRONG: "wrong thought",
}
_INFERABLE = "inferable states"
_TURNS = "of an episode's turns"
_PROBE = "of shallow features, not the model"


def _position(record: Record) -> str:
    return _POSITIONS[min(int(record["expert_position"]), len(_POSITIONS) - 1)]


def _margin(record: Record) -> str:
    margin = record["margin"]
    if margin is None:
        return _NO_MARGIN
    return next((name for most, name in _MARGINS if margin <= most), _LARGE_MARGIN)


_mean = partial(Metric, "episodes", average="mean", direction=-1)
"""A mean over episodes, which is better if lower."""


def _rationale(title: str, question: str, column: str, direction: Literal[1, 0]) -> Metric:
    """The share of answers to `question` with a true `column`, by the thought before them."""

    def amount(record: Record) -> float | None:
        return float(record[column]) if record["question"] == question else None

    return Metric(
        "rationale",
        title,
        amount,
        direction=direction,
        group=lambda record: _THOUGHTS[record["rationale"]],
        groups=tuple(_THOUGHTS.values()),
    )


METRICS: dict[str, Metric] = {
    "success": Metric("episodes", "Tasks solved", _column("success"), tested=True),
    "success_by_type": Metric(
        "episodes", "Tasks solved by type", _column("success"), group=lambda record: str(record["task_type"])
    ),
    "score": _mean(
        "Score", _column("score"), unit="reward", direction=1, tested=True, note="sum of an episode's rewards"
    ),
    "loops": Metric(
        "episodes",
        "Episodes with a loop",
        lambda record: float(record["longest_failed_repeat"] >= LOOP_LENGTH),
        direction=-1,
        note=f"one failed action {LOOP_LENGTH} times or more in a row",
    ),
    "inadmissible_share": _mean("Inadmissible actions", _column("inadmissible_share"), note=_TURNS),
    "malformed_share": _mean("Malformed replies", _column("malformed_share"), note=_TURNS),
    "thought_share": _mean("Replies with a thought", _column("thought_share"), direction=0, optional=True, note=_TURNS),
    "longest_failed_repeat": _mean("Longest run of one failed action", _column("longest_failed_repeat"), unit="turns"),
    "steps": _mean("Turns an episode", _column("steps"), unit="turns", note="solved or not"),
    "steps_to_success": Metric(
        "episodes",
        "Turns to the goal",
        lambda record: record["steps"] * float(record["success"]),
        lambda record: float(record["success"]),
        unit="turns",
        direction=-1,
        average="ratio",
        note="solved episodes only",
    ),
    "reply_length": Metric(
        "episodes",
        "Reply length",
        _column("reply_tokens"),
        lambda record: record["steps"],
        unit="tokens",
        direction=0,
        average="ratio",
        note="tokens a turn",
    ),
    "useful_tokens": Metric(
        "episodes",
        "Useful tokens",
        _column("useful_tokens"),
        lambda record: record["reply_tokens"],
        average="ratio",
        note="in replies that gave an admissible action",
    ),
    "next_action": Metric("next_action", "Expert's next action", _column("right"), tested=True, note="all states"),
    "next_action_inferable": Metric("next_action", "Expert's next action", _if("inferable", "right"), note=_INFERABLE),
    "next_action_admissible": Metric("next_action", "Admissible next action", _column("admissible")),
    "next_action_malformed": Metric("next_action", "Malformed next action", _is_false("well_formed"), direction=-1),
    "next_action_thought": Metric(
        "next_action", "Next action with a thought", _column("thought"), direction=0, optional=True
    ),
    "choice": Metric("choice", "Better action chosen", _column("right"), tested=True, note="all states"),
    "choice_inferable": Metric("choice", "Better action chosen", _if("inferable", "right"), note=_INFERABLE),
    "choice_hard": Metric(
        "choice", "Better action chosen", _if("hard", "right"), note="hard pairs: one verb and length, an unsure probe"
    ),
    "choice_probe": Metric(
        "choice", "Better action named by a probe", _column("probe"), direction=0, average="mean", note=_PROBE
    ),
    "choice_probe_hard": Metric(
        "choice",
        "Better action named by a probe",
        _if("hard", "probe"),
        direction=0,
        average="mean",
        note=f"{_PROBE}, hard pairs",
    ),
    "choice_named": Metric(
        "choice", "A candidate named", _column("named_a_candidate"), note="the text or the label of one of them"
    ),
    "choice_of_named_inferable": Metric(
        "choice",
        "Better action chosen where one was named",
        _if("inferable", "right"),
        lambda record: float(record["named_a_candidate"]),
        average="ratio",
        note=_INFERABLE,
    ),
    "choice_consistent": Metric(
        "choice", "Same action chosen in every order", _column("consistent"), note="consistency"
    ),
    "position_bias": Metric(
        "choice",
        "First candidate chosen more often than by chance",
        _first_excess,
        lambda record: float(record["named_a_candidate"]),
        direction=0,
        average="ratio",
        note="position bias of the choices that name one",
    ),
    "choice_malformed": Metric("choice", "Malformed choice", _is_false("well_formed"), direction=-1),
    "choice_thought": Metric("choice", "Choice with a thought", _column("thought"), direction=0, optional=True),
    "choice_by_position": Metric(
        "choice", "Better action chosen by its position", _column("right"), group=_position, groups=_POSITIONS
    ),
    "choice_by_margin": Metric(
        "choice",
        "Better action chosen by margin",
        _column("right"),
        group=_margin,
        groups=(*(name for _, name in _MARGINS), _LARGE_MARGIN, _NO_MARGIN),
    ),
    "reasoning": Metric("reasoning", "Verified answers", _column("right"), tested=True),
    "rationale_choice": _rationale("Better action chosen by thought", "choice", "right", 1),
    "rationale_choice_follows": _rationale("Action of the wrong thought chosen", "choice", "follows", 0),
    "rationale_choice_thought": _rationale("Choice with a thought by intervention", "choice", "thought", 0),
    "rationale_next_action": _rationale("Expert's next action by thought", "next_action", "right", 1),
    "rationale_next_action_follows": _rationale("Action of the wrong thought taken", "next_action", "follows", 0),
    "rationale_next_action_thought": _rationale(
        "Next action with a thought by intervention", "next_action", "thought", 0
    ),
}


def finished(records: Iterable[Record]) -> list[Record]:
    """Records without the episodes that ended in an environment error, which say nothing about the model."""
    return [record for record in records if record.get("end") != End.ERROR]


def _in_all_samples(records: Sequence[Record]) -> list[Record]:
    """Records without the tasks that have an episode that `finished` leaves out."""
    failed = {(record["split"], record["task_id"]) for record in records if record.get("end") == End.ERROR}
    return [record for record in records if not failed or (record["split"], record.get("task_id")) not in failed]


def read_metrics(folder: Path) -> MetricItems:
    """All metrics of the evaluation in `folder`, from its finished episodes and its answers.

    Raises `DataError` if an item occurs twice or a file is damaged.
    """
    return metric_items(read_records(folder), str(folder))


def metric_items(records: Mapping[str, Sequence[Record]], source: str = "an evaluation") -> MetricItems:
    """All metrics of `records` (file name -> records). The orders and samplings of an item are one, with
    their mean. A task is left out if one of its samplings ended in an environment error.

    Raises `DataError` naming `source` if an item occurs twice.
    """
    outcomes: dict[tuple[str, str, str], dict[str, dict[tuple[int, int], ItemOutcome]]] = {}
    counted = {file: _in_all_samples(rows) for file, rows in records.items()}
    for name, metric in METRICS.items():
        section = SECTIONS[metric.section]
        for record in counted.get(section.file, ()):
            if (amount := metric.amount(record)) is None:
                continue
            split, group = record["split"], metric.group(record) if metric.group else ""
            item, order = f"{split}/{record[section.item]}", (record.get("order", 0), record.get("sample", 0))
            by_order = outcomes.setdefault((split, name, group), {}).setdefault(item, {})
            if order in by_order:
                raise DataError(f"{source}: item {item} of {section.file} is duplicated; run the evaluation again.")
            task = f"{split}/{record['task_id']}" if "task_id" in record else None
            by_order[order] = ItemOutcome(float(amount), float(metric.size(record)), task)
    return {
        key: {item: mean_outcome(list(by_order.values())) for item, by_order in outcomes[key].items()}
        for key in sorted(outcomes, key=table_order)
    }


def table_order(key: tuple[str, str, str]) -> tuple[str, int, int, str]:
    """Sort key of (split, metric, group): by split, then in the order of `METRICS` and of the metric's groups."""
    split, name, group = key
    known = METRICS[name].groups
    return split, list(METRICS).index(name), list(known).index(group) if group in known else len(known), group


def summary(records: Mapping[str, Sequence[Record]], source: str = "an evaluation") -> dict[str, dict[str, Any]]:
    """Split -> metric -> `{"value", "low", "high", "items"}`, or group -> such an entry.

    With several samplings, entries also have `by_sample` and its `deviation`. `records` and `source` are as in
    `metric_items`.
    """
    samples = sorted({record.get("sample", 0) for rows in records.values() for record in rows}) or [0]
    by_sample = [
        metric_items(
            {file: [row for row in rows if row.get("sample", 0) == sample] for file, rows in records.items()}, source
        )
        for sample in samples
    ]
    by_split: dict[str, dict[str, Any]] = {}
    for key in sorted({key for items in by_sample for key in items}, key=table_order):
        split, name, group = key
        result = METRICS[name].estimate([items.get(key, {}) for items in by_sample])
        entry: dict[str, Any] = {
            "value": result.value,
            "low": result.low,
            "high": result.high,
            "items": result.items,
        }
        if len(samples) > 1:
            entry |= {"by_sample": result.by_seed, "deviation": result.deviation}
        metrics = by_split.setdefault(split, {})
        if METRICS[name].group:
            metrics.setdefault(name, {})[group] = entry
        else:
            metrics[name] = entry
    return by_split
