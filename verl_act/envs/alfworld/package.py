"""Imports from the alfworld package, without its side effect of creating `$ALFWORLD_DATA` or `~/.cache/alfworld`.

The home may be read-only, and a misspelled data folder should be reported, not created. Gap: alfworld 0.4.2 creates the
folder in `alfworld/info.py` and sets the environment variable; nothing that is imported here reads it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "ALFWORLD_DATA"
_DOWNLOADED = "~/.cache/alfworld"
"""Where `alfworld-download` puts the games by default. The package makes it empty."""
VERSION_FOLDER = "json_2.1.1"
"""The folder in the data that holds the splits."""


@contextmanager
def _no_folder_made() -> Iterator[None]:
    configured = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = tempfile.gettempdir()  # an existing folder
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        downloaded = os.path.expanduser(_DOWNLOADED)
        if configured is not None or os.path.isdir(os.path.join(downloaded, VERSION_FOLDER)):
            os.environ[_VARIABLE] = configured if configured is not None else downloaded


with _no_folder_made():
    import alfworld.gen
    from alfworld.agents.utils.misc import Demangler
    from alfworld.gen import constants
    from alfworld.gen.goal_library import gdict
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

__all__ = ["ALFRED_PDDL_PATH", "ALFRED_TWL2_PATH", "VERSION_FOLDER", "Demangler", "alfworld", "constants", "gdict"]
