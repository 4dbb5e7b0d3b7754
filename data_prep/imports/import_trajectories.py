"""Published trajectories become expert trajectories: respelled, replayed on the real engine, kept where they win.

What comes out is what `collect_expert` writes. Every row that is left out is listed in `rejected.jsonl` with its file,
its number and the reason.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.expert.collect_expert import TRAJECTORIES
from verl_act.data_prep.imports.published import FORMATS, Published, Unreadable, read_published
from verl_act.data_prep.imports.published_tasks import FindTasks, advice, other_benchmark, task_finder
from verl_act.data_prep.imports.replay_published import Candidates, Outcome, Refusal, Replayed, Replayer
from verl_act.data_prep.process_pool import Failure, process_pool
from verl_act.envs.settings import check_env
from verl_act.errors import DataError, OptionError
from verl_act.journal import SavedResults, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.names import one_line
from verl_act.options import Count, check_options
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.process import TASK_TIMEOUT
from verl_act.schema import TRAJECTORY, steps_to_learn, write_rows

REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out. `kind` is the reason in the words that are counted, `reason` says more."""

    file: str
    row: int
    task: str
    kind: str
    reason: str


@writes_folder("import_trajectories", "collect_expert")
def import_trajectories(
    out: str | PathLike[str],
    files: Sequence[str | PathLike[str]],
    env: str,
    *,
    form: str = "eto",
    split: str | None = None,
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    env_settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Manifest:
    """Write `out/trajectories.parquet` (schema TRAJECTORY), `out/rejected.jsonl` and a manifest; return the manifest.

    `form` is one of `published.FORMATS`; rows whose keys are those of WebShop's human demonstrations are read as such,
    whatever it is. `source` of the steps is the format's name. With a `split`, rows of other splits are left out, and
    rows that name no task are compared with its tasks alone. A step counts as inferable where an expert of the
    environment that knows the transcript alone would do the same for a reason in it; in ScienceWorld, which has no such
    expert, where the rules of its gold expert say so; always where there is no expert at all. `workers` processes share
    the rows, and the starts of tasks that rows are compared with, and do not change the result; a row that takes one of
    them more than `task_timeout` seconds, or ends it, is left out too (see `process_pool`, also for 0).

    Raises `DataError` where a file cannot be read or no row is left (the list of rejected rows is then written beside
    `out`, as `<out>.rejected.jsonl`), and `ConfigError` for an unknown format, environment or split.
    """
    started = time.monotonic()
    settings = dict(env_settings or {})
    check_settings(files, env, form=form, split=split, workers=workers, env_settings=settings)
    manifest = make_manifest(
        "import_trajectories",
        settings={"env": env, "format": form, "split": split, "env_settings": settings},
        inputs=list(files),
    )
    with journal(Path(out), key_of(manifest)) as saved:
        finder = task_finder(env, settings, split=split, workers=workers, task_timeout=task_timeout, journal=saved)
        find = _Find(env, settings, finder, split)
        kept: dict[tuple[str, str], Replayed] = {}
        rejected: list[Rejected] = []
        looks: Counter[str] = Counter()
        replayer = Replayer(env, settings, form)
        with process_pool(replayer, workers, task_timeout) as replay:
            for index, path in enumerate(files):
                rows = list(read_published(Path(path), form))
                known = SavedResults[Outcome](saved, f"rows {index}", Outcome)
                outcomes = tqdm(
                    replay(map(find, rows), known), one_line(Path(path).name), len(rows), disable=not progress
                )
                for row, outcome in zip(rows, outcomes, strict=True):
                    if isinstance(outcome, Failure):
                        assert isinstance(row, Published)
                        outcome = replayer.failed(row, outcome)
                    if isinstance(outcome, Replayed):
                        first = outcome.steps[0]
                        if kept.setdefault((first.split, first.task_id), outcome) is outcome:
                            continue
                        outcome = Refusal("another row of this task is kept", first.task_id)
                    task = row.task if isinstance(row, Published) else ""
                    if isinstance(row, Unreadable) and row.looks_like:
                        looks[f"the format {row.looks_like!r}, not {form!r}: pass --format {row.looks_like}"] += 1
                    elif isinstance(row, Published) and (other := other_benchmark(env, row)):
                        looks[f"{other}, not {env}: pass the environment {other}"] += 1
                    rejected.append(Rejected(str(path), row.row, task, outcome.kind, outcome.reason))
        kinds = dict(sorted(Counter(row.kind for row in rejected).items()))
        beside = Path(out).resolve().with_name(f"{Path(out).resolve().name}.{REJECTED}")
        if not kept:
            saved.clear()
            told = f"{_misfit(looks, len(rejected))}none of {len(rejected)} rows is left of {_names(files)}"
            if not rejected:
                raise DataError(f"{told}: there is nothing in them. Download or write them again.")
            beside.parent.mkdir(parents=True, exist_ok=True)
            _write_list(beside, rejected)
            counted = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
            raise DataError(f"{told} ({counted}). {_first_reasons(rejected)} All are listed in {beside}.")
        steps = [step for replayed in kept.values() for step in replayed.steps]
        manifest = replace(
            manifest,
            counts={
                "rows": len(kept) + len(rejected),
                "trajectories": len(kept),
                "steps": len(steps),
                "states_expert_inadmissible": len(steps) - len(steps_to_learn(steps)),
                "thoughts_left_out": sum(replayed.thoughts_left_out for replayed in kept.values()),
                "rejected": kinds,
            },
            seconds=round(time.monotonic() - started, 1),
        )
        with atomic_folder(out) as folder:
            write_rows(folder / TRAJECTORIES, [step.to_row() for step in steps], TRAJECTORY)
            _write_list(folder / REJECTED, rejected)
            write_manifest(folder, manifest)
        beside.unlink(missing_ok=True)  # of an earlier try, which left nothing
    return manifest


def check_settings(
    files: Sequence[str | PathLike[str]],
    env: str,
    *,
    form: str = "eto",
    split: str | None = None,
    workers: Count = 1,
    env_settings: Mapping[str, Any] | None = None,
) -> None:
    """Raise `ConfigError` for a setting that cannot work, `DataError` for a file that does not exist."""
    check_options(check_settings, {"workers": workers})
    check_env(env, env_settings or {}, [] if split is None else [split])
    if form not in FORMATS:
        raise OptionError("format", f"is {form!r}; the formats are {', '.join(FORMATS)}.")
    if missing := [str(file) for file in files if not Path(file).is_file()]:
        raise DataError(f"{', '.join(missing)}: no such file of trajectories.")


@dataclass(frozen=True, slots=True)
class _Find:
    """The tasks that a row may be about, of the split that is wanted."""

    env: str
    settings: Mapping[str, Any]
    tasks_of: FindTasks
    split: str | None

    def __call__(self, row: Published | Unreadable) -> Candidates | Refusal:
        if isinstance(row, Unreadable):
            return Refusal("not in this format", row.reason)
        if other := other_benchmark(self.env, row):
            return Refusal("of another benchmark", f"it looks like {other}, not {self.env}")
        if not (tasks := self.tasks_of(row)):
            sought = row.task or " ".join(row.instruction.split())[:100]
            told = advice(self.env, self.settings, row, found=False, split=self.split)
            return Refusal("no such task in these data", f"{sought} ({told})" if told else sought)
        if not (wanted := [task for task in tasks if self.split in (None, task.split)]):
            return Refusal("of another split", f"not of {self.split}")
        return row, wanted


def _write_list(path: Path, rejected: Sequence[Rejected]) -> None:
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejected), encoding="utf-8")


def _names(files: Sequence[str | PathLike[str]]) -> str:
    return ", ".join(map(str, files))


def _misfit(looks: Counter[str], rows: int) -> str:
    """What most of the rows look like, where that is not what they were taken for."""
    look, count = (looks.most_common(1) or [("", 0)])[0]
    return f"{count} of {rows} rows look like {look}; " if 2 * count > rows else ""


def _first_reasons(rejected: Sequence[Rejected]) -> str:
    return "The first: " + "; ".join(f"row {row.row}: {row.reason}" for row in rejected[:3]) + "."
