"""The true facts of a state, sorted and immutable, so that a snapshot is one shallow copy.

TextWorld keeps facts as sets of `Proposition` objects and sorts them in every query. Plain tuples, sorted when they
change, give the same order of results much faster.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

Rows = tuple[tuple[str, ...], ...]
Facts = dict[str, Rows]
"""Predicate -> its true argument tuples, in order."""


class Literal(NamedTuple):
    """A predicate applied to object names; negative ones are stored as facts of the predicate `not_<name>`."""

    predicate: str
    arguments: tuple[str, ...]
    negated: bool


def parse_atom(atom: str) -> Literal:
    """Read Fast Downward's `Atom inreceptacle(mug, desk)` or `NegatedAtom opened(desk)`."""
    kind, rest = atom.split(" ", 1)
    predicate, arguments = rest.split("(", 1)
    return Literal(predicate, tuple(name for name in arguments[:-1].split(", ") if name), kind == "NegatedAtom")


def assign(facts: Facts, literal: Literal) -> None:
    """Make `literal` true, as TextWorld's state does: remove the opposite fact and add this one."""
    positive, negative = literal.predicate, f"not_{literal.predicate}"
    added, removed = (negative, positive) if literal.negated else (positive, negative)
    if removed in facts:
        facts[removed] = _without(facts[removed], literal.arguments)
    facts[added] = _with(facts.get(added, ()), literal.arguments)


def _with(rows: Rows, row: tuple[str, ...]) -> Rows:
    index = bisect_left(rows, row)
    if index < len(rows) and rows[index] == row:
        return rows
    return (*rows[:index], row, *rows[index:])


def _without(rows: Rows, row: tuple[str, ...]) -> Rows:
    index = bisect_left(rows, row)
    if index < len(rows) and rows[index] == row:
        return rows[:index] + rows[index + 1 :]
    return rows
