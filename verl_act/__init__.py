"""Agentic Critical Training (ACT, arXiv 2603.08706) as a plugin for verl.

The public names are imported on first use; `__init__.pyi` lists them. Every stage is a function `stage(settings, out)`,
with the settings class that recipes and the command line use too:

    from verl_act import ExpertSettings, collect_expert

    manifest = collect_expert(ExpertSettings(env="alfworld", split="train", limit=100), "expert")
"""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("verl-act")
except PackageNotFoundError:  # a folder on the path, such as an exported recipe
    __version__ = "0+unknown"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_MODULES = {
    entry.name: str(node.module) for node in _STUB.body if isinstance(node, ast.ImportFrom) for entry in node.names
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'verl_act' has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
