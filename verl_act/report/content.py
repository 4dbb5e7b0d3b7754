"""The content of a report, which the HTML page, the Markdown and the JSON all show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from verl_act.evaluate.method_comparison import MethodBudget, MethodTable, method_budgets, method_tables
from verl_act.report.calibration import Calibration, calibrations
from verl_act.report.curves import Curve, curves
from verl_act.report.examples import Examples, Texts, examples
from verl_act.report.read import Run
from verl_act.report.summary import RunSummary, methods_start, notes, summary
from verl_act.report.tables import Block, Group, Model, blocks, groups, models
from verl_act.report.verdict import Verdict, verdict

VERSION = 3
"""Version of the JSON file's format."""
_IN_JSON = (
    *("title", "notes", "methods_start", "comparisons", "method_budgets", "blocks"),
    *("task_types", "positions", "margins", "calibrations", "curves"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """Everything a report shows. `examples` refer to `texts` by index."""

    title: str
    runs: list[RunSummary]
    notes: list[str]
    methods_start: str
    verdict: Verdict
    method_budgets: list[MethodBudget]
    method_tables: list[MethodTable]
    comparisons: dict[str, dict[str, Any]]
    """Run -> its `methods.json`."""
    models: list[Model]
    blocks: list[Block]
    task_types: list[Group]
    positions: list[Group]
    margins: list[Group]
    calibrations: list[Calibration]
    curves: list[Curve]
    examples: list[Examples]
    texts: list[str]

    def as_json(self) -> dict[str, Any]:
        """The metrics, without the examples: those are in the files of the evaluations."""
        fields = {name: _plain(getattr(self, name)) for name in _IN_JSON}
        evaluated = ("name", "model", "template", "sampling")
        compared = [
            {"label": model.label, "run": model.run, **{key: getattr(model.evaluation, key) for key in evaluated}}
            for model in self.models
        ]
        return {
            "version": VERSION,
            "verdict": asdict(self.verdict),
            **fields,
            "runs": [{**asdict(run), "missing": run.missing} for run in self.runs],
            "models": compared,
            "examples": {group.kind: {"shown": len(group.items), "total": group.total} for group in self.examples},
        }


def content(runs: Sequence[Run], most: int) -> Content:
    """The report of `runs`, with at most `most` examples of each kind."""
    compared = models(runs)
    texts = Texts()
    selected = examples(runs, compared, most, texts)
    names = ", ".join(run.name for run in runs)
    comparisons = {run.name: run.comparison for run in runs if run.comparison}
    of_run = [(name if len(comparisons) > 1 else "", comparison) for name, comparison in comparisons.items()]
    return Content(
        title=f"Comparison of {names}" if len(runs) > 1 else f"Run {names}",
        runs=[summary(run) for run in runs],
        notes=notes(compared, selected, runs),
        methods_start=methods_start(runs),
        verdict=verdict(runs, compared),
        method_budgets=[replace(row, run=name) for name, whole in of_run for row in method_budgets(whole)],
        method_tables=[replace(table, run=name) for name, whole in of_run for table in method_tables(whole)],
        comparisons=comparisons,
        models=compared,
        blocks=blocks(compared),
        task_types=groups(compared, "success_by_type"),
        positions=groups(compared, "choice_by_position"),
        margins=groups(compared, "choice_by_margin"),
        calibrations=calibrations(compared),
        curves=curves(runs),
        examples=selected,
        texts=texts.listed,
    )


def _plain(value: Any) -> Any:
    return [entry if isinstance(entry, str) else asdict(entry) for entry in value] if isinstance(value, list) else value
