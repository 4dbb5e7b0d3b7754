"""A game file, and its compiled form: everything that can be worked out once and shared by all engines of a process.

The stock engine translates PDDL twice and parses the whole grammar at every load, and again at every reset: about
half a second. Here a problem is translated once, and a grammar is parsed once for all games that differ in their
task sentence only.
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
    """The parts of a `game.tw-pddl` file that decide how it plays. `name` is used in messages only."""

    name: str = field(compare=False)
    domain: str
    grammar: str
    problem: str
    walkthrough: tuple[str, ...] = field(compare=False, default=())


@dataclass(frozen=True, slots=True)
class Operator:
    """A grounded action of the planner: what the agent types for it, and what its feedback is rendered from."""

    command: str
    feedback: str
    binding: Binding
    effects: int


@dataclass(slots=True)
class CompiledGame:
    """A translated problem and its compiled grammar. The last three fill up as it is played."""

    file: GameFile
    sas: bytes
    grammar: TextGrammar
    goal: str | None
    """The task sentence that `grammar` leaves open; None where the grammar holds its own."""
    parameters: Mapping[str, tuple[Placeholder, ...]]
    mentioned: Mapping[str, tuple[Placeholder, ...]]
    """The parameters of each action that its command depends on."""
    facts: Facts
    """The initial facts."""
    entities: Mapping[str, EntityInfo]
    commands: dict[tuple[str, ...], str] = field(default_factory=dict)
    operators: dict[int, Operator] = field(default_factory=dict)
    menus: dict[bytes, Menu] = field(default_factory=dict)

    def intro(self) -> str:
        """What the game says before the first action."""
        text = self.grammar.render("intro", Scene(self.facts, self.entities), {})
        return text if self.goal is None else text.replace(_ANY_GOAL, self.goal, 1)

    def operator_from(self, name: str, effects: int) -> Operator:
        """Ground the planner's operator `name`, such as `openobject agent1 loc_1 fridge_1`."""
        action, *arguments = name.split()
        binding = dict(zip(self.parameters[action], arguments, strict=False))
        return Operator(self.command(action, binding), _feedback_symbol(action), binding, effects)

    def command(self, action: str, binding: Binding) -> str:
        """What the agent types for `action`; `binding` must hold the parameters that its template starts from."""
        # Walking is grounded for every pair of places but named by where it leads, so most commands are known already.
        key = (action, *(binding.get(placeholder, "") for placeholder in self.mentioned[action]))
        command = self.commands.get(key)
        if command is None:
            scene = Scene(self.facts, self.entities)
            command = self.commands[key] = self.grammar.render(_command_symbol(action), scene, binding)
        return command


class Menu(NamedTuple):
    """The commands of a state: sorted for showing, and by the number of the operator that each one stands for."""

    commands: tuple[str, ...]
    operators: Mapping[str, int]


def read_game(path: Path) -> GameFile:
    """Read a game file. Raises `EnvError` naming the file, what is wrong with it, and what to do."""
    remedy = "Write the games again (`make-games`) or download them again (`alfworld-download`)."
    try:
        return game_from(read_json(path), name=str(path))
    except DataError as error:
        raise EnvError(str(error) if isinstance(error.__cause__, PermissionError) else f"{error} {remedy}") from error
    except (KeyError, TypeError) as error:
        raise EnvError(f"{path}: is not an ALFWorld game: {error!r} is missing or of a wrong type. {remedy}") from error


def game_from(content: Mapping[str, Any], *, name: str) -> GameFile:
    """The game in the content of a game file. Raises `KeyError` or `TypeError` where a part is missing or no text."""
    for part in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(content[part], str):
            raise TypeError(part)
    return GameFile(
        name=name,
        domain=content["pddl_domain"],
        grammar=content["grammar"],
        problem=content["pddl_problem"],
        walkthrough=tuple(content.get("walkthrough") or ()),
    )


@lru_cache(maxsize=128)
def compile_game(game: GameFile) -> CompiledGame:
    """Translate and compile `game`; kept for the 128 games used last (about 1 MB each).

    Raises `EnvError` where its problem, domain or grammar is malformed, `DataError` where the grammar holds an
    expression that ALFWorld's grammars do not use.
    """
    goal = _GOAL.search(game.grammar)
    shared = game.grammar if goal is None else _GOAL.sub(_ANY_GOAL, game.grammar, count=1)
    with _translating(game):
        task, sas = fast_downward.pddl2sas(game.domain, game.problem)
        logic, grammar = _parse_logic(shared)
        _check_commands_are_static(task, logic)
        facts = _initial_facts(task)
        # Actions that the translator split share a name; the last one counts, as in TextWorld.
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


def translate_for_planner(game: GameFile) -> bytes:
    """The problem in the pruned form that Fast Downward plans on; needed only by `Engine.replan`."""
    with _translating(game):
        return fast_downward.pddl2sas(game.domain, game.problem, optimize=True)[1].encode()


@contextmanager
def _translating(game: GameFile) -> Iterator[None]:
    """One translation at a time, leaving no trace in the interpreter.

    The translator overwrites `sys.argv`; and as it makes hundreds of thousands of live objects and no cycles, the
    garbage collector only costs time (a third of it).
    """
    with _TRANSLATOR:
        arguments, collecting = sys.argv, gc.isenabled()
        gc.disable()
        try:
            yield
        except (EnvError, DataError) as error:
            raise type(error)(f"{game.name}: {error}") from error
        except (Exception, SystemExit) as error:  # translator and parsers raise whatever comes up, down to SystemExit
            raise EnvError(
                f"{game.name}: its rules cannot be translated: {type(error).__name__}: {error}. "
                "The file is damaged; write it again (`make-games`) or download it again (`alfworld-download`)."
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


# A colon is in no symbol that a grammar can name, so these replace none of its own.
def _command_symbol(action: str) -> str:
    return f"command:{action}"


def _feedback_symbol(action: str) -> str:
    return f"feedback:{action}"


def _check_commands_are_static(task: Any, logic: GameLogic) -> None:
    """A command is rendered once a grounded action, so its template must not ask for facts that change."""
    changing = {effect.literal.predicate for action in task.actions for effect in action.effects}
    for name, action in logic.actions.items():
        asked = changing.intersection(re.findall(r"(\w+)\(", action.template))
        if asked:
            raise EnvError(
                f"The command of action {name!r} depends on changing facts {sorted(asked)}: not an ALFWorld game."
            )


def _mentioned(template: str, placeholders: tuple[Placeholder, ...]) -> tuple[Placeholder, ...]:
    words = set(re.findall(r"\w+", template))
    return tuple(placeholder for placeholder in placeholders if placeholder[0] in words)


def _initial_facts(task: Any) -> Facts:
    rows: dict[str, set[tuple[str, ...]]] = {}
    for fact in task.init:
        if isinstance(fact, Atom) and fact.predicate != "=":
            rows.setdefault(fact.predicate, set()).add(tuple(fact.args))
    return {predicate: tuple(sorted(found)) for predicate, found in rows.items()}


def _name_entities(facts: Facts, types: Mapping[str, str]) -> dict[str, EntityInfo]:
    names = sorted({name for rows in facts.values() for row in rows for name in row})
    entities = {name: EntityInfo(name, types[name]) for name in names}
    demangler = Demangler(game_infos=entities, shuffle=False)
    for entity in entities.values():
        entity.name = demangler.demangle_alfred_name(entity.id)
        entity.definite, entity.indefinite = "the", "a"
    return entities
