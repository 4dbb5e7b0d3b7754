"""The sources of a catalogue: product entries, the attributes of each product, and instructions."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from verl_act.envs.webshop.embedded import embedded_records
from verl_act.envs.webshop.files import REMEDY, DataFiles, find_files
from verl_act.envs.webshop.product import valid_text
from verl_act.errors import DataError
from verl_act.manifest import digest
from verl_act.text_files import list_values, object_values

_Parsed = TypeVar("_Parsed")


class Instruction(NamedTuple):
    """A sentence that asks for a product, with the attributes and option values that it mentions."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()


KINDS = ("human", "synthetic")
"""Instructions written by people (the benchmark's), or generated from the attributes of a product."""


class ProductInstructions(NamedTuple):
    """The instructions of one kind for the product in `row`; there is exactly one generated instruction."""

    row: int
    instructions: tuple[Instruction, ...]


class Described(NamedTuple):
    """A product's entry in the attribute file."""

    attributes: tuple[str, ...]
    synthetic: Instruction | None


class Sources(NamedTuple):
    """`products` are the entries with their names for error messages; the mappings are keyed by product id."""

    name: str
    products: Iterator[tuple[str, Any]]
    described: Mapping[str, Described]
    human: Mapping[str, tuple[Instruction, ...]]


def embedded_sources() -> Sources:
    """The catalogue that comes with the package."""
    made = embedded_records()
    return Sources(
        name="the embedded catalogue",
        products=_named(made.products),
        described={asin: _described(entry) for asin, entry in made.attributes.items()},
        human={asin: _human(entry) for asin, entry in made.human.items()},
    )


def read_sources(files: DataFiles) -> Sources:
    """Open the catalogue in `files`: attributes and instructions are read now, product entries on demand.

    Raises `DataError`, naming the file and the entry, if one is damaged.
    """
    return Sources(
        name=str(files.products),
        products=_named(list_values(files.products, REMEDY)),
        described=_read(files.attributes, _described),
        human=_read(files.human, _human) if files.human else {},
    )


def _named(products: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"entry {index}", product) for index, product in enumerate(products))


def _read(path: Path, parse: Callable[[Any], _Parsed]) -> dict[str, _Parsed]:
    parsed = {}
    for asin, entry in object_values(path, REMEDY):
        try:
            parsed[asin] = parse(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: key {asin!r}: not in the format of WebShop's file: {error!r}. Download or generate it again."
            ) from error
    return parsed


def _described(entry: Mapping[str, Any]) -> Described:
    text, about = entry.get("instruction"), entry.get("instruction_attributes")
    synthetic = Instruction(_text(text), _texts(about)) if text and about else None
    return Described(_texts(entry.get("attributes") or []), synthetic)


def _human(entry: Sequence[Mapping[str, Any]]) -> tuple[Instruction, ...]:
    """Return the instructions; those without attributes are skipped, as in WebShop."""
    instructions = []
    for one in entry:
        options, about = one["instruction_options"], one["instruction_attributes"]
        values = list(options.values()) if isinstance(options, dict) else options
        if about:
            instructions.append(Instruction(_text(one["instruction"]), _texts(about), _texts(values)))
    return tuple(instructions)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return valid_text(value)


def _texts(values: Any) -> tuple[str, ...]:
    """Return interned texts: a million products share a few thousand attributes."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{values!r} is not a list")
    return tuple(sys.intern(_text(value)) for value in values)


def data_digest(_: Sequence[Any], data: str | os.PathLike[str] | None = None, **__: Any) -> str:
    """SHA-256 of the catalogue's files, or of the records of the embedded one."""
    if not data:
        return hashlib.sha256(json.dumps(embedded_records(), sort_keys=True).encode()).hexdigest()
    digests = [digest(path) for path in find_files(data) if path is not None]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
