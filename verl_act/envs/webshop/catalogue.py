"""A catalogue: products, their search index, and the instructions that goals are made from; shared within a process.

Products are stored as compact records (in memory, or on disk for a large catalogue) and decoded on access. A large
catalogue is prepared once and stored in a cache folder; later runs only map its files, and all processes of a machine
share the memory pages.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import TypeAdapter

from verl_act.envs.webshop.cache import cache_root, from_cache
from verl_act.envs.webshop.files import REMEDY, DataFiles, find_files
from verl_act.envs.webshop.product import Product, is_listed, product_from
from verl_act.envs.webshop.search import SearchIndex
from verl_act.envs.webshop.sources import KINDS, ProductInstructions, Sources, embedded_sources, read_sources
from verl_act.errors import DataError

CACHED_FROM = 64 << 20
"""Size of the product file, in bytes, from which the prepared catalogue is cached: preparing it takes over 10 s."""

_FORMAT = 4
"""Version of the cache; increase it whenever the stored data, or how they are computed, change."""
_RECORDS, _ENDS, _INSTRUCTIONS, _INDEX = "products.bin", "ends.npy", "asked_{kind}.jsonl", "index"
_INSTRUCTIONS_OF_A_PRODUCT = TypeAdapter(ProductInstructions)
"""A line of a file of instructions."""
_KEPT = 4096
"""Products and searches that are kept in memory."""


Instructions = Callable[[str], tuple[ProductInstructions, ...]]
"""Returns the instructions of a kind (`sources.KINDS`), per product that has any, in the order of the products."""


class Catalogue:
    """Products by row (their index in the product file) and by search. Safe to use from several threads."""

    def __init__(
        self, records: bytes | mmap.mmap, ends: np.ndarray, instructions: Instructions, index: SearchIndex
    ) -> None:
        """`ends` are the byte offsets where the record of each row ends."""
        self._records = records
        self._ends = ends
        self.instructions = instructions
        """A large catalogue reads them on demand: nearly all of its products have generated instructions, which few
        runs use.
        """
        self.product = lru_cache(_KEPT)(self._product)
        """The product of a row."""
        self.search = lru_cache(_KEPT)(index.search)
        """The rows that a search finds, best first; at most 50."""

    def __len__(self) -> int:
        return len(self._ends)

    def _product(self, row: int) -> Product:
        start = int(self._ends[row - 1]) if row else 0
        return Product.from_json(self._records[start : int(self._ends[row])])


_LOADING = threading.Lock()


def load_catalogue(data: str | os.PathLike[str] | None = None) -> Catalogue:
    """Return the catalogue in the folder `data` (see `files`), by default the embedded one; one object per catalogue.

    A large catalogue (`CACHED_FROM`) is prepared at its first use and stored in a cache (`cache_root`), which is
    checked at every start and rebuilt if it is damaged. Preparing WebShop's full catalogue takes minutes.

    Raises `DataError` if a file is missing or damaged, naming file, entry and fix.
    """
    with _LOADING:
        if not data:
            return _embedded()
        files = find_files(data)
        return load_files(files, files.stamp())


@lru_cache(maxsize=1)
def _embedded() -> Catalogue:
    return _in_memory(embedded_sources())


@lru_cache(maxsize=2)
def load_files(files: DataFiles, stamp: tuple[tuple[str, int, int], ...]) -> Catalogue:
    """The catalogue of `files`, from the cache on disk if they are large; kept until their `stamp` changes."""
    if files.products.stat().st_size < CACHED_FROM:
        return _in_memory(read_sources(files))
    made_from = {"format": _FORMAT, "regex": version("regex"), "products": str(files.products), "stamp": repr(stamp)}
    folder = cache_root() / hashlib.sha256(str(files.products).encode()).hexdigest()[:16]
    return from_cache(folder, made_from, lambda partial: _write_files(partial, read_sources(files)), _map_files)


def _in_memory(sources: Sources) -> Catalogue:
    records = io.BytesIO()
    ends, instructions, index = _prepare(sources, records)
    return Catalogue(records.getvalue(), ends, instructions, index)


def _prepare(sources: Sources, records: BinaryIO) -> tuple[np.ndarray, Instructions, SearchIndex]:
    """Read the product entries once: write their records, collect their instructions, index their texts."""
    ends: list[int] = []
    instructions: dict[str, list[ProductInstructions]] = {kind: [] for kind in KINDS}

    def texts() -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        end = 0
        for entry, record in sources.products:
            try:
                if not is_listed(record) or record["asin"] in seen:
                    continue
                seen.add(record["asin"])
                described = sources.described.get(record["asin"])
                product = product_from(record, described.attributes if described else None)
            except ValueError as error:
                raise DataError(f"{sources.name}: {entry}: {error}. {REMEDY}") from error
            if human := sources.human.get(product.asin):
                instructions["human"].append(ProductInstructions(len(ends), human))
            if described and described.synthetic:
                instructions["synthetic"].append(ProductInstructions(len(ends), (described.synthetic,)))
            end += records.write(product.to_json())
            ends.append(end)
            yield product.asin, product.indexed_text()
        if not ends:
            raise DataError(f"{sources.name}: contains no product. {REMEDY}")

    index = SearchIndex.build(texts())
    return np.array(ends, dtype=np.int64), lambda kind: tuple(instructions[kind]), index


def _write_files(folder: Path, sources: Sources) -> None:
    with (folder / _RECORDS).open("wb") as records:
        ends, instructions, index = _prepare(sources, records)
    np.save(folder / _ENDS, ends)
    for kind in KINDS:
        with (folder / _INSTRUCTIONS.format(kind=kind)).open("w", encoding="utf-8") as lines:
            lines.writelines(f"{json.dumps(entry)}\n" for entry in instructions(kind))
    index.save(folder / _INDEX)


def _map_files(folder: Path) -> Catalogue:
    with (folder / _RECORDS).open("rb") as stream:
        records = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def instructions(kind: str) -> tuple[ProductInstructions, ...]:
        path = folder / _INSTRUCTIONS.format(kind=kind)
        try:
            with path.open(encoding="utf-8") as lines:
                return tuple(map(_INSTRUCTIONS_OF_A_PRODUCT.validate_json, lines))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: the cache was damaged after it was opened: {error}. Restart to rebuild it."
            ) from error

    return Catalogue(records, np.load(folder / _ENDS), instructions, SearchIndex.load(folder / _INDEX))
