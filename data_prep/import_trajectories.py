"""Published trajectories become expert trajectories: respelled, replayed on the real engine, kept where they win.

What comes out is what `collect_expert` writes. Every row that is left out is listed in `rejected.jsonl` with its file,
its number and the reason.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.collect_expert import TRAJECTORIES, play, replays
from verl_act.data_prep.published import Published, Unreadable, read_published
from verl_act.data_prep.published_tasks import FindTasks, Spell, speller, task_finder
from verl_act.envs.base import Environment, EnvSpec, Expert, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.manifest import Manifest, atomic_folder, make_manifest, write_manifest
from verl_act.schema import TRAJECTORY, Context, Step, write_rows

REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out. `kind` is the reason in the words that are counted, `reason` says more."""

    file: str
    row: int
    task: str
    kind: str
    reason: str


def import_trajectories(
    out: str | PathLike[str],
    files: Sequence[str | PathLike[str]],
    env: str,
    *,
    form: str = "eto",
    split: str | None = None,
    env_settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Manifest:
    """Write `out/trajectories.parquet` (schema TRAJECTORY), `out/rejected.jsonl` and a manifest; return the manifest.

    `form` is one of `published.FORMATS`. With a `split`, rows of other splits are left out. `source` of the steps is
    the format's name. A step counts as inferable where an expert of the environment that knows the transcript alone
    would do the same for a reason in it; in ScienceWorld, which has no such expert, where the rules of its gold expert
    say so; always where there is no expert at all.

    Raises `DataError` where a file cannot be read or no row is left, `ConfigError` for an unknown format, environment
    or split.
    """
    started = time.monotonic()
    spec, settings = get_env(env), dict(env_settings or {})
    spec.check_settings(settings)
    if split is not None and split not in spec.splits:
        raise ConfigError(f"{env} has no split {split!r}; it has {', '.join(spec.splits)}.")
    replayer = _Replayer(spec, settings, form, task_finder(env, settings), speller(env), split)
    kept: dict[tuple[str, str], list[Step]] = {}
    rejected: list[Rejected] = []
    try:
        for path, row in _rows(files, form, progress):
            try:
                steps = replayer.replay(row)
                first = kept.setdefault((steps[0].split, steps[0].task_id), steps)
                if first is not steps:
                    raise _Refused("another row of this task is kept", steps[0].task_id)
            except _Refused as refused:
                task = row.task if isinstance(row, Published) else ""
                rejected.append(Rejected(str(path), row.row, task, refused.kind, str(refused)))
    finally:
        replayer.close()
    rows = len(kept) + len(rejected)
    if not kept:
        raise DataError(f"none of {rows} rows is left of {', '.join(map(str, files))}. {_first_reasons(rejected)}")
    steps = [step for trajectory in kept.values() for step in trajectory]
    manifest = make_manifest(
        "import_trajectories",
        settings={"env": env, "format": form, "split": split, "env_settings": settings},
        inputs=list(files),
        counts={
            "rows": rows,
            "trajectories": len(kept),
            "steps": len(steps),
            "rejected": dict(sorted(Counter(row.kind for row in rejected).items())),
        },
        seconds=time.monotonic() - started,
    )
    with atomic_folder(out) as folder:
        write_rows(folder / TRAJECTORIES, [step.to_row() for step in steps], TRAJECTORY)
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejected)
        (folder / REJECTED).write_text(lines, encoding="utf-8")
        write_manifest(folder, manifest)
    return manifest


def _rows(
    files: Iterable[str | PathLike[str]], form: str, progress: bool
) -> Iterable[tuple[str | PathLike[str], Published | Unreadable]]:
    for path in files:
        for row in tqdm(list(read_published(Path(path), form)), Path(path).name, disable=not progress):
            yield path, row


def _first_reasons(rejected: Sequence[Rejected]) -> str:
    return "The first: " + "; ".join(f"row {row.row}: {row.reason}" for row in rejected[:3]) + "."


class _Refused(Exception):
    """A row is left out; `kind` is its reason without details."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind}: {details}" if details else kind)
        self.kind = kind


@dataclass
class _Replayer:
    """An environment that rows are played on, and another for the proof that they come out the same."""

    spec: EnvSpec
    settings: Mapping[str, Any]
    source: str
    find: FindTasks
    spell: Spell
    split: str | None

    def __post_init__(self) -> None:
        self._stage = [self.spec.make(**self.settings) for _ in range(2)]
        self._judge = _judge(self.spec)

    def close(self) -> None:
        for environment in self._stage:
            environment.close()

    def replay(self, row: Published | Unreadable) -> list[Step]:
        """The verified steps of a row. Raises `_Refused` where there are none."""
        if isinstance(row, Unreadable):
            raise _Refused("not in this format", row.reason)
        tasks = self.find(row)
        if not tasks:
            raise _Refused("no such task in these data", row.task or row.instruction[:100])
        if not (tasks := [task for task in tasks if self.split in (None, task.split)]):
            raise _Refused("of another split", f"not of {self.split}")
        refusals = []
        for task in tasks:
            try:
                return self._play(row, task)
            except _Refused as refused:
                refusals.append(refused)
        raise refusals[0]

    def _play(self, row: Published, task: Task) -> list[Step]:
        environment, fresh = self._stage
        try:
            steps = play(
                environment, _Follower(row.actions, self.spell, self._judge, self.spec.name), task, source=self.source
            )
            alike = not steps[-1].success or replays(fresh, task, steps)
        except _ActionsEnd as end:
            raise _Refused("does not reach the goal", f"its {len(row.actions)} actions end before it") from end
        except EnvError as error:
            raise _Refused("cannot be played", str(error)) from error
        if not steps[-1].success:
            raise _Refused("does not reach the goal", f"it ends after {len(steps)} of {len(row.actions)} actions")
        if not alike:
            raise _Refused("does not replay alike")
        return [replace(step, thought=row.thoughts[step.step], verified=True) for step in steps]


class _ActionsEnd(EnvError):
    """A row has no more actions, and its episode is not over."""


@dataclass
class _Follower:
    """Plays given actions as an expert does."""

    actions: Sequence[str]
    spell: Spell
    judge: Expert | None
    env: str

    def reset(self, task: Task) -> None:
        if self.judge:
            self.judge.reset(task)

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        if len(context.history) >= len(self.actions):
            raise _ActionsEnd
        action = self.spell(self.actions[len(context.history)], context.admissible_actions, environment)
        return action, self._inferable(action, context, environment)

    def _inferable(self, action: str, context: Context, environment: Environment) -> bool:
        if self.judge is None:
            return self.env != "scienceworld" or _follows(action, context, environment)
        try:
            return self.judge.act(context, environment) == (action, True)
        except EnvError:
            return False


def _judge(spec: EnvSpec) -> Expert | None:
    """The environment's expert that acts on the transcript, if any: ScienceWorld's follows a path of its own."""
    makers = () if spec.name == "scienceworld" else spec.experts.values()
    return next((make() for make in makers), None)


def _follows(action: str, context: Context, environment: Environment) -> bool:
    from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
    from verl_act.envs.scienceworld.experts import follows

    assert isinstance(environment, ScienceWorldEnvironment)
    return environment.reading(action)[1] and follows(action, context)
