"""The stages of a run folder as their manifests tell them: a chain's, or those of a comparison of methods."""

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
"""Which of several stages of one kind comes first."""
_ALWAYS = (
    *("alternatives", "audit", "tasks train", "tasks panel", "critic", "action"),
    *("evaluate initial", "evaluate critic", "evaluate action", "comparison"),
)
"""Stages of every chain; `games` is only in those that generate them, and splits differ."""
_BY_NAME = ("expert", "pairs", "tasks", "evaluate")
"""Kinds of which there are several, each with a folder of its own."""
_FOLDERS = {"evaluate": "evaluation"}
"""Kinds of stage whose folder has another name."""
_SEEDED = re.compile(r"seed (\d+) (.+)")
"""A comparison's stage that is done anew for every seed, in the folder `seed-<seed>`."""


class StageState(StrEnum):
    """How far a stage is."""

    DONE = "done"
    UNFINISHED = "unfinished"
    """An RL stage that is running, or was interrupted."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage as its manifests tell it.

    `made` is the manifest of its folder (counts, seed, settings); `mark` is the chain's own (the whole wall time).
    """

    name: str
    state: StageState
    made: Manifest | None = None
    mark: Manifest | None = None

    @property
    def seed(self) -> int | None:
        """Of a comparison's stage that is done anew for every seed."""
        match = _SEEDED.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def manifests(self) -> list[Manifest]:
        return [manifest for manifest in (self.made, self.mark) if manifest is not None]

    @property
    def seconds(self) -> float | None:
        """Wall time: the chain's, which includes starting up, or else what the stage itself measured."""
        return next((manifest.seconds for manifest in reversed(self.manifests) if manifest.seconds is not None), None)


def read_stages(folder: Path, comparison: bool = False) -> list[StageRecord]:
    """Those of a chain with the ones that are still to be done. What a `comparison` has planned is not in its folder:
    of it only what is done or begun, and the table that is its end.
    """
    marks = {mark.stage: mark for mark in _manifests(folder, ".done/*").values() if mark.stage != "report"}
    folders = _manifests(folder, "*", "*/*", "seed-*/evaluation/*")
    made = {name: manifest for path, manifest in folders.items() if (name := _stage_name(path)) is not None}
    begun = _begun(folder)
    planned = {"methods"} if comparison else _of_every_chain({*marks, *made})
    records = []
    for name in sorted({*planned, *marks, *made, *begun}, key=rank):
        finished = name in made or (name in marks and (name == "audit" or _folder(folder, name).is_dir()))
        state = StageState.DONE if finished else StageState.UNFINISHED if name in begun else StageState.MISSING
        records.append(StageRecord(name, state, made.get(name), marks.get(name) if finished else None))
    return records


def seed_folders(folder: Path) -> list[Path]:
    """The folders of a comparison's seeds, the first seed's first."""
    numbered = {
        int(path.name[5:]): path for path in folder.glob("seed-*") if path.name[5:].isdecimal() and path.is_dir()
    }
    return [numbered[seed] for seed in sorted(numbered)]


def rank(stage: str) -> tuple[int, int, int, int, str]:
    """The order of stages: data, then each seed's, then the table of a comparison."""
    seeded = _SEEDED.fullmatch(stage)
    kind, _, rest = (seeded[2] if seeded else stage).partition(" ")
    if seeded and kind not in _ORDER:  # training of several stages, as `il+critic`
        kind, rest = "action", kind
    name = f"{kind} {rest}" if f"{kind} {rest}" in _ORDER else kind
    order = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    phase = 1 if seeded else 2 if kind == "methods" else 0
    first = _FIRST.index(rest) if rest in _FIRST else len(_FIRST)
    return phase, int(seeded[1]) if seeded else 0, order, first, rest


def _manifests(folder: Path, *patterns: str) -> dict[Path, Manifest]:
    """Folder, as seen from `folder`, -> its manifest."""

    def entries() -> Iterator[tuple[Path, Manifest]]:
        for pattern in patterns:
            for path in sorted(folder.glob(f"{pattern}/{FILE_NAME}")):
                if (manifest := read_manifest(path.parent)) is not None:
                    yield path.parent.relative_to(folder), manifest

    return dict(entries())


def _begun(folder: Path) -> set[str]:
    """Training stages that are running, or were interrupted."""
    chain = {path.stem for path in folder.glob("*.work") if path.is_dir()} & set(RL_STAGES)
    works = (path.relative_to(folder) for path in folder.glob("seed-*/*.work") if path.is_dir())
    return chain | {name for path in works if (name := _stage_name(path.with_suffix(""))) is not None}


def _of_every_chain(known: set[str]) -> set[str]:
    splits = {name.split(" ", 1)[1] for name in known if name.startswith("expert ")}
    both = {f"{kind} {split}" for split in splits for kind in ("expert", "pairs")}
    return {*_ALWAYS, *(both or ("expert", "pairs"))}


def _stage_name(relative: Path) -> str | None:
    """The name of the stage that writes to this folder; None for a folder of no stage."""
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
