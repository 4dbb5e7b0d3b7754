"""Goals: what an episode asks for, in WebShop's order, and the splits that the field uses.

The order is WebShop's: all goals in the order of the product file, shuffled by its seed. What WebShop draws without a
seed, the price limit, is drawn here by product and instruction: the same files give the same goals everywhere.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verl_act.envs.base import Task
from verl_act.envs.webshop.catalogue import Catalogue, load_catalogue
from verl_act.envs.webshop.product import Product
from verl_act.envs.webshop.sources import KINDS, Instruction
from verl_act.errors import ConfigError, DataError, EmptySplitError, EnvError

logger = logging.getLogger(__name__)

NAME = "webshop"
SPLITS = ("train", "dev", "test")

NO_LIMIT = 1_000_000.0
"""The price limit, in US dollars, of a product beyond WebShop's price range; the instruction names none then."""

_SHUFFLE_SEED = 233  # WebShop's
_TEST, _DEV = 500, 1000
_LIMITS = [10.0 * tens for tens in range(1, 100)]
_LIMITS_NEAR = 4
_MOST_GOALS = 2_000_000


AskedOption = str | tuple[str, str]
"""An option that a goal asks for: its value, in people's goals; its name and value, in generated ones. WebShop's reward
compares the two in different ways (see `reward.options_alike`).
"""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for. `attributes`, `options` and `price_upper` (US dollars) decide the reward; `row` is the
    product that the instruction was written for.
    """

    row: int
    asin: str
    category: str
    query: str
    name: str
    product_category: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[AskedOption, ...]
    price_upper: float


@lru_cache(maxsize=4)
def list_goals(catalogue: Catalogue, kind: str = "human") -> tuple[Goal, ...]:
    """All goals of `catalogue`, in order: of each instruction by people one; of each generated instruction one for each
    choice of its product's options. Raises `ConfigError` for an unknown kind, `DataError` where there is none.
    """
    if kind not in KINDS:
        raise ConfigError(f"goals is {kind!r}; it must be one of {', '.join(KINDS)}.")
    made = _human_goals(catalogue) if kind == "human" else _synthetic_goals(catalogue)
    goals = list(itertools.islice(made, _MOST_GOALS + 1))
    if not goals:
        other = KINDS[kind == "human"]
        raise DataError(
            f"The catalogue has no {kind} goals: no product in it has such an instruction. WebShop's file of human "
            f"instructions must lie beside the product file; or play goals={other!r}."
        )
    if len(goals) > _MOST_GOALS:
        raise ConfigError(
            f"The catalogue has more than {_MOST_GOALS:,} {kind} goals, one for each choice of a product's options: "
            "more than memory should hold. Play them on the 1,000-product catalogue, or play goals='human'."
        )
    random.Random(_SHUFFLE_SEED).shuffle(goals)
    return tuple(goals)


def _human_goals(catalogue: Catalogue) -> Iterator[Goal]:
    for asked in catalogue.asked("human"):
        product = catalogue.product(asked.row)
        for number, instruction in enumerate(asked.instructions):
            limit, limit_text = _price_limit(product, f"human {number}")
            text = f"{instruction.text.strip('.')}{limit_text}"
            yield _goal(asked.row, product, instruction, text, instruction.options, limit)


def _synthetic_goals(catalogue: Catalogue) -> Iterator[Goal]:
    for asked in catalogue.asked("synthetic"):
        (instruction,) = asked.instructions
        product = catalogue.product(asked.row)
        limit, limit_text = _price_limit(product, "synthetic")
        for options in itertools.product(*([(name, value) for value in of] for name, of in sorted(product.options))):
            chosen = ", and ".join(f"{name}: {value}" for name, value in options)
            text = f"{instruction.text}{f' with {chosen}' if chosen else ''}{limit_text}"
            yield _goal(asked.row, product, instruction, text, options, limit)


def _goal(
    row: int, product: Product, about: Instruction, text: str, options: tuple[AskedOption, ...], limit: float
) -> Goal:
    return Goal(
        row=row,
        asin=product.asin,
        category=product.category,
        query=product.query,
        name=product.name,
        product_category=product.product_category,
        instruction=text,
        attributes=about.attributes,
        options=options,
        price_upper=limit,
    )


def _price_limit(product: Product, which: str) -> tuple[float, str]:
    """The larger of two of the next four multiples of ten dollars above the price, and how an instruction says it."""
    near = [limit for limit in _LIMITS if limit > product.price][:_LIMITS_NEAR]
    if len(near) < 2:
        return NO_LIMIT, ""
    limit = max(random.Random(f"price limit of {product.asin}, {which}").sample(near, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def split_bounds(split: str, goals: int) -> range:
    """The goals of `split`: test 0 to 499, dev 500 to 1499, train the others, as everybody has them.

    A catalogue with too few goals for that (1,500 or less) is cut in the same order, test a sixth, dev a third, train
    the rest. Raises `DataError` for an unknown split, or where nothing is left for it.
    """
    if split not in SPLITS:
        raise DataError(f"WebShop has no split {split!r}; it has {', '.join(SPLITS)}.")
    test, dev = (_TEST, _TEST + _DEV) if _has_standard_splits(goals) else (math.ceil(goals / 6), math.ceil(goals / 2))
    bounds = {"test": range(test), "dev": range(test, dev), "train": range(dev, goals)}[split]
    if not bounds:
        raise EmptySplitError(
            f"The split {split!r} is empty: the catalogue has {goals} goals only. It needs three or more."
        )
    return bounds


def _has_standard_splits(goals: int) -> bool:
    return goals > _TEST + _DEV


@lru_cache(maxsize=4)
def _tell_of_shares(catalogue: Catalogue, kind: str) -> None:
    """Once for a catalogue: that its splits are not the field's, whose 1,000 products have few goals by people."""
    goals = len(list_goals(catalogue, kind))
    if not _has_standard_splits(goals):
        logger.warning(
            "The catalogue has %d %s goals, too few for the usual splits (test: goals 0 to %d, dev: the next %d): "
            "it is cut by shares, and figures do not compare with published ones. With WebShop's 1,000 products others "
            "play synthetic goals, of which there are enough: env_settings.goals=synthetic.",
            goals,
            kind,
            _TEST - 1,
            _DEV,
        )


