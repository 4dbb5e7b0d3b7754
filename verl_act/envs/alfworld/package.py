"""Imports from the alfworld package, without its side effect of creating `$ALFWORLD_DATA` or `~/.cache/alfworld`.

The home may be read-only, and a misspelled data folder should be reported, not created. Gap: alfworld 0.4.2 creates the
folder in `alfworld/info.py` and sets the environment variable; nothing that is imported here reads it.
"""

from __future__ import annotations

import os
import tempfile

_VARIABLE = "ALFWORLD_DATA"
VERSION_FOLDER = "json_2.1.1"
"""The folder in the data that holds the splits."""

_configured = os.environ.get(_VARIABLE)
os.environ[_VARIABLE] = tempfile.gettempdir()  # an existing folder
try:
    import alfworld.gen
    from alfworld.agents.utils.misc import Demangler
    from alfworld.gen import constants
    from alfworld.gen.goal_library import gdict
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
finally:
    del os.environ[_VARIABLE]
    _downloaded = os.path.expanduser("~/.cache/alfworld")  # of `alfworld-download`; the package makes it empty
    if _configured is not None or os.path.isdir(os.path.join(_downloaded, VERSION_FOLDER)):
        os.environ[_VARIABLE] = _downloaded if _configured is None else _configured

__all__ = ["ALFRED_PDDL_PATH", "ALFRED_TWL2_PATH", "VERSION_FOLDER", "Demangler", "alfworld", "constants", "gdict"]
