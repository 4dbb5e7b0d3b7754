"""The method tables of comparisons over seeds, from the files that `dev methods-table` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verl_act.evaluate import method_comparison as comparison
from verl_act.evaluate.method_comparison import MethodBudget, MethodTable
from verl_act.report.read import Run


def method_tables(runs: Sequence[Run]) -> list[MethodTable]:
    """The tables of all comparisons, as in `methods.md`."""
    return [
        replace(table, run=name) for run, name in _names(runs) for table in comparison.method_tables(run.comparison)
    ]


def method_budgets(runs: Sequence[Run]) -> list[MethodBudget]:
    """The budgets of all methods."""
    return [replace(row, run=name) for run, name in _names(runs) for row in comparison.method_budgets(run.comparison)]


def methods_start(runs: Sequence[Run]) -> str:
    """One sentence about the model that the methods start from; empty without a comparison."""
    compared = [run for run in runs if run.comparison]
    models = [_initial_model(run) for run in compared]
    names = [name for name, _ in models]
    if not compared:
        return ""
    alike = all(names) and len({sha or name for name, sha in models}) == 1
    if len(compared) == 1:
        if alike:
            return f"All methods start from the same model ({names[0]}) and share the data."
        return "All methods share the data; the model that they start from is not recorded."
    if alike:
        model = f"All methods start from the same model ({names[0]})."
    else:
        known = [f"{name} (SHA-256 {sha[:12]})" if sha else name for name, sha in models]
        parts = (
            f"those of {run.name} from {name or 'one not recorded'}" for run, name in zip(compared, known, strict=True)
        )
        model = f"The methods are not known to start from the same model: {', '.join(parts)}."
    return f"{model} Those of one comparison share the data."


def _initial_model(run: Run) -> tuple[str, str]:
    """(name, hash of its files); either is empty if unknown."""
    name = run.comparison.get("initial_model", "")
    manifests = (
        evaluation.manifest for evaluation in run.evaluations if evaluation.model == name and evaluation.manifest
    )
    hashes = (manifest.settings.get("model_digest") for manifest in manifests)
    return name, next(filter(None, hashes), "")


def _names(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """The runs with a comparison, and their names where there are several."""
    compared = [run for run in runs if run.comparison]
    return [(run, run.name if len(compared) > 1 else "") for run in compared]
