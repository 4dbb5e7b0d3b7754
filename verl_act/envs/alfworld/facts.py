"""The true facts of a state, sorted and immutable, so that a snapshot is one shallow copy.

TextWorld keeps facts as sets of `Proposition` objects and sorts them in every query. Plain tuples, sorted when they
change, give the same order of results much faster.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import NamedTuple

Rows = tuple[tuple[str, ...], ...]
Facts = dict[str, Rows]
"""Predicate -> its true argument tuples, in order."""


class Literal(NamedTuple):
    """A predicate applied to object names; negative ones are stored as facts of the predicate `not_<name>`."""

    predicate: str
    arguments: tuple[str, ...]
    negated: bool


@cache
def parse_atom(atom: bytes) -> Literal:
    """Read Fast Downward's `Atom inreceptacle(mug, desk)` or `NegatedAtom opened(desk)`."""
    kind, rest = atom.decode("cp1252").split(" ", 1)
    predicate, arguments = rest.split("(", 1)
    return Literal(predicate, tuple(name for name in arguments[:-1].split(", ") if name), kind == "NegatedAtom")


def assign(facts: Facts, literal: Literal) -> None:
    """Make `literal` true, as TextWorld's state does: remove the opposite fact and add this one."""
    row = literal.arguments
    for predicate, holds in ((literal.predicate, not literal.negated), (f"not_{literal.predicate}", literal.negated)):
        rows = facts.get(predicate, ())
        index = bisect_left(rows, row)
        held = rows[index : index + 1] == (row,)
        if held != holds:
            facts[predicate] = (*rows[:index], row, *rows[index:]) if holds else rows[:index] + rows[index + 1 :]
