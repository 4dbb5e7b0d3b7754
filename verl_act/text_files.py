"""Text files that users give: UTF-8 with or without a byte order mark, LF or CRLF line ends, plain or gzip.

Compression is detected from the first bytes, not from the name. A file that cannot be read raises `DataError`, which
names the file, the line if known, and the fix.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from verl_act.errors import DataError

_GZIP = b"\x1f\x8b"
_NOT_TEXT = {
    BOM_UTF16_LE: "is UTF-16. Save it as UTF-8",
    BOM_UTF16_BE: "is UTF-16. Save it as UTF-8",
    b"version https://git-lfs": "is a pointer of Git LFS, not the data. Run `git lfs pull`",
    b"PAR1": "is a parquet table. Name it .parquet where tables are read",
    b"PK\x03\x04": "is a zip archive. Unpack it",
    b"BZh": "is compressed with bzip2. Unpack it",
    b"\xfd7zXZ": "is compressed with xz. Unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd. Unpack it",
}
"""First bytes -> the actual format, and the fix."""


def text_suffix(path: str | PathLike[str]) -> str:
    """The suffix of the format in lower case: `.jsonl` for `rows.jsonl` and for `rows.JSONL.gz`."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


@contextmanager
def open_bytes(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """The decompressed bytes without byte order mark. Raises `DataError`, also if reading fails in the `with` block."""
    try:
        with Path(path).open("rb") as stored:
            unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=stored)) if stored.peek(2)[:2] == _GZIP else stored
            stream = io.BufferedReader(cast(io.RawIOBase, unpacked))
            first = stream.peek(32)
            for mark, problem in _NOT_TEXT.items():
                if first.startswith(mark):
                    raise DataError(f"{path}: {problem}.")
            if first.startswith(BOM_UTF8):
                stream.read(len(BOM_UTF8))
            yield cast(BinaryIO, stream)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged or cut short gzip data ({error}). Download or copy it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. Check the path and its rights.") from error


@contextmanager
def open_text(path: str | PathLike[str]) -> Iterator[TextIO]:
    """The text as a stream, for files too large for memory; line ends are `\\n`. Raises as `open_bytes` does."""
    try:
        with open_bytes(path) as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}). Save it as UTF-8.") from error


def read_text(path: str | PathLike[str]) -> str:
    """The whole text; CRLF becomes LF."""
    return _read(path).replace("\r\n", "\n")


def _read(path: str | PathLike[str]) -> str:
    with open_bytes(path) as stream:
        whole = stream.read()
    return _decoded(path, whole, 1)


def read_json(path: str | PathLike[str]) -> Any:
    """The value of a file with one JSON document."""
    try:
        return _parsed(_read(path))
    except _NotJson as error:
        raise DataError(f"{path}, line {error.line}: is not JSON ({error}). Download or write it again.") from error


def read_rows(path: str | PathLike[str], bad_line: Callable[[DataError], Any] | None = None) -> Iterator[Any]:
    """The rows of a JSON list, of a JSON object of lists (columns of one length), or of JSON Lines, whatever the name.

    JSON Lines are read one line at a time and may hold any value; empty lines are skipped. A bad line raises a
    `DataError` that names it or, with `bad_line`, yields `bad_line(error)` as its row. A single object
    whose lists hold objects (messages) is one row, not columns.
    """
    with open_bytes(path) as stream:
        lines = ((line_number, line) for line_number, line in enumerate(stream, 1) if line.strip())
        first, second = next(lines, None), next(lines, None)
        if first is None:
            return
        if first[1].lstrip().startswith(b"["):
            yield from read_json(path)
            return
        if second is None or not _is_json(first[1]):  # an object over several lines, or JSON Lines with a bad line
            try:
                whole = read_json(path)
            except DataError:
                pass
            else:
                yield from _rows_of_columns(whole)
                return
        for line_number, line in chain((first,), (second,) if second else (), lines):
            try:
                yield _parsed(_decoded(path, line, line_number))
            except _NotJson as error:
                problem = DataError(f"{path}, line {line_number}: is not JSON ({error}). Download or write it again.")
                if bad_line is None:
                    raise problem from error
                yield bad_line(problem)
            except DataError as error:
                if bad_line is None:
                    raise
                yield bad_line(error)


class _NotJson(ValueError):
    """Why a text is not JSON, and the line of the error."""

    def __init__(self, problem: str, line: int = 1) -> None:
        super().__init__(problem)
        self.line = line


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _NotJson(f"{error.msg} at column {error.colno}", error.lineno) from error
    except ValueError as error:  # an integer of more than 4,300 digits
        raise _NotJson(str(error)) from error
    except RecursionError as error:
        raise _NotJson("it is nested too deeply") from error


def _is_json(line: bytes) -> bool:
    try:
        _parsed(line.decode())
    except ValueError:
        return False
    return True


def _decoded(path: str | PathLike[str], data: bytes, first_line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8 text"
        raise DataError(f"{path}, line {line}: {problem}. Save the file as UTF-8.") from error


def _rows_of_columns(value: Any) -> Iterator[Any]:
    columns = list(value.values()) if isinstance(value, dict) else []
    if (
        columns
        and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns)
        and not any(isinstance(cell, dict) for column in columns for cell in column)
    ):
        yield from (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
    else:
        yield value
