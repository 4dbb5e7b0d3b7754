"""Imports published WebShop trajectories: rows are known by their instruction, and titles become product ids.

`webshop-human` is the format of WebShop's human demonstrations (arXiv 2207.01206). A row is an episode: `actions` click
products by their asin, `actions_translate` by their title (`click[item - <title>]`); `states` are the pages, and the
first one shows the instruction.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from verl_act.envs.base import Environment, Task
from verl_act.envs.importer import Published, RespellError, RowError, RowFormat, TrajectoryImporter, texts_in
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.goals import list_goals
from verl_act.envs.webshop.instruction import price_limit, without_limit
from verl_act.envs.webshop.session import Page
from verl_act.parse import normalise

DEMONSTRATION = "webshop-human"
_DEMONSTRATION_KEYS = frozenset({"action_idxs", "actions_translate", "available_actions"})
_KEYS_OF_OTHERS = frozenset({"conversations", "messages", "instruction", "task_id"})
# Some readers of these data convert everything to lower case.
_INSTRUCTION = re.compile(r"\binstruction:", re.IGNORECASE)
_BEFORE_INSTRUCTION = re.compile(r"Instruction:|Your task is to:")
_ACTION = re.compile(r"\W*(?:search|click)\[", re.IGNORECASE)
_TITLE = re.compile(r"click\[item - (.*)\]", re.IGNORECASE | re.DOTALL)  # titles may contain brackets
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class NoSuchProduct(RespellError):
    """Not exactly one product on the page has this title."""

    kind = "no such product on the page"


def is_demonstration(row: Mapping[str, Any]) -> bool:
    """Whether a row's keys are those of WebShop's human demonstrations and of no other format."""
    return "states" in row and not row.keys() & _KEYS_OF_OTHERS and bool(row.keys() & _DEMONSTRATION_KEYS)


def read_demonstration(index: int, row: Mapping[str, Any]) -> Published:
    """Prefer `actions` to `actions_translate`: an asin identifies a product, but several may share a title."""
    key = "actions" if "actions" in row or "actions_translate" not in row else "actions_translate"
    actions = tuple(action.strip() for action in texts_in(row, key))
    before, *after = _INSTRUCTION.split(texts_in(row, "states")[0], maxsplit=1)
    if not after:
        raise RowError(f"its first state shows no 'Instruction:' but {before!r:.50}")
    return Published(index, "", after[0], actions, (None,) * len(actions), DEMONSTRATION)


class WebShopImporter(TrajectoryImporter):
    """Rows are known by their instruction, without its price limit, which WebShop samples at random."""

    formats = MappingProxyType({DEMONSTRATION: RowFormat(is_demonstration, read_demonstration)})

    @classmethod
    def recognizes(cls, row: Published) -> bool:
        named = row.task.lower().startswith("webshop_")
        return named or any(map(_ACTION.match, row.actions)) or "[sep]" in row.instruction.lower()

    def find_tasks(self, row: Published) -> Sequence[Task]:
        if row.task in self.tasks_by_id:
            return [self.tasks_by_id[row.task]]
        matches = self._by_instruction.get(_instruction_key(row.instruction), [])
        # ETO's ids are goal indices: of several goals with the same instruction, that one comes first.
        return sorted(matches, key=lambda task: task.task_id.partition("-")[0] != row.task)

    def respell(self, action: str, admissible: Sequence[str], environment: Environment) -> str:
        """Return `click[<asin>]` for the click on a title that one product on the current page of results has.

        Titles are compared after `normalise`, since the demonstrations are in lower case. Raises `NoSuchProduct`.
        """
        match = _TITLE.fullmatch(action)
        if match is None:
            return action
        assert isinstance(environment, WebShopEnvironment)
        title, state = match[1], environment.snapshot().state
        if state.page is not Page.RESULTS:
            raise NoSuchProduct(f"{title!r} is clicked on a page that lists no products ({state.page})")
        catalogue = load_catalogue(self.settings.get("data"))  # the environment's: a process shares its catalogues
        listed = [catalogue.product(row) for row in state.listed()]
        asins = [product.asin.lower() for product in listed if normalise(product.name) == normalise(title)]
        if len(asins) == 1:
            return f"click[{asins[0]}]"
        page = f"page {state.page_number} of the results"
        if asins:
            raise NoSuchProduct(
                f"{title!r} matches {len(asins)} products on {page} ({', '.join(asins)}); the row does not say which"
            )
        raise NoSuchProduct(
            f"{title!r} matches none of the {len(listed)} products on {page}; the row needs the catalogue that it was "
            "made with, and a search that ranks products the same way"
        )

    def holds(self, thought: str, row: Published, goal: str) -> bool:
        """Whether the thought does not name a price limit of the row that differs from the one of `goal`."""
        row_limit = price_limit(_instruction(row.instruction))
        return row_limit in (None, price_limit(goal)) or row_limit not in map(float, _NUMBER.findall(thought))

    def hint(self, row: Published, *, task_known: bool) -> str:
        if task_known:
            return ""
        used = self.settings.get("goals", "human")
        other = "human" if used == "synthetic" else "synthetic"
        return (
            f"searched among the {used} goals: rows of the other kind need --env-settings goals={other}, and every row "
            "needs the catalogue that it was made with"
        )

    @cached_property
    def _by_instruction(self) -> dict[str, list[Task]]:
        goals = list_goals(load_catalogue(self.settings.get("data")), self.settings.get("goals", "human"))
        by_instruction: dict[str, list[Task]] = defaultdict(list)
        for task in self.tasks:
            by_instruction[_instruction_key(goals[int(task.task_id.partition("-")[0])].instruction)].append(task)
        return by_instruction


def _instruction_key(text: str) -> str:
    """Return an instruction without the page around it and without its price limit."""
    return without_limit(_instruction(text)).strip(" .").lower()


def _instruction(text: str) -> str:
    """Return an instruction without the page around it."""
    text = _BEFORE_INSTRUCTION.split(text, maxsplit=1)[-1]
    lines = map(str.strip, re.split(r"\[SEP\]|\n", text))
    return next(filter(None, lines), "").strip(" .")
