"""Find WebShop's data files and read their entries one at a time, whatever the size of the file.

The official product file of the full catalogue has about 5 GB; parsing it at once would need several times that in
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, TextIO

from verl_act.errors import DataError
from verl_act.text_files import open_text

PRODUCT_FILE, ATTRIBUTE_FILE, HUMAN_FILE = "items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"
_SMALL = {PRODUCT_FILE: "items_shuffle_1000.json", ATTRIBUTE_FILE: "items_ins_v2_1000.json"}
"""The files of WebShop's 1,000-product catalogue."""

_CHUNK = 1 << 22
"""Characters per read."""
_LARGEST_ENTRY = 1 << 25
"""In characters. The longest official entries have a few hundred thousand; a longer one means a damaged file."""

REMEDY = (
    "Download the files with WebShop's setup script (`setup.sh -d small` or `-d all`), or generate a catalogue with "
    "`verl-act dev catalogue`; pass their folder as `data`, or leave `data` out for the embedded catalogue."
)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of one catalogue. `human` may be missing if only synthetic goals are played."""

    products: Path
    attributes: Path
    human: Path | None

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return name, size (bytes) and modification time (ns) of each file; they change with its contents."""
        stats = [(path, path.stat()) for path in (self.products, self.attributes, self.human) if path is not None]
        return tuple((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def find_files(data: str | os.PathLike[str]) -> DataFiles:
    """Return the files in the folder `data`; if it holds both catalogues, those of the full one.

    `data` may also be the product file itself, to choose one. Raises `DataError` if a file is missing.
    """
    path = Path(data).expanduser().resolve()
    folder = path.parent if path.is_file() else path
    if path.is_file():
        small = path.name == _SMALL[PRODUCT_FILE]
        products = path
    else:
        small = not (folder / PRODUCT_FILE).is_file() and (folder / _SMALL[PRODUCT_FILE]).is_file()
        products = folder / (_SMALL[PRODUCT_FILE] if small else PRODUCT_FILE)
    attributes = folder / (_SMALL[ATTRIBUTE_FILE] if small else ATTRIBUTE_FILE)
    for needed in (products, attributes):
        if not needed.is_file():
            raise DataError(f"{needed}: no such file; WebShop needs it. {REMEDY}")
    human = folder / HUMAN_FILE
    return DataFiles(products, attributes, human if human.is_file() else None)


def list_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a JSON array, each with its name for error messages (`entry 3`, counted from 0).

    Raises `DataError`, naming the file and the entry, if the file is not such an array, damaged or truncated.
    """
    with open_text(path) as stream:
        reader = _Reader(path, stream)
        reader.take("[", "a list of products")
        index = 0
        more = not reader.try_take("]")
        while more:
            entry = f"entry {index}"
            yield entry, reader.value(entry)
            more = reader.comma_or("]", entry)
            index += 1
        reader.end()


def map_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a JSON object. Raises `DataError` as `list_entries` does."""
    with open_text(path) as stream:
        reader = _Reader(path, stream)
        reader.take("{", "an object with one key per product")
        key = "the first key"
        more = not reader.try_take("}")
        while more:
            key = str(reader.value(f"the key after {key}"))
            reader.take(":", "a colon", f"after key {key!r}")
            yield key, reader.value(f"key {key!r}")
            more = reader.comma_or("}", f"key {key!r}")
        reader.end()


class _Reader:
    """Reads JSON values from a stream one by one, keeping only the unread text in memory."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path = path
        self._stream = stream
        self._decoder = JSONDecoder()
        self._text = ""
        self._position = 0
        self._ended = False

    def value(self, what: str) -> Any:
        """Return the next value, of any type."""
        self._skip_spaces()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
                # A number at the end of the text may continue in the next chunk.
                if end < len(self._text) or self._ended:
                    self._position = end
                    return value
                problem = "is not complete"
            except JSONDecodeError as error:
                problem = f"is not valid JSON ({error.msg})"
            except RecursionError:
                raise self._damaged(what, "is nested too deeply") from None
            if self._ended:
                raise self._damaged(what, f"{problem}; the file ends here")
            if len(self._text) - self._position > _LARGEST_ENTRY:
                raise self._damaged(what, problem)
            self._read()

    def try_take(self, mark: str) -> bool:
        """Skip `mark` if it comes next; return whether it did."""
        self._skip_spaces()
        if self._text[self._position : self._position + 1] == mark:
            self._position += 1
            return True
        return False

    def take(self, mark: str, meaning: str, where: str = "at its beginning") -> None:
        if not self.try_take(mark):
            raise self._damaged(where, f"there is no {mark!r}; the file must hold {meaning}")

    def comma_or(self, closing: str, entry: str) -> bool:
        """Whether another entry follows."""
        if self.try_take(","):
            return True
        if not self.try_take(closing):
            raise self._damaged(f"after {entry}", f"there is neither ',' nor {closing!r}")
        return False

    def end(self) -> None:
        self._skip_spaces()
        if self._position < len(self._text):
            raise self._damaged("at its end", "there is text after the last entry")

    def _skip_spaces(self) -> None:
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._text) or self._ended:
                return
            self._read()

    def _read(self) -> None:
        chunk = self._stream.read(_CHUNK)
        self._text, self._position, self._ended = self._text[self._position :] + chunk, 0, not chunk

    def _damaged(self, where: str, problem: str) -> DataError:
        return DataError(f"{self._path}: {where}: {problem}. The file is damaged or was cut short. {REMEDY}")
