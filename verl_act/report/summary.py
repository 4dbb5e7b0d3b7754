"""What ran: the overview of a report and its pipeline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_act.evaluate.method_comparison import failures_in_words
from verl_act.evaluate.metric_registry import finished
from verl_act.evaluate.records import EPISODES
from verl_act.report.examples import Examples
from verl_act.report.read import Run, StageRecord, StageState
from verl_act.report.tables import Model
from verl_act.run_folder import ENTROPY, SCORE

_MAIN_COUNTS = ("games", "pairs", "tasks", "trajectories", "steps", "states", "replies", "steps logged")


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One stage of the pipeline. `counts` are flat; `inputs` are (path, SHA-256), paths relative to the run."""

    name: str
    state: str
    created: str
    seconds: float | None
    seed: int | None
    counts: dict[str, Any]
    inputs: list[tuple[str, str]]
    key: str
    command: str
    settings: str
    """As JSON text."""

    @property
    def gist(self) -> dict[str, Any]:
        """The most informative counts, at most three."""
        last = {name: name.rpartition(": ")[2] for name in self.counts if "by task type" not in name}
        main = [name for kind in _MAIN_COUNTS for name in last if last[name] == kind] or list(self.counts)
        return {name: self.counts[name] for name in main[:3]}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run; `first` and `last` are when its first and last stage ended, ISO 8601."""

    name: str
    command: str
    env: str
    model: str
    splits: list[str]
    seeds: list[int]
    first: str
    last: str
    seconds: float
    versions: dict[str, str]
    stages: list[StageSummary]

    @property
    def missing(self) -> list[str]:
        """Stages that are not done."""
        return [stage.name for stage in self.stages if stage.state != StageState.DONE]

    @property
    def longest(self) -> float:
        """Seconds of the longest stage; positive."""
        return max((stage.seconds or 0 for stage in self.stages), default=0) or 1


def summary(run: Run) -> RunSummary:
    """The summary of `run`, from its manifests."""
    manifests = run.manifests
    created = sorted(manifest.created for manifest in manifests if manifest.created)
    settings = [manifest.settings for manifest in manifests]
    splits = list(dict.fromkeys(str(entry["split"]) for entry in settings if entry.get("split")))
    marks = (stage.mark for stage in run.stages if stage.mark is not None)
    return RunSummary(
        name=run.name,
        command=next((_command(mark.command, run.folder) for mark in marks), ""),
        env=next((str(entry["env"]) for entry in settings if entry.get("env")), ""),
        model=_model(run, settings),
        splits=splits
        or sorted({record["split"] for evaluation in run.evaluations for record in evaluation.records[EPISODES]}),
        seeds=run.seeds or sorted({manifest.seed for manifest in manifests if manifest.seed is not None}),
        first=created[0] if created else "",
        last=created[-1] if created else "",
        seconds=sum(stage.seconds or 0 for stage in run.stages),
        versions=_versions(manifest.versions for manifest in manifests),
        stages=[_stage(stage, run) for stage in run.stages],
    )


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


def notes(compared: Sequence[Model], selected: Sequence[Examples], runs: Sequence[Run]) -> list[str]:
    """Notes that a reader needs to interpret the metrics."""
    sentences = [*_not_counted(compared, runs)]
    input_sets = {
        tuple(sorted(manifest.inputs.values())) for model in compared if (manifest := model.evaluation.manifest)
    }
    if len(input_sets) > 1:
        sentences.append(
            "The models were not all evaluated on the same files. Paired tests use the items that both have, by id; "
            "intervals side by side may be about different items."
        )
    templates = {model.evaluation.template for model in compared}
    if len(templates) > 1:
        sentences.append(f"The models were prompted by different templates: {', '.join(sorted(templates))}.")
    questions = [item for group in selected if group.kind != "episodes" for item in group.items]
    if lost := sum(item["goal"] is None for item in questions):
        sentences.append(
            f"For {lost} of {len(questions)} single answers shown, the input files are missing or have changed, so "
            "the replies are shown without their questions."
        )
    if any(run.seeds for run in runs):
        sentences.append(
            "The method tables of a comparison and its learning curves cover all seeds. Everything else on this page, "
            "including the other charts and the answers, is from the first seed of each method."
        )
    all_steps = (step for run in runs for steps in run.metrics.values() for step in steps.values())
    logged = [step for step in all_steps if SCORE in step]  # by RL
    if logged and not any(ENTROPY in step for step in logged):
        sentences.append(
            "There is no entropy curve: verl logs the entropy only if the trainer recomputes the log-probabilities of "
            "the rollouts, which algorithm.rollout_correction.bypass_mode skips."
        )
    return sentences


def _not_counted(compared: Sequence[Model], runs: Sequence[Run]) -> Iterator[str]:
    """Notes about episodes that the tables leave out."""
    for model in compared:
        episodes = model.evaluation.records[EPISODES]
        if failed := len(episodes) - len(finished(episodes)):
            yield (
                f"{failed} of {len(episodes)} episodes of {model.label} ended in an error of the environment and are "
                "not counted."
            )
    for run in runs:
        name = f"{run.name} · " if len(runs) > 1 else ""
        for sentence in failures_in_words(run.comparison.get("methods", {})):
            yield f"Method tables: {name}{sentence}"


def duration(seconds: float | None) -> str:
    """A time span as text."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _stage(stage: StageRecord, run: Run) -> StageSummary:
    made = stage.made or stage.mark
    steps = len(run.metrics.get(stage.name, ()))
    return StageSummary(
        name=stage.name,
        state=stage.state,
        created=made.created if made else "",
        seconds=stage.seconds,
        seed=made.seed if made else None,
        counts={**({"steps logged": steps} if steps else {}), **_flat(made.counts if made else {})},
        inputs=[(_relative(path, run.folder), sha) for path, sha in (made.inputs if made else {}).items()],
        key=made.key() if made else "",
        command=_command(made.command, run.folder) if made else "",
        settings=json.dumps(made.settings, indent=2, ensure_ascii=False) if made else "",
    )


def _model(run: Run, settings: Sequence[Mapping[str, Any]]) -> str:
    initial = next((evaluation.model for evaluation in run.evaluations if evaluation.name == "initial"), "")
    named = [
        initial,
        *(str(entry.get("model") or "") for entry in settings),
        *(evaluation.model for evaluation in run.evaluations),
    ]
    return next((_relative(name, run.folder) for name in named if name), "")


def _versions(by_stage: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tool -> version; all versions if the stages differ."""
    merged: dict[str, list[str]] = {}
    for versions in by_stage:
        for tool, version in versions.items():
            if version not in merged.setdefault(tool, []):
                merged[tool].append(version)
    return {tool: ", ".join(versions) for tool, versions in merged.items()}


def _flat(counts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in counts.items():
        name = f"{prefix}{key}".replace("_", " ")
        flat |= _flat(value, f"{name}: ") if isinstance(value, Mapping) else {name: value}
    return flat


def _relative(path: str, folder: Path) -> str:
    """`path` relative to the run, even if the run was moved or named by a relative path."""
    if Path(path).is_relative_to(folder):
        return str(Path(path).relative_to(folder))
    parts = Path(path).parts
    for index, name in enumerate(parts):
        inside = Path(*parts[index + 1 :])
        if name == folder.name and inside.parts and (folder / inside).exists():
            return str(inside)
    return path


def _command(command: str, folder: Path) -> str:
    """The command as typed, with paths relative to the run."""
    program, _, rest = command.partition(" ")
    return f"{program} {rest.replace(f'{folder}/', '').replace(shlex.quote(str(folder)), '.')}".strip()
