"""What is used of the alfworld package, imported without a side effect of it: it makes `$ALFWORLD_DATA`, or else
`~/.cache/alfworld`.

The home may not be writable, and a data folder that is misspelled should be missed, not made. Gap: alfworld 0.4.2 makes
the folder in `alfworld/info.py` and names it in the environment; nothing that is imported here reads it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "ALFWORLD_DATA"
_DOWNLOADED = "~/.cache/alfworld"
"""Where `alfworld-download` puts the games by default."""


@contextmanager
def _no_folder_made() -> Iterator[None]:
    given = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = tempfile.gettempdir()  # one that exists
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        downloaded = os.path.expanduser(_DOWNLOADED)
        if given is not None or os.path.isdir(downloaded):
            os.environ[_VARIABLE] = given if given is not None else downloaded


with _no_folder_made():
    import alfworld.gen
    from alfworld.agents.utils.misc import Demangler
    from alfworld.gen import constants
    from alfworld.gen.goal_library import gdict
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

__all__ = ["ALFRED_PDDL_PATH", "ALFRED_TWL2_PATH", "Demangler", "alfworld", "constants", "gdict"]
