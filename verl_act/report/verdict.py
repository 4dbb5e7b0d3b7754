"""The verdict of a report: what changed, by how much, and how sure that is. Also as the last words of a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from verl_act.evaluate.method_comparison import format_p
from verl_act.evaluate.metric_registry import METRICS, read_metrics
from verl_act.evaluate.statistics import SIGNIFICANT
from verl_act.evaluate.table import WIDTH, Headline, headlines, text_table
from verl_act.names import one_line
from verl_act.report.read import Run, read_run
from verl_act.report.tables import Model, models
from verl_act.run_folder import RunFolder

_MOST_CLEAR = 8
_ONE_TRAINING = "Intervals and tests are about other tasks; another training (seed) may come out differently."


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sentence` is the answer in one sentence; `details` are the clear changes and what limits them."""

    sentence: str
    details: list[str]


def verdict(runs: Sequence[Run], compared: Sequence[Model]) -> Verdict:
    """The verdict on `runs`: of comparisons by their corrected tests, of other runs by their last models."""
    if comparisons := [run.comparison for run in runs if run.comparison]:
        return _of_methods(comparisons)
    last = [model for run in runs for model in [m for m in compared if m.run == run.name][-1:]]
    changed = [model for model in last if model is not compared[0]]
    if not compared:
        return Verdict("No model has been evaluated yet.", [])
    if not changed:
        return Verdict(f"Only {compared[0].label} has been evaluated, so there is nothing to compare it with.", [])
    verdicts = [_of_change(compared[0], model) for model in changed]
    sentence = " ".join(each.sentence for each in verdicts)
    return Verdict(sentence, [detail for each in verdicts for detail in each.details] + [_ONE_TRAINING])


def _of_change(first: Model, last: Model) -> Verdict:
    rows = headlines([[first.items], [last.items]])
    clear = [row for row in rows if row.change is not None and row.change.is_clear]
    better, worse = ([row for row in clear if _gain(row) * sign > 0] for sign in (1, -1))
    unclear = [row.title for row in rows if row.change is not None and row not in clear]
    names = f"From {first.label} to {last.label}"
    if not clear:
        return Verdict(
            f"{names}, nothing is sure: no change is larger than its uncertainty over tasks.", _unclear(unclear)
        )
    parts = [
        f"{len(rows_)} of {len(rows)} metrics {word}: {', '.join(row.title for row in rows_)}"
        for word, rows_ in (("improved", better), ("got worse", worse))
        if rows_
    ]
    return Verdict(f"{names}, {'; '.join(parts)}.", [*map(_change_in_words, clear), *_unclear(unclear)])


def _gain(row: Headline) -> float:
    return 0.0 if row.change is None else METRICS[row.metric].direction * row.change.difference


def _change_in_words(row: Headline) -> str:
    metric, change, (before, after) = METRICS[row.metric], row.change, row.estimates
    assert change is not None
    moved = "rose" if change.difference > 0 else "fell"
    text = metric.format_change(change.difference, change.low, change.high)
    return f"{row.title} {moved} from {metric.format(before.value)} to {metric.format(after.value)}: {text}."


def _unclear(titles: Sequence[str]) -> list[str]:
    return [f"Not clear: {', '.join(titles)}."] if titles else []


def _of_methods(comparisons: Sequence[Mapping[str, Any]]) -> Verdict:
    tests = [
        (entry, other, change)
        for comparison in comparisons
        for entry in comparison["entries"]
        for other, change in entry["against"].items()
        if change["p"] is not None
    ]
    if not tests:
        return Verdict(
            "Nothing is sure about the methods: none was trained with several seeds, or none is compared with another.",
            ["The tables show intervals over tasks. Train at least three seeds to compare methods."],
        )
    clear = sorted((test for test in tests if test[2]["p"] < SIGNIFICANT), key=lambda test: test[2]["p"])
    if not clear:
        return Verdict(
            f"Nothing is sure: of {len(tests)} tested differences between methods, none is clear "
            "(over tasks and seeds, after Holm's correction).",
            [],
        )
    details = [_test_in_words(*test) for test in clear[:_MOST_CLEAR]]
    if len(clear) > _MOST_CLEAR:
        details.append(f"{len(clear) - _MOST_CLEAR} more are marked in the tables.")
    return Verdict(
        f"{len(clear)} of {len(tests)} tested differences between methods are clear "
        "(over tasks and seeds, after Holm's correction).",
        details,
    )


def _test_in_words(entry: Mapping[str, Any], other: str, change: Mapping[str, Any]) -> str:
    metric = METRICS[entry["metric"]]
    better = "better" if change["difference"] * metric.direction > 0 else "worse"
    text = metric.format_change(change["difference"], change["low"], change["high"])
    what = f"{metric.title}, {entry['split']}"
    return f"{entry['method']} is {better} than {other}: {what}, {text}, {format_p(change['p'])}."


def summary_text(folder: str | os.PathLike[str]) -> str:
    """A run in a few lines of at most 100 columns: the rows that matter, the verdict, and the path of the report, if
    there is one, which may be longer. Raises `DataError` if a file is damaged.
    """
    path = Path(folder).absolute()
    run = read_run(path, path.name)
    compared = models([run])
    if run.comparison:
        names = list(run.comparison["methods"])
        seeds = (method["evaluations"].values() for method in run.comparison["methods"].values())
        items = [[read_metrics(path / evaluation) for evaluation in folders] for folders in seeds]
    else:
        names, items = [model.label for model in compared], [[model.items] for model in compared]
    result = verdict([run], compared)
    lines = [fill(one_line(text), WIDTH) for text in (result.sentence, *result.details)]
    if (page := RunFolder(path).report).is_file():
        lines.append(f"Report: {min(str(page), os.path.relpath(page), key=len)}")
    return "\n".join([*([text_table(names, headlines(items))] if items else []), *lines]) + "\n"
