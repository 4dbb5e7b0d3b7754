"""What a catalogue is made from: product entries, the attributes of each product, and what people asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from verl_act.envs.webshop.embedded import embedded_records
from verl_act.envs.webshop.files import DataFiles, list_entries, map_entries
from verl_act.envs.webshop.product import valid_text
from verl_act.errors import DataError


class Instruction(NamedTuple):
    """A sentence asking for a product, with the attributes and option values that it is about."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()


KINDS = ("human", "synthetic")
"""Instructions written by people (the benchmark's), or generated from the attributes of a product."""


class Asked(NamedTuple):
    """The instructions of one kind for the product in `row`; of generated ones there is one."""

    row: int
    instructions: tuple[Instruction, ...]

    @classmethod
    def from_json(cls, value: Any) -> Asked:
        row, instructions = value
        return cls(row, tuple(map(_restored, instructions)))


def _restored(value: Any) -> Instruction:
    text, attributes, options = value
    return Instruction(text, tuple(attributes), tuple(options))


class Described(NamedTuple):
    """What the attribute file says of a product."""

    attributes: tuple[str, ...]
    synthetic: Instruction | None


@dataclass(frozen=True, slots=True)
class Sources:
    """`products` are the entries with their names for messages; the mappings go by product id."""

    name: str
    products: Iterator[tuple[str, Any]]
    described: Mapping[str, Described]
    human: Mapping[str, tuple[Instruction, ...]]


def embedded_sources() -> Sources:
    """The catalogue that comes with the package."""
    made = embedded_records()
    return Sources(
        name="the embedded catalogue",
        products=((f"entry {number}", record) for number, record in enumerate(made.products)),
        described={asin: _described(entry) for asin, entry in made.attributes.items()},
        human={asin: _human(entry) for asin, entry in made.human.items()},
    )


def read_sources(files: DataFiles) -> Sources:
    """The catalogue in `files`: attributes and instructions are read at once, product entries as they are asked for.

    Raises `DataError` naming the file and the entry where one is damaged.
    """
    described, human = {}, {}
    for asin, entry in map_entries(files.attributes):
        described[asin] = _checked(files.attributes, asin, _described, entry)
    for asin, entry in map_entries(files.human) if files.human else ():
        human[asin] = _checked(files.human, asin, _human, entry)
    return Sources(str(files.products), list_entries(files.products), described, human)


def _checked(path: Path | None, asin: str, read: Any, entry: Any) -> Any:
    try:
        return read(entry)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: key {asin!r}: is not as in WebShop's file: {error!r}. Download or make the file again."
        ) from error


def _described(entry: Mapping[str, Any]) -> Described:
    text, about = entry.get("instruction"), entry.get("instruction_attributes")
    synthetic = Instruction(_text(text), _texts(about)) if text and about else None
    return Described(_texts(entry.get("attributes") or []), synthetic)


def _human(entry: Sequence[Mapping[str, Any]]) -> tuple[Instruction, ...]:
    """Instructions without attributes are left out, as in WebShop."""
    found = []
    for one in entry:
        options = one["instruction_options"]
        values = list(options.values()) if isinstance(options, dict) else options
        if one["instruction_attributes"]:
            found.append(Instruction(_text(one["instruction"]), _texts(one["instruction_attributes"]), _texts(values)))
    return tuple(found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return valid_text(value)


def _texts(values: Any) -> tuple[str, ...]:
    """Interned: a million products share some thousand attributes."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{values!r} is not a list")
    return tuple(sys.intern(_text(value)) for value in values)
