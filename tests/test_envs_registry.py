"""Environments by their names: those that ship, and a user's own, found by its entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fragile_env
import pytest
from installed_env import install

from verl_act.envs.registry import get_env, known_envs, register_env
from verl_act.errors import ConfigError


def test_an_unknown_environment_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'alfwrld'.*alfworld"):
        get_env("alfwrld")


def test_names_are_not_taken_over() -> None:
    spec = get_env("alfworld")
    assert register_env(spec) is spec
    with pytest.raises(ConfigError, match="'alfworld'"):
        register_env(type(spec)("alfworld", fragile_env.FragileEnvironment, spec.tasks, {}, ()))


def test_an_entry_point_adds_an_environment(tmp_path: Path) -> None:
    """In a fresh process: registering is for the life of a process."""
    install(fragile_env, tmp_path)
    code = "from verl_act.envs.registry import *; print(known_envs(), get_env('fragile').tasks('train')[0].task_id)"
    paths = [str(tmp_path), str(Path(fragile_env.__file__).parent), str(Path.cwd())]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}"], capture_output=True, text=True
    )
    assert run.stdout.strip() == "['alfworld', 'fragile', 'scienceworld', 'webshop'] t0", run.stderr


def test_an_entry_point_that_fails_is_named(tmp_path: Path) -> None:
    module = ModuleType("its_engine_is_missing")
    module.NAME = "broken"  # type: ignore[attr-defined]
    install(module, tmp_path)
    (tmp_path / "its_engine_is_missing.py").write_text("import an_engine_that_is_missing\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"'its_engine_is_missing:SPEC'.*'broken'.*No module named 'an_engine"):
            get_env("broken")
    finally:
        sys.path.remove(str(tmp_path))


def test_the_registry_imports_no_engine() -> None:
    code = "import sys, verl_act.envs.registry; print({'textworld', 'alfworld', 'torch', 'ray'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
    assert "alfworld" in known_envs()
