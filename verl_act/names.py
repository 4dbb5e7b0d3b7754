"""Display names chosen by users (of models, environments, splits, methods) as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_MARKDOWN_MARKS = re.compile(r"([\\`*\[\]<>|&])")
_SPACES = re.compile(r"\s+")


def one_line(text: str) -> str:
    """`text` on one line, with control characters escaped, so that a terminal does not interpret them."""
    if text.isprintable():
        return text
    escaped = (
        letter if letter.isprintable() else " " if letter.isspace() else letter.encode("unicode_escape").decode()
        for letter in text
    )
    return _SPACES.sub(" ", "".join(escaped))


def markdown_text(text: str) -> str:
    """`text` for a cell or a line of Markdown, with all markup escaped."""
    return _MARKDOWN_MARKS.sub(r"\\\1", _SPACES.sub(" ", one_line(text)))


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts by name on one line: `train 3,553, valid_seen 140`."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each of the paths, which differ, with as many folders before it as tell them apart."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1
