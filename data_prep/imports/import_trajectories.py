"""Import published trajectories: respell them, replay them on the real engine, keep those that win.

The output has the format of `collect_expert`. Every rejected row is listed in `rejected.jsonl` with its file, its index
and the reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.expert.collect_expert import Dropped
from verl_act.data_prep.imports.published import Unreadable, formats_of, read_published
from verl_act.data_prep.imports.published_tasks import FindTasks, advice, importer_of, other_benchmark, task_finder
from verl_act.data_prep.imports.replay_published import Candidates, Replayed, ReplayResult, RowReplayer
from verl_act.envs.importer import Published, TrajectoryImporter
from verl_act.envs.process_pool import Failure, process_pool
from verl_act.envs.registry import get_env
from verl_act.envs.settings import check_env, input_folders
from verl_act.errors import DataError, OptionError
from verl_act.journal import SavedResults, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.names import one_line
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.run_folder import TRAJECTORIES
from verl_act.schema import TRAJECTORY, steps_to_learn, write_rows
from verl_act.settings.data import ImportSettings
from verl_act.text_files import write_json_lines

REJECTED = "rejected.jsonl"


@writes_folder("import_trajectories", "collect_expert")
def import_trajectories(settings: ImportSettings, out: str | PathLike[str]) -> Manifest:
    """Write `out/trajectories.parquet` (schema TRAJECTORY), `out/rejected.jsonl` and a manifest; return the manifest.

    The format is `eto`, `early-experience`, `actions` or a format of the environment's importer, with which the rows
    that match it are always read. The format's name becomes the `source` of the steps. With a split, rows of other
    splits are rejected, and rows that name no task are compared only with the tasks of that split.

    Whether a step is inferable is decided by the environment's importer: unless it has rules of its own, a step is if
    the default expert would take the same action for a reason in the transcript, or there is no expert.

    Workers replay the rows and start the tasks that rows are compared with; their number does not change the result. A
    row that takes a worker more than the time limit, or crashes it, is rejected (see `process_pool`, also for 0
    workers).

    Raises `DataError` if a file cannot be read or every row is rejected (the rejected rows are then listed next to
    `out`, in `<out>.rejected.jsonl`), and `ConfigError` for an unknown format, environment or split.
    """
    check_settings(settings)
    env, split, format_name, env_settings = settings.env, settings.split, settings.format, settings.env_settings
    workers, task_timeout = settings.workers, settings.task_timeout
    inputs = [*settings.inputs(), *input_folders(env_settings)]
    manifest = make_manifest("import_trajectories", settings=settings.recorded(), inputs=inputs)
    with journal(out, key_of(manifest)) as saved:
        find = task_finder(env, env_settings, split=split, workers=workers, task_timeout=task_timeout, journal=saved)
        importer = importer_of(env, env_settings)
        kept: dict[tuple[str, str], Replayed] = {}
        rejected: list[dict[str, Any]] = []
        mismatches: Counter[str] = Counter()
        replayer = RowReplayer(env, env_settings, format_name)
        with process_pool(replayer, workers, task_timeout) as replay:
            for index, path in enumerate(settings.files):
                rows = list(read_published(path, format_name, get_env(env).importer))
                jobs = (_candidates(row, importer, find, split) for row in rows)
                saved_results = SavedResults[ReplayResult](saved, f"rows {index}", ReplayResult)
                results = tqdm(replay(jobs, saved_results), f"replaying {one_line(path.name)}", len(rows))
                for row, result in zip(rows, results, strict=True):
                    if isinstance(result, Failure):
                        assert isinstance(row, Published)
                        result = replayer.failed(row, result)
                    if isinstance(result, Replayed):
                        first = result.steps[0]
                        if kept.setdefault((first.split, first.task_id), result) is result:
                            continue
                        result = Dropped("another row of this task is kept", first.task_id)
                    task = row.task if isinstance(row, Published) else ""
                    if isinstance(row, Unreadable) and row.looks_like:
                        mismatches[
                            f"the format {row.looks_like!r}, not {format_name!r}: pass --format {row.looks_like}"
                        ] += 1
                    elif isinstance(row, Published) and (other := other_benchmark(env, row)):
                        mismatches[f"{other}, not {env}: pass the environment {other}"] += 1
                    why = {"kind": result.kind, "reason": result.reason}
                    rejected.append({"file": str(path), "row": row.row, "task": task, **why})
        kinds = dict(sorted(Counter(row["kind"] for row in rejected).items()))
        rejected_path = Path(out).resolve().with_name(f"{Path(out).resolve().name}.{REJECTED}")
        if not kept:
            saved.clear()
            hint, files = _format_hint(mismatches, len(rejected)), ", ".join(map(str, settings.files))
            message = f"{hint}none of the {len(rejected)} rows of {files} can be used"
            if not rejected:
                raise DataError(f"{message}: the files are empty. Download or write them again.")
            rejected_path.parent.mkdir(parents=True, exist_ok=True)
            write_json_lines(rejected_path, rejected)
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            reasons = "; ".join(f"row {row['row']}: {row['reason']}" for row in rejected[:3])
            raise DataError(f"{message} ({counted}). The first: {reasons}. All are listed in {rejected_path}.")
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
            seconds=saved.seconds,
        )
        with atomic_folder(out) as folder:
            write_rows(folder / TRAJECTORIES, [step.to_row() for step in steps], TRAJECTORY)
            write_json_lines(folder / REJECTED, rejected)
            write_manifest(folder, manifest)
        rejected_path.unlink(missing_ok=True)  # written by an earlier run that kept no row
    return manifest


def check_settings(settings: ImportSettings) -> None:
    """Raise `ConfigError` for an invalid setting, `DataError` for a file that does not exist."""
    spec = check_env(settings.env, settings.env_settings, [] if settings.split is None else [settings.split])
    if settings.format not in (formats := formats_of(spec.importer)):
        raise OptionError("format", f"is {settings.format!r}; it must be one of {', '.join(formats)}.")
    if missing := [str(file) for file in settings.files if not file.is_file()]:
        raise DataError(f"{', '.join(missing)}: no such file of trajectories.")


def _candidates(
    row: Published | Unreadable, importer: TrajectoryImporter, find: FindTasks, split: str | None
) -> Candidates | Dropped:
    """The row with the tasks of the requested split that it may have been recorded on."""
    if isinstance(row, Unreadable):
        return Dropped("not in this format", row.reason)
    env = importer.spec.name
    if other := other_benchmark(env, row):
        return Dropped("of another benchmark", f"it looks like {other}, not {env}")
    if not (tasks := find(row)):
        description = row.task or " ".join(row.instruction.split())[:100]
        hint = advice(importer, row, task_known=False, split=split)
        return Dropped("no such task in these data", f"{description} ({hint})" if hint else description)
    if not (candidates := [task for task in tasks if split in (None, task.split)]):
        return Dropped("of another split", f"not of {split}")
    return row, candidates


def _format_hint(mismatches: Counter[str], rows: int) -> str:
    """Name the other format or benchmark that most of the rows look like, if any."""
    likely, count = (mismatches.most_common(1) or [("", 0)])[0]
    return f"{count} of {rows} rows look like {likely}; " if 2 * count > rows else ""
