"""Goals of episodes, in WebShop's order, and the usual splits.

As in WebShop, all goals are listed in the order of the product file and shuffled with its seed. WebShop samples price
limits without a seed; here product and instruction seed them, so the same files always give the same goals.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
from collections.abc import Collection, Iterator
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
SPLIT_BY = ("goal", "product")
"""WebShop's splits share products: most test goals are for one that has train goals too. With `product` none do."""

NO_LIMIT = 1_000_000.0
"""The price limit, in US dollars, of a product above WebShop's price range; its instruction names no limit."""

_SHUFFLE_SEED = 233  # WebShop's
_TEST, _DEV = 500, 1000
_LIMITS = [10.0 * tens for tens in range(1, 100)]
_LIMITS_NEAR = 4
_MOST_GOALS = 2_000_000


AskedOption = str | tuple[str, str]
"""An option that a goal asks for: its value in human goals, its name and value in synthetic ones. WebShop's reward
compares the two differently (see `reward.options_alike`).
"""


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal of an episode. `attributes`, `options` and `price_upper` (US dollars) decide the reward; `row` is the
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
    """Return all goals of `catalogue`, in order: one per human instruction, or one per synthetic instruction and choice
    of its product's options. Raises `ConfigError` for an unknown kind, `DataError` if there are no goals.
    """
    if kind not in KINDS:
        raise ConfigError(f"goals is {kind!r}; it must be one of {', '.join(KINDS)}.")
    goals = list(itertools.islice(_goals(catalogue, kind), _MOST_GOALS + 1))
    if not goals:
        other = KINDS[kind == "human"]
        raise DataError(
            f"The catalogue has no {kind} goals: no product in it has such an instruction. Put WebShop's file of human "
            f"instructions next to the product file, or play goals={other!r}."
        )
    if len(goals) > _MOST_GOALS:
        raise ConfigError(
            f"The catalogue has more than {_MOST_GOALS:,} {kind} goals, one per choice of a product's options: "
            "too many to hold in memory. Play them on the 1,000-product catalogue, or play goals='human'."
        )
    random.Random(_SHUFFLE_SEED).shuffle(goals)
    return tuple(goals)


def _goals(catalogue: Catalogue, kind: str) -> Iterator[Goal]:
    for row, instructions in catalogue.instructions(kind):
        product = catalogue.product(row)
        for index, instruction in enumerate(instructions):
            limit, limit_text = _price_limit(product, f"human {index}" if kind == "human" else "synthetic")
            for text, options in _asked(instruction, product, kind):
                yield Goal(
                    row=row,
                    asin=product.asin,
                    category=product.category,
                    query=product.query,
                    name=product.name,
                    product_category=product.product_category,
                    instruction=f"{text}{limit_text}",
                    attributes=instruction.attributes,
                    options=options,
                    price_upper=limit,
                )


def _asked(instruction: Instruction, product: Product, kind: str) -> Iterator[tuple[str, tuple[AskedOption, ...]]]:
    """Yield the texts of the goals of an instruction, without price limit, and the options that they ask for."""
    if kind == "human":
        yield instruction.text.strip("."), instruction.options
        return
    for options in itertools.product(*([(name, value) for value in of] for name, of in sorted(product.options))):
        chosen = ", and ".join(f"{name}: {value}" for name, value in options)
        yield f"{instruction.text}{f' with {chosen}' if chosen else ''}", options


