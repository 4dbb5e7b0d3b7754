"""Cross-cutting: the packages of verl_act import each other one way; test files are named by what they test."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import verl_act

PACKAGE = Path(__file__).resolve().parent.parent / "verl_act"


def modules() -> Iterator[tuple[str, Path]]:
    """(`verl_act.data.order`, its file); data_prep and reward_fns are links."""
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in files:
            path = Path(folder) / file
            if path.suffix == ".py":
                yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path


def imported(source: str) -> set[str]:
    """What `source` imports of verl_act, also inside functions, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("verl_act.")}


def package_of(name: str) -> str | None:
    """The subpackage of a dotted name; None for a module of verl_act itself."""
    package = name.split(".")[1]
    return package if (PACKAGE / package).is_dir() else None


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Subpackage -> the others that it imports; `sources` are the texts of modules by name."""
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        if (package := package_of(module)) is not None:
            others = {package_of(name) for name in imported(source)} - {None, package}
            edges.setdefault(package, set()).update(other for other in others if other)
    return edges


def test_no_circle_between_packages() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules()}
    edges = graph(sources)
    assert {"data", "data_prep", "envs", "rollout", "reward_fns"} <= edges.keys()
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        circle = error.args[1]
        imports = [
            f"{module} imports {name}"
            for needed, package in pairwise(circle)
            for module, source in sources.items()
            for name in imported(source)
            if package_of(module) == package and package_of(name) == needed
        ]
        pytest.fail(f"{' <- '.join(circle)}:\n" + "\n".join(sorted(imports)))


def test_a_circle_is_seen() -> None:
    edges = graph(
        {
            "verl_act.data.one": "def later():\n    from verl_act.envs.base import Task",
            "verl_act.envs.two": "import verl_act.rollout.episode",
            "verl_act.rollout.three": "from verl_act.data import order\nfrom verl_act.errors import DataError",
        }
    )
    assert edges == {"data": {"envs"}, "envs": {"rollout"}, "rollout": {"data"}}
    with pytest.raises(CycleError):
        TopologicalSorter(edges).prepare()


def test_every_test_file_is_named_by_what_it_tests() -> None:
    """A module or package by the end of its path (`test_webshop_importer.py`); the others say that they are none."""
    known = {"_".join(name.removesuffix(".__init__").split(".")[at:]) for name, _ in modules() for at in range(6)}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        crosses = path.read_text(encoding="utf-8").startswith('"""Cross-cutting: ')
        assert crosses is (path.stem.removeprefix("test_") not in known), path.name


def test_tests_use_public_names() -> None:
    private = re.compile(r"from verl_act[\w.]* import [^\n]*\b_[a-zA-Z]|\"verl_act\.[\w.]*\._[a-zA-Z]")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        assert not private.findall(path.read_text(encoding="utf-8")), path.name


@pytest.mark.slow
def test_type_checkers_know_every_public_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    names = verl_act.__all__
    script.write_text(
        f"from verl_act import {', '.join(names)}\n" + "".join(f"reveal_type({name})\n" for name in names)
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", str(script)]
    checked = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=600, check=False)
    revealed = re.findall(r'Revealed type is "(.+)"', checked.stdout)
    assert checked.returncode == 0 and len(revealed) == len(names), checked.stdout + checked.stderr
    assert "Any" not in revealed


def test_public_names_are_functions_and_classes_however_often_they_are_imported() -> None:
    for name in 2 * verl_act.__all__:
        assert callable(getattr(verl_act, name)), name
