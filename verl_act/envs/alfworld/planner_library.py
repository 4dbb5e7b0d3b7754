"""fast-downward-textworld ships its library with debug sections: 33 of its 34 MB, copied for every engine.

Each engine needs a copy of its own, whose space is taken as long as the engine lasts. Copies are made of the part that
is loaded alone. Goes when fast-downward-textworld strips its library.
"""

from __future__ import annotations

import os
import struct
from ctypes import CDLL
from functools import cache
from pathlib import Path

import fast_downward
import fast_downward.interface

_WHOLE = fast_downward.interface.DOWNWARD_LIB_PATH
_PT_LOAD = 1


def load_library() -> CDLL:
    """A copy of the planner library, loaded, with the signatures that `fast_downward` sets."""
    fast_downward.interface.DOWNWARD_LIB_PATH = _loaded_part(_WHOLE)
    return fast_downward.load_lib()


@cache
def _loaded_part(path: str) -> str:
    """A file in the memory of this process; `path` itself where that is no 64-bit ELF, as on macOS."""
    whole = Path(path).read_bytes()
    end = _end_of_segments(whole)
    if end is None:
        return path
    kept = os.memfd_create("libdownward")
    with open(kept, "wb", closefd=False) as stream:
        stream.write(whole[:end])
    return f"/proc/self/fd/{kept}"


def _end_of_segments(elf: bytes) -> int | None:
    """Where the last segment ends that a loader maps; what comes after is for linkers and debuggers."""
    if elf[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return None
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    ends = []
    for at in range(headers, headers + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, at)
        if kind == _PT_LOAD:
            ends.append(offset + length)
    return max(ends)
