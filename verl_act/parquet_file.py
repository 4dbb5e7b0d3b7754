"""Parquet files that detect damage: reading returns exactly what was written, or raises `DataError` naming the file.

Pages have parquet's own checksums, which any reader can verify. These cover neither page headers nor the footer, so a
digest of the whole file is stored before the footer. Parquet readers ignore it, since they follow the footer's offsets.
Files of other programs, without checksums or digest, are read too; their texts are validated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_act.errors import DataError

_MARK = b"verl_act.sha256:"
_DIGEST_SIZE = hashlib.sha256().digest_size
_MAGIC = b"PAR1"
_TAIL = 8
"""Bytes after the footer: its length (4, little endian) and the magic number."""
_ROW_GROUP = 16_384
"""Rows; Arrow cannot read lists of texts of more than 2 GiB out of one group."""


def write_parquet(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write `table` with checksums and a digest. Raises the errors of pyarrow and the file system."""
    # Opened here: pyarrow takes only paths that are valid UTF-8, which under an ASCII locale others are not.
    with open(path, "w+b") as file:
        pq.write_table(table, file, row_group_size=_ROW_GROUP, write_page_checksum=True)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(-_TAIL, os.SEEK_END)
        footer_size = int.from_bytes(file.read(4), "little")
        footer_start = file.seek(-_TAIL - footer_size, os.SEEK_END)
        footer = file.read()
        file.seek(footer_start)
        file.write(_MARK + digest + footer)


def is_parquet(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts with parquet's magic number."""
    with _as_data_errors(path), open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_parquet(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a file, or some of its columns.

    Raises `DataError` if the file is missing or damaged; it names the column and row if known.
    """
    with _as_data_errors(path):
        content = _undamaged(Path(path))
        table = pq.read_table(content, columns=columns, page_checksum_verification=True)
        _validate(path, table)
    return table


def read_parquet_schema(path: str | os.PathLike[str]) -> pa.Schema:
    """The columns of a file and its metadata, without reading the rows. Raises `DataError` as `read_parquet` does."""
    with _as_data_errors(path), open(path, "rb") as file:
        return pq.read_schema(file)


def _undamaged(path: Path) -> pa.BufferReader:
    """The file's bytes, verified against its digest if it has one."""
    content = path.read_bytes()
    start = content.rfind(_MARK)
    if start >= 0:
        end = start + len(_MARK) + _DIGEST_SIZE
        digest = hashlib.sha256(memoryview(content)[:start])
        digest.update(memoryview(content)[end:])
        if digest.digest() != content[end - _DIGEST_SIZE : end]:
            raise DataError(_damaged(path, f"its digest does not fit{_damaged_column(content)}"))
    return pa.BufferReader(content)


def _damaged_column(content: bytes) -> str:
    """Describe the first column with a wrong page checksum; empty if unknown."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        names = file.schema_arrow.names
    except Exception:  # the footer itself is damaged
        return ""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        for name in names:
            try:
                file.read_row_group(group, columns=[name])
            except Exception:
                return f"; the damage is in column {name!r}, rows {first} to {first + rows - 1}"
        first += rows
    return ""


def _validate(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Raise `DataError` on invalid UTF-8 and on offsets outside a column."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            row = next(row for row in range(len(column)) if not _is_valid(column.slice(row, 1)))
            raise DataError(_damaged(path, f"row {row}, column {name!r}: {error}")) from error


def _is_valid(values: pa.ChunkedArray) -> bool:
    try:
        values.combine_chunks().validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


@contextmanager
def _as_data_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert errors of damaged files, which pyarrow raises with many types."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give this user permission to read it.") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError, OverflowError) as error:
        raise DataError(_damaged(path, str(error))) from error


def _damaged(path: str | os.PathLike[str], reason: str) -> str:
    return f"{path}: the file is damaged or was cut short: {reason}. Write or copy it again."
