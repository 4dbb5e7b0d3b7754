"""Compiles TextWorld's context-sensitive grammar once, and renders it without parsing or copying.

The stock engine parses every template again at every step and deep-copies its symbols, which is 98% of a step's time.
Here TextWorld parses each grammar once, and its symbols become small functions that render the same text. Queries
enumerate facts in TextWorld's order (sorted, distinct placeholders for distinct objects), so lists are identical.

The stock engine also passes every expression in braces to Python's `eval`. Game files are untrusted input, so here only
the few forms of expression that ALFWorld's grammars use are compiled, and any other is refused.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from reprlib import repr as brief  # an expression may be of any length
from typing import Any, NamedTuple

from textworld.envs.pddl.textgen import (
    ConditionalSymbol,
    ContextSensitiveGrammar,
    EvalSymbol,
    ListSymbol,
    NonterminalSymbol,
    Symbol,
    TerminalSymbol,
)
from textworld.logic import Rule

from verl_act.envs.alfworld.facts import Facts
from verl_act.errors import DataError, EnvError

Placeholder = tuple[str, str]
"""Name and type, as in `o:object`."""
Binding = dict[Placeholder, str]
"""Placeholder -> object id."""
Query = tuple[tuple[str, tuple[Placeholder, ...]], ...]
"""A conjunction of predicates over placeholders."""


class Scene(NamedTuple):
    """The input of rendering: the facts, and the objects that a grammar's expressions refer to."""

    facts: Facts
    entities: Mapping[str, Any]


_Render = Callable[[Scene, Binding], list[str]]
_Objects = Mapping[str, Any]
"""The objects of an expression by name."""
_Value = Callable[[_Objects], Any]

_SIGNS = re.compile(r"(?:'[^'\\\n]*'|[\w.+ \t])*", re.ASCII)
"""What an expression consists of: texts without escapes, names, signs."""
_LONGEST = 1000
"""Most characters of an expression; ALFWorld's have 30."""
_ATTRIBUTES = ("id", "type", "name", "definite", "indefinite")


class TextGrammar:
    """The production rules of one game, ready to render."""

    def __init__(self, source: ContextSensitiveGrammar) -> None:
        self._rules: dict[str, list[tuple[Query, _Render]]] = {}
        self.add(source)

    def add(self, source: ContextSensitiveGrammar) -> None:
        """Compile more rules; a symbol's earlier rules keep precedence."""
        for symbol, productions in source._rules.items():
            compiled = self._rules.setdefault(symbol, [])
            compiled += [(parse_query(rule.condition), self._sequence(rule.rhs)) for rule in productions]

    def add_template(self, symbol: str, text: str) -> None:
        """Define `symbol` as `text`, in the grammar's notation."""
        self.add(ContextSensitiveGrammar.parse(json.dumps({symbol: [{"rhs": text}]})))

    def render(self, symbol: str, scene: Scene, binding: Binding) -> str:
        """The text of `symbol`, by the first rule whose condition holds.

        Raises `EnvError` if there is no such rule.
        """
        try:
            for condition, render in self._rules.get(symbol, ()):
                if not condition or next(assignments(condition, scene.facts, binding), None) is not None:
                    return "".join(render(scene, binding))
        except RecursionError:
            raise EnvError("The game's grammar has a symbol that derives itself. Write or download it again.") from None
        raise EnvError(
            f"The game's grammar has no rule for #{symbol}#. The file is damaged; write or download it again."
        )

    def _sequence(self, symbols: list[Symbol]) -> _Render:
        renders = [self._symbol(symbol) for symbol in symbols]
        return lambda scene, binding: [text for render in renders for text in render(scene, binding)]

    def _symbol(self, symbol: Symbol) -> _Render:
        match symbol:
            case TerminalSymbol():
                text = [str(symbol)]
                return lambda scene, binding: text
            case NonterminalSymbol():
                name = str(symbol)
                return lambda scene, binding: [self.render(name, scene, binding)]
            case EvalSymbol():
                return _evaluation(symbol.expression)
            case ConditionalSymbol():
                return self._conditional(symbol)
            case ListSymbol():
                return self._enumeration(self._symbol(symbol.symbol))
        raise EnvError(f"The game's grammar holds a {type(symbol).__name__}, which this version cannot render.")

    def _conditional(self, symbol: ConditionalSymbol) -> _Render:
        expression = self._symbol(symbol.expression)
        if not symbol.given:
            return expression
        query = parse_query(symbol.given)
        return lambda scene, binding: [
            text for assignment in assignments(query, scene.facts, binding) for text in expression(scene, assignment)
        ]

    def _enumeration(self, items: _Render) -> _Render:
        def render(scene: Scene, binding: Binding) -> list[str]:
            texts = items(scene, binding)
            if not texts:
                return [self.render("list_empty", scene, binding)]
            if len(texts) == 1:
                return texts
            separator = self.render("list_separator", scene, binding)
            last = self.render("list_last_separator", scene, binding)
            return [separator.join(texts[:-1]), last, texts[-1]]

        return render


