"""Reads game files and compiles them: everything that is computed once and shared by all engines of a process.

The stock engine translates PDDL twice and parses the whole grammar at every load and every reset, which takes about
half a second. Here a problem is translated once, and a grammar is parsed once for all games that differ only in their
task sentence.
"""

from __future__ import annotations

import gc
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fast_downward
from fast_downward.translate.pddl.conditions import Atom
from textworld.envs.pddl.logic import GameLogic
from textworld.generator.game import EntityInfo

from verl_act.envs.alfworld.facts import Facts
from verl_act.envs.alfworld.grammar import Binding, Placeholder, Scene, TextGrammar
from verl_act.envs.alfworld.package import Demangler
from verl_act.errors import DataError, EnvError
from verl_act.text_files import read_json

FILE_NAME = "game.tw-pddl"

# The translator rewrites module options, `sys.stdout` and `sys.argv`, and the grammar parser is one shared object.
_TRANSLATOR = threading.Lock()

_GOAL = re.compile(r"(?<=Your task is to: )[^#\[\]{}|;<>\"\\\n]*(?=\.\")")
_ANY_GOAL = "ANY GOAL"


@dataclass(frozen=True, slots=True)
class GameFile:
    """The parts of a `game.tw-pddl` file that define the game. `name` is used in messages only."""

    name: str = field(compare=False)
    domain: str
    grammar: str
    problem: str
    walkthrough: tuple[str, ...] = field(compare=False, default=())


@dataclass(frozen=True, slots=True)
class Operator:
    """A grounded action of the planner: the agent's command, and what its feedback is rendered from."""

    command: str
    feedback: str
    binding: Binding
    effects: int


@dataclass(slots=True)
class CompiledGame:
    """A translated problem and its compiled grammar. The last three fields are caches, filled during play."""

    file: GameFile
    sas: bytes
    grammar: TextGrammar
    goal: str | None
    """The task sentence to insert into `grammar`; None if the grammar contains it."""
    parameters: Mapping[str, tuple[Placeholder, ...]]
    mentioned: Mapping[str, tuple[Placeholder, ...]]
    """The parameters that the command of each action depends on."""
    facts: Facts
    """The initial facts."""
    entities: Mapping[str, EntityInfo]
    commands: dict[tuple[str, ...], str] = field(default_factory=dict)
    operators: dict[int, Operator] = field(default_factory=dict)
    menus: dict[bytes, CommandMenu] = field(default_factory=dict)

    def intro(self) -> str:
        """The game's text before the first action."""
        text = self.grammar.render("intro", Scene(self.facts, self.entities), {})
        return text if self.goal is None else text.replace(_ANY_GOAL, self.goal, 1)

    def operator_from(self, name: str, effects: int) -> Operator:
        """Parse the planner's grounded operator `name`, such as `openobject agent1 loc_1 fridge_1`."""
        action, *arguments = name.split()
        binding = dict(zip(self.parameters[action], arguments, strict=False))
        return Operator(self.command(action, binding), _feedback_symbol(action), binding, effects)

    def command(self, action: str, binding: Binding) -> str:
        """The agent's command for `action`; `binding` must hold the parameters of its template."""
        # Walking is grounded for every pair of locations but named by its destination, so most commands are cached.
        key = (action, *(binding.get(placeholder, "") for placeholder in self.mentioned[action]))
        command = self.commands.get(key)
        if command is None:
            scene = Scene(self.facts, self.entities)
            command = self.commands[key] = self.grammar.render(_command_symbol(action), scene, binding)
        return command


class CommandMenu(NamedTuple):
    """The commands of a state: sorted, and mapped to operator indices."""

    commands: tuple[str, ...]
    operators: Mapping[str, int]


def read_game(path: Path) -> GameFile:
    """Read a game file. Raises `EnvError` with the file, what is wrong and how to fix it."""
    remedy = "Write the games again (`verl-act data games`) or download them again (`alfworld-download`)."
    try:
        return game_from(read_json(path), name=str(path))
    except DataError as error:
        raise EnvError(str(error) if isinstance(error.__cause__, PermissionError) else f"{error} {remedy}") from error
    except (KeyError, TypeError) as error:
        raise EnvError(f"{path}: is not an ALFWorld game: {error!r} is missing or of a wrong type. {remedy}") from error


def game_from(content: Mapping[str, Any], *, name: str) -> GameFile:
    """The game in the content of a game file. Raises `KeyError` or `TypeError` if a key is missing or not a string."""
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(content[key], str):
            raise TypeError(key)
    return GameFile(
        name=name,
        domain=content["pddl_domain"],
        grammar=content["grammar"],
        problem=content["pddl_problem"],
        walkthrough=tuple(content.get("walkthrough") or ()),
    )