def list_tasks(
    split: str, data: str | os.PathLike[str] | None = None, goals: str = "human", **_: Any
) -> tuple[Task, ...]:
    """Every goal of `split` once. Further settings of the environment are accepted and mean nothing here.

    Task ids are `17-B0FVH4CJRR`: the goal's number in all splits, and the product it was written for, so that a task
    of one catalogue is not played in another. The type is the product's category, of five. Raises `DataError` for an
    unknown split or where the data are missing or damaged.
    """
    split_bounds(split, 3)  # complain of the split before the data are read
    catalogue = load_catalogue(data)
    found = list_goals(catalogue, goals)
    _tell_of_shares(catalogue, goals)
    return tuple(
        Task(NAME, split, f"{number}-{found[number].asin}", found[number].category)
        for number in split_bounds(split, len(found))
    )


def prepare(data: str | os.PathLike[str] | None = None, goals: str = "human", **_: Any) -> None:
    """Read catalogue and goals, which episodes of this process share; a large catalogue is prepared where it is not."""
    list_goals(load_catalogue(data), goals)


def goal_of(task: Task, goals: tuple[Goal, ...]) -> Goal:
    """The goal that `task` plays. Raises `EnvError` where it is not a task of these goals."""
    number, _, asin = task.task_id.partition("-")
    if task.env != NAME or task.split not in SPLITS or not (number.isascii() and number.isdigit() and len(number) < 10):
        raise EnvError(f"{task}: is not a WebShop task. Ids are like '17-B0FVH4CJRR', splits {', '.join(SPLITS)}.")
    if int(number) not in split_bounds(task.split, len(goals)) or goals[int(number)].asin != asin:
        raise EnvError(
            f"{task}: this catalogue has another goal there, or none in {task.split}. Play it with the settings "
            "(`data`, `goals`) that it was listed with."
        )
    return goals[int(number)]
