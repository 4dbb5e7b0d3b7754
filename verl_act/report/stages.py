"""The stages of a run folder, from their manifests: a chain or a comparison of methods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from verl_act.manifest import FILE_NAME, Manifest, read_manifest

RL_STAGES = ("critic", "action")
_ORDER = (
    *("games", "expert", "alternatives", "pairs", "audit", "tasks", "reflections", "rows"),
    *("evaluate initial", "il", "reflection", "critic", "action", "evaluate", "comparison", "methods"),
)
_FIRST = ("train", "initial", "critic")
"""Order of stages of the same kind."""
_ALWAYS = (
    *("alternatives", "audit", "tasks train", "tasks eval", "critic", "action"),
    *("evaluate initial", "evaluate critic", "evaluate action", "comparison"),
)
"""Stages of every chain. `games` is optional, and splits differ between chains."""
_BY_NAME = ("expert", "pairs", "tasks", "evaluate")
"""Kinds with one stage folder per split or model."""
_FOLDERS = {"evaluate": "evaluation"}
"""Kind -> folder, where they differ."""
_SEEDED = re.compile(r"seed (\d+) (.+)")
"""A comparison's stage that runs once per seed, in the folder `seed-<seed>`."""


class StageState(StrEnum):
    """The progress of a stage."""

    DONE = "done"
    UNFINISHED = "unfinished"
    """A training stage that is running or was interrupted."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage with its manifests: `made` in its folder (counts, seed, settings), `mark` of the chain (wall time)."""

    name: str
    state: StageState
    made: Manifest | None = None
    mark: Manifest | None = None

    @property
    def seed(self) -> int | None:
        """The seed of a comparison's per-seed stage; None for any other stage."""
        match = _SEEDED.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def manifests(self) -> list[Manifest]:
        return [manifest for manifest in (self.made, self.mark) if manifest is not None]

    @property
    def seconds(self) -> float | None:
        """Wall time: the chain's, which includes start-up, or else the stage's."""
        return next((manifest.seconds for manifest in reversed(self.manifests) if manifest.seconds is not None), None)


def read_stages(folder: Path, comparison: bool = False) -> list[StageRecord]:
    """The stages in `folder`, in order. A chain includes its missing stages; a `comparison` only has stages that were
    started, and its final table, since its folder does not say what is planned.
    """
    marks = {mark.stage: mark for mark in _manifests(folder, ".done/*").values() if mark.stage != "report"}
    folders = _manifests(folder, "*", "*/*", "seed-*/evaluation/*")
    made = {name: manifest for path, manifest in folders.items() if (name := _stage_name(path)) is not None}
    started = _started(folder)
    planned = {"methods"} if comparison else _of_every_chain({*marks, *made})
    records = []
    for name in sorted({*planned, *marks, *made, *started}, key=rank):
        finished = name in made or (name in marks and (name == "audit" or _folder(folder, name).is_dir()))
        state = StageState.DONE if finished else StageState.UNFINISHED if name in started else StageState.MISSING
        records.append(StageRecord(name, state, made.get(name), marks.get(name) if finished else None))
    return records


def seed_folders(folder: Path) -> list[Path]:
    """The seed folders of a comparison, in order of the seeds."""
    numbered = {
        int(path.name[5:]): path for path in folder.glob("seed-*") if path.name[5:].isdecimal() and path.is_dir()
    }
    return [numbered[seed] for seed in sorted(numbered)]


def rank(stage: str) -> tuple[int, int, int, int, str]:
    """Sort key of stages: data, then each seed, then the table of a comparison."""
    seeded = _SEEDED.fullmatch(stage)
    kind, _, rest = (seeded[2] if seeded else stage).partition(" ")
    if seeded and kind not in _ORDER:  # training with several stages, such as `il+critic`
        kind, rest = "action", kind
    name = f"{kind} {rest}" if f"{kind} {rest}" in _ORDER else kind
    order = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    phase = 1 if seeded else 2 if kind == "methods" else 0
    first = _FIRST.index(rest) if rest in _FIRST else len(_FIRST)
    return phase, int(seeded[1]) if seeded else 0, order, first, rest


def _manifests(folder: Path, *patterns: str) -> dict[Path, Manifest]:
    """Subfolder, relative to `folder` -> its manifest."""

    def entries() -> Iterator[tuple[Path, Manifest]]:
        for pattern in patterns:
            for path in sorted(folder.glob(f"{pattern}/{FILE_NAME}")):
                if (manifest := read_manifest(path.parent)) is not None:
                    yield path.parent.relative_to(folder), manifest

    return dict(entries())


def _started(folder: Path) -> set[str]:
    """Training stages that are running or were interrupted."""
    chain = {path.stem for path in folder.glob("*.work") if path.is_dir()} & set(RL_STAGES)
    works = (path.relative_to(folder) for path in folder.glob("seed-*/*.work") if path.is_dir())
    return chain | {name for path in works if (name := _stage_name(path.with_suffix(""))) is not None}


def _of_every_chain(known: set[str]) -> set[str]:
    splits = {name.split(" ", 1)[1] for name in known if name.startswith("expert ")}
    both = {f"{kind} {split}" for split in splits for kind in ("expert", "pairs")}
    return {*_ALWAYS, *(both or ("expert", "pairs"))}


def _stage_name(relative: Path) -> str | None:
    """The name of the stage that writes to this folder; None if there is none."""
    kinds = {folder: kind for kind, folder in _FOLDERS.items()}
    head, *rest = relative.parts
    if seed := re.fullmatch(r"seed-(\d+)", head):
        if not rest:
            return None
        name = rest[0].replace("-", " ", 1) if rest[0].startswith("rows-") else kinds.get(rest[0], rest[0])
        return " ".join(("seed", seed[1], name, *rest[1:]))
    kind = kinds.get(head, head)
    fits = kind in _ORDER and len(rest) == (kind in _BY_NAME)
    return " ".join((kind, *rest)) if fits else None


def _folder(run: Path, stage: str) -> Path:
    if seeded := _SEEDED.fullmatch(stage):
        return _folder(run / f"seed-{seeded[1]}", seeded[2].replace("rows ", "rows-"))
    kind, _, rest = stage.partition(" ")
    return run / _FOLDERS.get(kind, kind) / rest
