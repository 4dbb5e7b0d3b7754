"""The method table of a comparison over seeds: what `compare-methods` wrote, arranged for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_act.evaluate.methods import mean_seconds, steps_in_words
from verl_act.evaluate.outcomes import FIGURES
from verl_act.report.read import Run


@dataclass(frozen=True, slots=True)
class MethodCell:
    """Texts of one cell; all empty where a method has no such figure. `clear` marks p below 0.05."""

    value: str = ""
    interval: str = ""
    spread: str = ""
    test: str = ""
    clear: bool = False


@dataclass(frozen=True, slots=True)
class MethodTable:
    """One row a method. `detail` tables, of groups, are folded away."""

    title: str
    split: str
    columns: list[str]
    rows: list[tuple[str, list[MethodCell]]]
    detail: bool


@dataclass(frozen=True, slots=True)
class MethodBudget:
    """What a method was given, and how long it took; minutes are of training, a seed."""

    name: str
    steps: str
    against: str
    seeds: str
    minutes: float
    by_stage: str


def method_tables(runs: Sequence[Run]) -> list[MethodTable]:
    """A table a split with the figures over all items, then those by task type, position and margin."""
    found = []
    for run in runs:
        entries = run.comparison.get("entries", [])
        for split in dict.fromkeys(entry["split"] for entry in entries):
            here = [entry for entry in entries if entry["split"] == split]
            found.append(_table("All figures", split, [entry for entry in here if not entry["group"]], False))
            for figure in dict.fromkeys(entry["figure"] for entry in here if entry["group"]):
                part = [entry for entry in here if entry["figure"] == figure and entry["group"]]
                found.append(_table(FIGURES[figure].title, split, part, True))
    return found


def method_budgets(runs: Sequence[Run]) -> list[MethodBudget]:
    """In the recipe's order."""
    found = []
    for run in runs:
        for name, method in run.comparison.get("methods", {}).items():
            times = mean_seconds(method["seconds"])
            training = sum(seconds for stage, seconds in times.items() if stage != "evaluation")
            found.append(
                MethodBudget(
                    name=name,
                    steps=steps_in_words(method["steps"]),
                    against="" if method["against"] == name else method["against"],
                    seeds=", ".join(method["evaluations"]),
                    minutes=training / 60,
                    by_stage=", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items()),
                )
            )
    return found


def _table(title: str, split: str, entries: Sequence[Mapping[str, Any]], detail: bool) -> MethodTable:
    rows: dict[str, dict[str, MethodCell]] = {}
    columns: dict[str, None] = {}
    for entry in entries:
        column = entry["group"].replace("_", " ") if detail else FIGURES[entry["figure"]].title
        columns[column] = None
        rows.setdefault(entry["method"], {})[column] = _cell(entry)
    listed = [(name, [row.get(column, MethodCell()) for column in columns]) for name, row in rows.items()]
    return MethodTable(title, split, list(columns), listed, detail)


def _cell(entry: Mapping[str, Any]) -> MethodCell:
    found, test = entry["estimate"], entry["against"]
    if found["value"] is None:
        return MethodCell()
    share = FIGURES[entry["figure"]].share

    def number(value: float) -> str:
        return f"{100 * value:.1f}%" if share else f"{value:.1f}"

    interval = f"{number(found['low'])}–{number(found['high'])}" if found["low"] is not None else ""
    return MethodCell(
        value=number(found["value"]),
        interval=f"{interval}, n = {found['items']}".removeprefix(", "),
        spread=f"± {number(found['deviation'])} over seeds" if found["deviation"] is not None else "",
        test=f"{_signed(test['difference'], share)}, {_p(test['p'])}" if test else "",
        clear=bool(test and test["p"] < 0.05),
    )


def _signed(difference: float, share: bool) -> str:
    text = f"{100 * difference:+.1f} points" if share else f"{difference:+.1f}"
    return text.replace("-", "−")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
