"""The method tables of comparisons over seeds, from the files that `compare-methods` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_act.evaluate import methods
from verl_act.report.read import Run


@dataclass(frozen=True, slots=True)
class MethodTable:
    """A table of the comparison of `run`, which is empty if only one run has methods."""

    run: str
    table: methods.MethodTable


@dataclass(frozen=True, slots=True)
class MethodBudget:
    """The training budget and time of a method; `minutes` of training per seed. `run`: as in `MethodTable`."""

    run: str
    name: str
    steps: str
    against: str
    seeds: str
    minutes: float
    by_stage: str


def method_tables(runs: Sequence[Run]) -> list[MethodTable]:
    """The tables of all comparisons, as in `methods.md`."""
    return [
        MethodTable(_name(run, runs), table)
        for run in runs
        if run.comparison
        for table in methods.method_tables(run.comparison)
    ]


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


def method_budgets(runs: Sequence[Run]) -> list[MethodBudget]:
    """The budget of every method, in the recipe's order."""
    budgets = []
    for run in runs:
        for name, method in run.comparison.get("methods", {}).items():
            times = methods.mean_seconds(method["seconds"])
            training = sum(seconds for stage, seconds in times.items() if stage != "evaluation")
            budgets.append(
                MethodBudget(
                    run=_name(run, runs),
                    name=name,
                    steps=methods.steps_in_words(method["steps"]),
                    against="; ".join(method["against"]),
                    seeds=", ".join(method["evaluations"]),
                    minutes=training / 60,
                    by_stage=", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items()),
                )
            )
    return budgets


def _name(run: Run, runs: Sequence[Run]) -> str:
    return run.name if sum(bool(other.comparison) for other in runs) > 1 else ""