def _price_limit(product: Product, which: str) -> tuple[float, str]:
    """Return the larger of two random ones of the next four multiples of ten dollars above the price, and its text."""
    near = [limit for limit in _LIMITS if limit > product.price][:_LIMITS_NEAR]
    if len(near) < 2:
        return NO_LIMIT, ""
    limit = max(random.Random(f"price limit of {product.asin}, {which}").sample(near, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def split_bounds(split: str, goals: int) -> range:
    """Return the goals of `split`: test 0 to 499, dev 500 to 1499, train the rest, as is usual.

    A catalogue with 1,500 goals or fewer is divided in the same order: a sixth for test, a third for dev, the rest for
    train. Raises `DataError` for an unknown or empty split.
    """
    if split not in SPLITS:
        raise DataError(f"WebShop has no split {split!r}; it has {', '.join(SPLITS)}.")
    test, dev = (_TEST, _TEST + _DEV) if goals > _TEST + _DEV else (math.ceil(goals / 6), math.ceil(goals / 2))
    bounds = {"test": range(test), "dev": range(test, dev), "train": range(dev, goals)}[split]
    if not bounds:
        raise EmptySplitError(
            f"The split {split!r} is empty: the catalogue has only {goals} goals. It needs three or more."
        )
    return bounds


@lru_cache(maxsize=12)
def split_goals(catalogue: Catalogue, kind: str, split: str, split_by: str = SPLIT_BY[0]) -> Collection[int]:
    """Return the indices of the goals of `split` among `list_goals`, in order.

    By `product`, a split has all goals of its products and at least as many as WebShop's split, as long as there are
    products left. Raises `ConfigError` for an unknown `split_by`, otherwise as `split_bounds`.
    """
    if split_by not in SPLIT_BY:
        raise ConfigError(f"split_by is {split_by!r}; it must be one of {', '.join(SPLIT_BY)}.")
    goals = list_goals(catalogue, kind)
    bounds = split_bounds(split, len(goals))
    if split_by == "goal":
        return bounds
    by_product: dict[int, list[int]] = {}
    for index, goal in enumerate(goals):
        by_product.setdefault(goal.row, []).append(index)
    products = iter(by_product.values())
    for name in ("test", "dev", "train"):
        indices: list[int] = []
        while len(indices) < len(split_bounds(name, len(goals))) and (own := next(products, None)):
            indices += own
        if name == split:
            break
    if not indices:
        raise EmptySplitError(
            f"The split {split!r} is empty: the catalogue has only {len(by_product)} products with goals. Use "
            "split_by='goal'."
        )
    return dict.fromkeys(sorted(indices)).keys()  # in which a look-up is fast


@lru_cache(maxsize=4)
def _warn_of_small_splits(catalogue: Catalogue, kind: str) -> None:
    """Warn, once per catalogue, if it is too small for the usual splits, as WebShop's 1,000 products are."""
    goals = len(list_goals(catalogue, kind))
    if goals <= _TEST + _DEV:
        logger.warning(
            "The catalogue has %d %s goals, too few for the usual splits (test: goals 0 to %d, dev: the next %d): "
            "it is split by shares, and results do not compare with published ones. For WebShop's 1,000 products, "
            "synthetic goals are usual, of which there are enough: env_settings.goals=synthetic.",
            goals,
            kind,
            _TEST - 1,
            _DEV,
        )


def list_tasks(
    split: str,
    data: str | os.PathLike[str] | None = None,
    goals: str = "human",
    split_by: str = SPLIT_BY[0],
    **_: Any,
) -> tuple[Task, ...]:
    """Return one task per goal of `split`. Other settings of the environment are accepted and ignored.

    Task ids are like `17-B0FVH4CJRR`: the goal's index over all splits, and the product that it was written for, so
    that a task of one catalogue is not played in another. The task type is one of five product categories. Raises
    `DataError` for an unknown split or if the data are missing or damaged.
    """
    split_bounds(split, 3)  # refuse an unknown split before reading the data
    catalogue = load_catalogue(data)
    all_goals = list_goals(catalogue, goals)
    _warn_of_small_splits(catalogue, goals)
    return tuple(
        Task(NAME, split, f"{index}-{all_goals[index].asin}", all_goals[index].category)
        for index in split_goals(catalogue, goals, split, split_by)
    )


def prepare(data: str | os.PathLike[str] | None = None, goals: str = "human", **_: Any) -> None:
    """Load catalogue and goals, which episodes of a process share; build the cache of a large catalogue if needed."""
    list_goals(load_catalogue(data), goals)


def goal_of(task: Task, catalogue: Catalogue, kind: str, split_by: str) -> Goal:
    """Return the goal of `task`. Raises `EnvError` if it is not a task of these goals and splits."""
    goals = list_goals(catalogue, kind)
    index, _, asin = task.task_id.partition("-")
    if task.env != NAME or task.split not in SPLITS or not (index.isascii() and index.isdigit() and len(index) < 10):
        raise EnvError(f"{task}: not a WebShop task. Ids are like '17-B0FVH4CJRR', splits {', '.join(SPLITS)}.")
    if int(index) not in split_goals(catalogue, kind, task.split, split_by) or goals[int(index)].asin != asin:
        raise EnvError(
            f"{task}: this catalogue has another goal at this index, or none in {task.split}. Play it with the "
            "settings (`data`, `goals`, `split_by`) that it was listed with."
        )
    return goals[int(index)]
