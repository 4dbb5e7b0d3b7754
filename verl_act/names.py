"""Names that others have chosen, of models, environments, splits and methods, where they are shown: as text."""

from __future__ import annotations

import re

_MARKDOWN_MARKS = re.compile(r"([\\`*\[\]<>|&])")
_SPACES = re.compile(r"\s+")


def one_line(text: str) -> str:
    """`text` on one line, with control characters as escapes: a terminal would obey them."""
    if text.isprintable():
        return text
    shown = (
        letter if letter.isprintable() else " " if letter.isspace() else letter.encode("unicode_escape").decode()
        for letter in text
    )
    return _SPACES.sub(" ", "".join(shown))


def markdown_text(text: str) -> str:
    """`text` in a cell or a line of Markdown, where nothing of it is markup."""
    return _MARKDOWN_MARKS.sub(r"\\\1", _SPACES.sub(" ", one_line(text)))
