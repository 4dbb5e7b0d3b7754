"""Loads the planner library without its debug sections, which are 33 of the 34 MB that every engine copies.

Each engine needs a separate copy for its lifetime, so only the loadable segments are copied. Remove this module when
fast-downward-textworld strips its library.
"""

from __future__ import annotations

import os
import struct
from ctypes import CDLL
from functools import cache
from pathlib import Path

import fast_downward
import fast_downward.interface

WHOLE = fast_downward.interface.DOWNWARD_LIB_PATH
_PT_LOAD = 1


def load_library() -> CDLL:
    """Load a new copy of the planner library, with the signatures that `fast_downward` sets."""
    fast_downward.interface.DOWNWARD_LIB_PATH = loaded_part(WHOLE)
    library: CDLL = fast_downward.load_lib()
    return library


@cache
def loaded_part(path: str) -> str:
    """An in-memory file with the loadable segments; `path` itself if it is not a 64-bit ELF, as on macOS."""
    library = Path(path).read_bytes()
    end = _end_of_segments(library)
    if end is None:
        return path
    kept = os.memfd_create("libdownward")
    with open(kept, "wb", closefd=False) as stream:
        stream.write(library[:end])
    return f"/proc/self/fd/{kept}"


def _end_of_segments(elf: bytes) -> int | None:
    """The end of the last segment that a loader maps; the rest is for linkers and debuggers."""
    if elf[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return None
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    ends: list[int] = []
    for header in range(headers, headers + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, header)
        if kind == _PT_LOAD:
            ends.append(offset + length)
    return max(ends)
