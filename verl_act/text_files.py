"""Text files that users give: UTF-8 with or without a byte order mark, LF or CRLF line ends, plain or gzip.

Compression is detected from the first bytes, not from the name. A file that cannot be read raises `DataError`, which
names the file, the line if known, and the fix. Lists and objects of any size are read value by value: our own reader,
because ijson turns half a surrogate pair into a question mark, and fills the memory on deep nesting.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, count
from json import JSONDecodeError, JSONDecoder
from os import PathLike, fspath, stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

from verl_act.errors import DataError
from verl_act.names import one_line
from verl_act.progress import phase

Value = TypeVar("Value")

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
_SPACES = re.compile(r"[ \t\r\n]*")
_AGAIN = "Download or write it again."
_CHUNK = 1 << 20
"""Bytes per read of a list or an object."""
_LARGEST_VALUE = 1 << 25
"""Characters of one value in a list or an object; a longer one means a damaged file."""
_LONGEST_TOKEN = 16
"""Characters; what is further than this from the end of the text that was read is the same whatever follows."""


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


def read_text(path: str | PathLike[str]) -> str:
    """The whole text; CRLF becomes LF."""
    with open_bytes(path) as stream:
        return _decoded(path, stream.read(), 1).replace("\r\n", "\n")


def read_json(path: str | PathLike[str]) -> Any:
    """The value of a file with one JSON document."""
    with open_bytes(path) as stream:
        return _parsed(path, stream.read())


def list_values(path: str | PathLike[str], remedy: str = _AGAIN) -> Iterator[Any]:
    """The values of a JSON list, one at a time, so that only one of them is in memory.

    Raises `DataError` naming the line and the value (from 0) if the file is not a list, is damaged or cut short.
    """
    with open_bytes(path) as stream:
        yield from _counted(path, stream, _ValueReader(path, stream, remedy).values("list", "[", "]"))


def object_values(path: str | PathLike[str], remedy: str = _AGAIN) -> Iterator[tuple[str, Any]]:
    """The keys and values of a JSON object. Otherwise as `list_values`."""
    with open_bytes(path) as stream:
        yield from _counted(path, stream, _ValueReader(path, stream, remedy).values("object", "{", "}"))


def read_json_lines(path: str | PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of ours, with their line numbers; nothing if there is no file.

    Raises `DataError` if a line is not a JSON object, or not strict JSON (no `NaN` or `Infinity`).
    """
    if not Path(path).is_file():
        return
    for line_number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        row = _parsed(path, line, line_number, parse_constant=refuse_constant)
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {line_number}: is {type(row).__name__}, not an object. Write the file again."
            )
        yield line_number, row


def refuse_constant(name: str) -> NoReturn:
    """For `parse_constant` of `json.loads`: `NaN` and `Infinity` are not JSON."""
    raise ValueError(f"it holds {name}, which is not a number")


