"""`requirements/install.sh`: what it refuses before it does anything, and that it does nothing twice."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "requirements" / "install.sh"), str(folder)]
    env = {**os.environ, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def stub(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            '[ "$1" = -c ] && exit 1; echo Python 3.13.1',
            "is Python 3.13.1, but the lock file is for Python 3.11 and 3.12",
        ),
        (None, "was not found. Install Python 3.11 or 3.12, or name yours: PYTHON="),
    ],
)
def test_another_python_is_refused(python: str | None, message: str, tmp_path: Path) -> None:
    named = stub(tmp_path / "python", python) if python else str(tmp_path / "nowhere")
    done = install(tmp_path / "venv", PYTHON=named)
    assert done.returncode == 1 and message in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_compiler_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "cat", "sha256sum", "uname"):
        (tmp_path / "bin" / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    done = install(tmp_path / "venv", PATH=str(tmp_path / "bin"), PYTHON=stub(tmp_path / "python", "exit 0"))
    assert done.returncode == 1 and "g++ was not found" in done.stderr and "build-essential" in done.stderr


def test_a_finished_set_up_does_nothing_again(tmp_path: Path) -> None:
    lock = (ROOT / "requirements" / "cpu.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    (tmp_path / ".installed").write_text(f"{hashlib.sha256(lock).hexdigest()}  -\n")
    done = install(tmp_path, PYTHON="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / ".installed").write_text("of another lock file\n")
    assert install(tmp_path, PYTHON="/nowhere").returncode == 1