def _evaluation(expression: str) -> _Render:
    """Compile an expression in braces: `o`, `o.name`, `o.indefinite + ' ' + o.name`, or several of them joined by
    `or`.

    The semantics are Python's. Raises `DataError` for anything else.
    """
    try:
        if len(expression) > _LONGEST or not _SIGNS.fullmatch(expression):
            raise ValueError
        evaluate = _value(ast.parse(expression.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f"The game's grammar has the expression {brief(expression)} in braces. ALFWorld's have objects (o), "
            f"their texts (o.{', o.'.join(_ATTRIBUTES)}), 'text', + and or; nothing else is evaluated. Use a game file "
            "from a source that you trust."
        ) from None

    def render(scene: Scene, binding: Binding) -> list[str]:
        try:
            return [str(evaluate({name: scene.entities[value] for (name, _), value in binding.items()}))]
        except KeyError as error:
            raise EnvError(
                f"The game's grammar names {error}, which is not an object, in the expression {brief(expression)}. The "
                "file is damaged; write or download it again."
            ) from None

    return render


def _value(node: ast.expr) -> _Value:
    """The function that evaluates `node`. Raises `ValueError` if it is of none of the forms of `_evaluation`."""
    match node:
        case ast.Name(id=name) if not name.startswith("_"):
            return lambda objects: objects[name]
        case ast.Attribute(value=ast.Name() as thing, attr=attribute) if attribute in _ATTRIBUTES:
            read = _value(thing)
            return lambda objects: getattr(read(objects), attribute)
        case ast.Constant(value=str(text)):
            return lambda objects: text
        case ast.BinOp(op=ast.Add()) if not isinstance(node.left, ast.Name) and not isinstance(node.right, ast.Name):
            left, right = _value(node.left), _value(node.right)
            return lambda objects: left(objects) + right(objects)
        case ast.BoolOp(op=ast.Or()):
            return reduce(_either, map(_value, node.values))
    raise ValueError


def _either(first: _Value, second: _Value) -> _Value:
    return lambda objects: first(objects) or second(objects)


def parse_query(text: str) -> Query:
    """Parse `inreceptacle(o:object, r:receptacle) & ...`; an empty text is the empty conjunction."""
    if not text:
        return ()
    predicates = Rule.parse_conjunctive_query(text).preconditions
    return tuple((p.name, tuple((ph.name, ph.type) for ph in p.parameters)) for p in predicates)


def assignments(query: Query, facts: Facts, binding: Binding) -> Iterator[Binding]:
    """Every way to extend `binding` so that all predicates of `query` hold, in TextWorld's order."""
    if not query:
        yield binding
        return
    (predicate, placeholders), rest = query[0], query[1:]
    bound = [(index, binding[ph]) for index, ph in enumerate(placeholders) if ph in binding]
    free = [(index, ph) for index, ph in enumerate(placeholders) if ph not in binding]
    used = set(binding.values())
    for row in facts.get(predicate, ()):
        if any(row[index] != value for index, value in bound):
            continue
        values = [row[index] for index, _ in free]
        if used.isdisjoint(values) and len(set(values)) == len(values):
            yield from assignments(rest, facts, {**binding, **{ph: row[index] for index, ph in free}})