def write_json_lines(path: str | PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, in ASCII."""
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def read_rows(path: str | PathLike[str], bad_line: Callable[[DataError], Any] | None = None) -> Iterator[Any]:
    """The rows of a JSON list, of a JSON object of lists (columns of one length), or of JSON Lines, whatever the name.

    Lists and JSON Lines are read one row at a time; rows may be any value, and empty lines are skipped. A bad line
    raises a `DataError` that names it or, with `bad_line`, yields `bad_line(error)` as its row. A single object
    whose lists hold objects (messages) is one row, not columns.
    """
    if _begins_with(path, b"["):
        yield from list_values(path)
        return
    with open_bytes(path) as stream:
        numbered = _counted(path, stream, enumerate(stream, 1))
        lines = ((line_number, line) for line_number, line in numbered if line.strip())
        first, second = next(lines, None), next(lines, None)
        if first is None:
            return
        # An object over several lines, or JSON Lines with a bad line.
        if second is None or not _is_json(path, first[1]):
            try:
                document = read_json(path)
            except DataError:
                pass
            else:
                yield from _rows_of_columns(document)
                return
        for line_number, line in chain((first,), (second,) if second else (), lines):
            try:
                yield _parsed(path, line.rstrip(), line_number)
            except DataError as error:
                if bad_line is None:
                    raise
                yield bad_line(error)


def _counted(path: str | PathLike[str], stream: BinaryIO, values: Iterable[Value]) -> Iterator[Value]:
    """The values read from `stream`, with a bar of the stored bytes."""
    unpacked = cast(Any, stream).raw
    stored = getattr(unpacked, "fileobj", unpacked)
    with phase(f"reading {one_line(fspath(path))}", stat(path).st_size, "B") as bar:
        for value in values:
            yield value
            bar.update(stored.tell() - bar.n)


def _begins_with(path: str | PathLike[str], mark: bytes) -> bool:
    """Whether `mark` is the first byte that is not whitespace."""
    with open_bytes(path) as stream:
        return next(filter(bytes.strip, iter(partial(stream.read, 1), b"")), b"") == mark


class _ValueReader:
    """Reads the values of one list or object; only the text that is not read yet is in memory."""

    def __init__(self, path: str | PathLike[str], stream: BinaryIO, remedy: str) -> None:
        self._path, self._stream, self._remedy = path, stream, remedy
        self._decode = getincrementaldecoder("utf-8")().decode
        self._value_of = JSONDecoder().raw_decode
        self._text, self._position, self._ended = "", 0, False
        self._line, self._column = 1, 1
        """Where the text begins in the file."""
        self._place = "its beginning"

    def values(self, kind: str, begin: str, end: str) -> Iterator[Any]:
        """The values of a list, or the pairs of key and value of an object."""
        if not self._take(begin):
            raise DataError(f"{self._path}: does not begin with {begin!r}; it must hold a JSON {kind}. {self._remedy}")
        more = not self._take(end)
        for index in count():
            if not more:
                break
            if kind == "list":
                self._place = f"entry {index}"
                yield self._value()
            else:
                yield self._key(), self._value()
            more = self._take(",")
            if not more and not self._take(end):
                raise self._not_json("Expecting ',' delimiter", self._position)
        if not self._take(""):
            raise self._not_json("Extra data", self._position)

    def _key(self) -> str:
        key = self._value()
        if not isinstance(key, str):
            raise self._not_json(f"{key!r:.50} is not a key")
        self._place = f"key {key!r}"
        if not self._take(":"):
            raise self._not_json("Expecting ':' delimiter", self._position)
        return key

    def _take(self, mark: str) -> bool:
        """Skip `mark` ("" is the end of the file) if it comes next, and say whether it did."""
        self._skip_spaces()
        if self._text[self._position : self._position + 1] != mark:
            return False
        self._position += len(mark)
        return True

    def _value(self) -> Any:
        self._skip_spaces()
        while True:
            try:
                value, end = self._value_of(self._text, self._position)
                if end < len(self._text) - _LONGEST_TOKEN or self._ended:  # else a number may continue
                    self._position = end
                    return value
            except JSONDecodeError as error:
                cut = error.pos > len(self._text) - _LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self._ended or not cut or len(self._text) - self._position > _LARGEST_VALUE:
                    raise self._not_json(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._not_json(_why(error)) from error
            self._read()

    def _skip_spaces(self) -> None:
        while (end := _SPACES.match(self._text, self._position).end()) == len(self._text):  # type: ignore[union-attr]
            self._position = end
            if self._ended:
                return
            self._read()
        self._position = end

    def _read(self) -> None:
        """Forget the text up to the position, and read more: as much as is left, for long values."""
        self._line, self._column = self._at(self._position)
        rest = self._text[self._position :]
        self._text, self._position = rest, 0
        chunk = self._stream.read(max(_CHUNK, len(rest)))
        try:
            self._text += self._decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            raise _not_text(self._path, error, self._at(len(rest))[0]) from error
        self._ended = not chunk

    def _at(self, position: int) -> tuple[int, int]:
        """Line and column of a position in the text."""
        lines = self._text.count("\n", 0, position)
        start = self._text.rfind("\n", 0, position)
        return self._line + lines, position - start if lines else self._column + position

    def _not_json(self, problem: str, position: int | None = None) -> DataError:
        line, column = self._at(self._position if position is None else position)
        where = "" if position is None else f" at column {column}"
        return DataError(f"{self._path}, line {line}: is not JSON ({problem}{where}), at {self._place}. {self._remedy}")


def _parsed(path: str | PathLike[str], data: bytes, first_line: int = 1, **options: Any) -> Any:
    """The value of a JSON text that begins in this line of the file."""
    text = _decoded(path, data, first_line)
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        line = first_line + getattr(error, "lineno", 1) - 1
        raise DataError(f"{path}, line {line}: is not JSON ({_why(error)}). {_AGAIN}") from error


def _why(error: ValueError | RecursionError) -> str:
    """Why a text is not JSON; where its grammar is right, because of nesting, or an integer of over 4,300 digits."""
    if isinstance(error, JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _is_json(path: str | PathLike[str], line: bytes) -> bool:
    try:
        _parsed(path, line)
    except DataError:
        return False
    return True


def _decoded(path: str | PathLike[str], data: bytes, first_line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_text(path, error, first_line) from error


def _not_text(path: str | PathLike[str], error: UnicodeDecodeError, first_line: int) -> DataError:
    line = first_line + error.object.count(b"\n", 0, error.start)
    problem = f"byte 0x{error.object[error.start]:02x} is not UTF-8 text"
    return DataError(f"{path}, line {line}: {problem}. Save the file as UTF-8.")


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
