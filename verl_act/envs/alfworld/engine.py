"""Plays a game on Fast Downward's library: ALFWorld's own rules and texts, about 100 times as fast as the stock engine.

Gives the transcript of `textworld.envs.PddlEnv` under ALFWorld's wrappers, word for word. Fast Downward still applies
the rules and TextWorld's grammar still defines the texts; only the work that the stock engine repeats at every step is
gone (see `grammar` and `game`). States can be saved and restored; a reset restores the first state.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import fast_downward
import numpy as np

from verl_act.envs.alfworld.facts import Facts, assign, parse_atom
from verl_act.envs.alfworld.game import CommandMenu, CompiledGame, GameFile, compile_game
from verl_act.envs.alfworld.grammar import Scene
from verl_act.envs.alfworld.planner_library import load_library

_NOTHING = "Nothing happens."
_MENU_LIMIT = 4096
"""Menus cached per game (some kilobytes each); a random walk rarely sees more."""


class Frame(NamedTuple):
    """The engine's response."""

    feedback: str
    commands: tuple[str, ...]
    won: bool


class AlfworldState(NamedTuple):
    """A state to return to. Valid until the next `load`."""

    state_id: int
    facts: Facts
    menu: CommandMenu
    won: bool


class AlfworldEngine:
    """Plays one game at a time. Not thread-safe.

    Each engine loads a separate copy of the planner library (1 MB of memory until the process ends), so reuse engines.
    """

    def __init__(self) -> None:
        self._library = load_library()
        for name, arguments, result in (("get_state_id", [], ctypes.c_int), ("set_state_id", [ctypes.c_int], None)):
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, result
        self._operators = _OperatorBuffer(256)
        self._game: CompiledGame | None = None
        self.facts: Facts = {}
        """The true facts of the current state (privileged)."""
        self._menu = CommandMenu((), {})
        self._won = False
        self._first: AlfworldState | None = None

    @property
    def game(self) -> CompiledGame:
        """The loaded game."""
        assert self._game is not None, "load a game first"
        return self._game

    def load(self, game: GameFile) -> None:
        """Load `game` and go to its first state. Raises `EnvError` if it is malformed."""
        compiled = compile_game(game)
        if compiled is self._game and self._first is not None:
            self.return_to(self._first)
            return
        self._first = None  # until loaded: a partly loaded game must not be played
        self._library.load_sas(compiled.sas)
        self._game, self.facts, self._won = compiled, compiled.facts, self._library.check_goal()
        self._menu = self._read_menu()
        self._first = self.state()

    def reset(self) -> Frame:
        """Restore the first state."""
        assert self._first is not None, "load a game first"
        self.return_to(self._first)
        return Frame(self.game.intro(), self._menu.commands, self._won)

    def step(self, command: str) -> Frame:
        """Execute `command`. A command that is not in the current menu changes nothing."""
        index = self._menu.operators.get(command.strip())
        if index is None:
            return Frame(_NOTHING, self._menu.commands, self._won)
        operator = self.game.operators[index]
        effects = (fast_downward.Atom * operator.effects)()
        self._library.apply_operator(index, effects)
        self.facts = dict(self.facts)
        for effect in effects:
            assign(self.facts, parse_atom(effect._name))
        feedback = self.game.grammar.render(operator.feedback, Scene(self.facts, self.game.entities), operator.binding)
        self._menu = self._read_menu()
        self._won = self._library.check_goal()
        return Frame(feedback, self._menu.commands, self._won)

    def state(self) -> AlfworldState:
        """The current state, to `return_to` later."""
        return AlfworldState(self._library.get_state_id(), self.facts, self._menu, self._won)

    def return_to(self, state: AlfworldState) -> None:
        """Restore `state`, which must come from this engine since its last `load`."""
        self._library.set_state_id(state.state_id)
        self.facts, self._menu, self._won = state.facts, state.menu, state.won

    def _read_menu(self) -> CommandMenu:
        indices = self._operators.read(self._library)
        key = indices.tobytes()
        menus = self.game.menus
        menu = menus.get(key)
        if menu is None:
            if len(menus) >= _MENU_LIMIT:
                menus.clear()
            menu = menus[key] = self._make_menu(indices.tolist())
        return menu

    def _make_menu(self, indices: Iterable[int]) -> CommandMenu:
        game = self.game
        operators: dict[str, int] = {}
        for position, index in enumerate(indices):
            operator = game.operators.get(index)
            if operator is None:
                native = self._operators.items[position]
                operator = game.operators[index] = game.operator_from(native.name, native.nb_effect_atoms)
            # The first of several operators with one command is the one that the stock engine applies.
            operators.setdefault(operator.command, index)
        return CommandMenu(tuple(sorted(operators)), operators)


class _OperatorBuffer:
    """The array that the library fills with applicable operators. Grows when needed; reads only their indices."""

    def __init__(self, size: int) -> None:
        self._grow(size)

    def _grow(self, size: int) -> None:
        self.items = (fast_downward.Operator * size)()
        stride = ctypes.sizeof(fast_downward.Operator)
        rows = np.frombuffer(self.items, dtype=np.uint8).reshape(size, stride)
        self._indices = rows[:, : ctypes.sizeof(ctypes.c_int)]

    def read(self, library: ctypes.CDLL) -> np.ndarray:
        """The indices of the applicable operators, in the library's order."""
        count = library.get_applicable_operators_count()
        if count > len(self.items):
            self._grow(2 * count)
        library.get_applicable_operators(self.items)
        return np.ascontiguousarray(self._indices[:count]).view(np.int32).ravel()
