"""Find WebShop's data files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from verl_act.errors import DataError

PRODUCT_FILE, ATTRIBUTE_FILE, HUMAN_FILE = "items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"
_SMALL = {PRODUCT_FILE: "items_shuffle_1000.json", ATTRIBUTE_FILE: "items_ins_v2_1000.json"}
"""The files of WebShop's 1,000-product catalogue."""

REMEDY = (
    "Download the files with WebShop's setup script (`setup.sh -d small` or `-d all`), or generate a catalogue with "
    "`verl-act dev catalogue`; pass their folder as `data`, or leave `data` out for the embedded catalogue."
)


class DataFiles(NamedTuple):
    """The files of one catalogue. `human` may be missing if only synthetic goals are played."""

    products: Path
    attributes: Path
    human: Path | None

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return name, size (bytes) and modification time (ns) of each file; they change with its contents."""
        stats = [(path.name, path.stat()) for path in self if path is not None]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def find_files(data: str | os.PathLike[str]) -> DataFiles:
    """Return the files in the folder `data`; if it holds both catalogues, those of the full one.

    `data` may also be the product file itself, to choose one. Raises `DataError` if a file is missing.
    """
    path = Path(data).expanduser().resolve()
    folder = path.parent if path.is_file() else path
    full, small = folder / PRODUCT_FILE, folder / _SMALL[PRODUCT_FILE]
    products = path if path.is_file() else small if small.is_file() and not full.is_file() else full
    attributes = folder / (_SMALL[ATTRIBUTE_FILE] if products == small else ATTRIBUTE_FILE)
    for needed in (products, attributes):
        if not needed.is_file():
            raise DataError(f"{needed}: no such file; WebShop needs it. {REMEDY}")
    human = folder / HUMAN_FILE
    return DataFiles(products, attributes, human if human.is_file() else None)