@lru_cache(maxsize=128)
def compile_game(game: GameFile) -> CompiledGame:
    """Translate and compile `game`; cached for the last 128 games (about 1 MB each).

    Raises `EnvError` if its problem, domain or grammar is malformed, `DataError` if the grammar has an expression that
    ALFWorld's grammars do not use.
    """
    goal = _GOAL.search(game.grammar)
    shared = game.grammar if goal is None else _GOAL.sub(_ANY_GOAL, game.grammar, count=1)
    with _translating(game):
        task, sas = fast_downward.pddl2sas(game.domain, game.problem)
        logic, grammar = _parse_logic(shared)
        _check_commands_are_static(task, logic)
        facts = _initial_facts(task)
        # Actions that the translator has split share a name; the last one wins, as in TextWorld.
        parameters = {a.name: tuple((p.name.strip("?"), p.type_name) for p in a.parameters) for a in task.actions}
        return CompiledGame(
            file=game,
            sas=sas.encode(),
            grammar=grammar,
            goal=goal.group() if goal else None,
            parameters=parameters,
            mentioned={name: _mentioned(logic.actions[name].template, known) for name, known in parameters.items()},
            facts=facts,
            entities=_name_entities(facts, {thing.name: thing.type_name for thing in task.objects}),
        )


@contextmanager
def _translating(game: GameFile) -> Iterator[None]:
    """Serialize translations and restore the interpreter's state.

    The translator overwrites `sys.argv`. It creates hundreds of thousands of live objects and no cycles, so garbage
    collection would only add a third to the time.
    """
    with _TRANSLATOR:
        arguments, collecting = sys.argv, gc.isenabled()
        gc.disable()
        try:
            yield
        except (EnvError, DataError) as error:
            raise type(error)(f"{game.name}: {error}") from error
        except (Exception, SystemExit) as error:  # the translator and parsers raise anything, even SystemExit
            raise EnvError(
                f"{game.name}: its rules cannot be translated: {type(error).__name__}: {error}. "
                "The file is damaged; write it (`verl-act data games`) or download it (`alfworld-download`) again."
            ) from error
        finally:
            sys.argv = arguments
            if collecting:
                gc.enable()


@lru_cache(maxsize=8)
def _parse_logic(text: str) -> tuple[GameLogic, TextGrammar]:
    logic = GameLogic(domain="", grammar=text)
    grammar = TextGrammar(logic.grammar)
    for name, action in logic.actions.items():
        grammar.add_template(_command_symbol(name), action.template)
        grammar.add_template(_feedback_symbol(name), action.feedback_rule)
    return logic, grammar


# Symbols of a grammar cannot contain a colon, so these never replace one.
def _command_symbol(action: str) -> str:
    return f"command:{action}"


def _feedback_symbol(action: str) -> str:
    return f"feedback:{action}"


def _check_commands_are_static(task: Any, logic: GameLogic) -> None:
    """A command is rendered once per grounded action, so its template must not depend on facts that change."""
    changing = {effect.literal.predicate for action in task.actions for effect in action.effects}
    for name, action in logic.actions.items():
        dynamic = changing.intersection(re.findall(r"(\w+)\(", action.template))
        if dynamic:
            raise EnvError(
                f"The command of action {name!r} depends on changing facts {sorted(dynamic)}: not an ALFWorld game."
            )


def _mentioned(template: str, placeholders: tuple[Placeholder, ...]) -> tuple[Placeholder, ...]:
    words = set(re.findall(r"\w+", template))
    return tuple(placeholder for placeholder in placeholders if placeholder[0] in words)


def _initial_facts(task: Any) -> Facts:
    rows: dict[str, set[tuple[str, ...]]] = {}
    for fact in task.init:
        if isinstance(fact, Atom) and fact.predicate != "=":
            rows.setdefault(fact.predicate, set()).add(tuple(fact.args))
    return {predicate: tuple(sorted(arguments)) for predicate, arguments in rows.items()}


def _name_entities(facts: Facts, types: Mapping[str, str]) -> dict[str, EntityInfo]:
    names = sorted({name for rows in facts.values() for row in rows for name in row})
    entities = {name: EntityInfo(name, types[name]) for name in names}
    demangler = Demangler(game_infos=entities, shuffle=False)
    for entity in entities.values():
        entity.name = demangler.demangle_alfred_name(entity.id)
        entity.definite, entity.indefinite = "the", "a"
    return entities
