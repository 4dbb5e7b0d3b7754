"""The shortcut probe: how often do shallow features of the actions, such as length and verb, reveal the expert's?

A gradient-boosted classifier sees a few numbers and the verb of two actions of a state, and says which is the expert's.
It judges nothing, so a choice accuracy says nothing about judgement unless it is above the probe's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from verl_act.data_prep.pairs.giveaways import matched
from verl_act.extras import needs_extra
from verl_act.parse import normalise, verb
from verl_act.progress import phase
from verl_act.schema import Pair

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

FEATURES = (
    "characters",
    "words",
    "last number",
    "listed",
    "position in the list",
    "listed actions of its verb",
    "words of the goal",
    "words of the observation",
    "words of earlier observations",
    "earlier uses",
    "verb",
)
"""What the probe sees of each action: numbers, shares (of the list, or of the action's words), and the verb."""
MIN_PAIRS = 100
"""The least number of training pairs."""
_FOLDS = 5
_UNSURE = 0.3
"""A smaller lead of one action: a calibrated probe is right in some 60% of such pairs."""
_VERBS = 30
"""The most frequent verbs are features of their own; all others count as one."""
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[0-9]{1,9}")

Array = NDArray[np.float64]
_Part = tuple["HistGradientBoostingClassifier", NDArray[np.int64]]
"""A classifier, and the rows that it scores."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The probe's answers to pairs, in their order, and what they rest on."""

    outcomes: Array
    """1 (right), 0 (wrong) or 0.5 (undecided); shape [pairs]."""
    hard: NDArray[np.bool_]
    """Whether a pair is hard: `matched`, and the probe is unsure; shape [pairs]."""
    importance: dict[str, float]
    """Feature -> accuracy lost when its values are shuffled, the largest first."""

    @property
    def accuracy(self) -> float:
        return float(self.outcomes.mean())

    @property
    def hard_accuracy(self) -> float | None:
        """None if no pair is hard."""
        return float(self.outcomes[self.hard].mean()) if self.hard.any() else None


def probe_pairs(train: Sequence[Pair], scored: Sequence[Pair] = ()) -> ProbeResult | None:
    """Train the probe on `train` and answer `scored`; without these, `train` itself, cross-validated by task.

    The result is deterministic. None if there are too few training pairs (`MIN_PAIRS`) or tasks.
    """
    with needs_extra("report"):
        from sklearn.model_selection import GroupKFold
        from threadpoolctl import threadpool_limits

    tasks = [f"{pair.env}/{pair.task_id}" for pair in train]
    if len(train) < MIN_PAIRS or not (scored or len(set(tasks)) >= _FOLDS):
        return None
    verbs = _verb_codes(train)
    table, owners = _compared(train, verbs)
    # One thread: faster at this size, and sums do not depend on the number of cores.
    with threadpool_limits(1):
        if scored:
            scored_table, owners = _compared(scored, verbs)
            parts = [(_fitted(table), np.arange(len(scored_table)))]
        else:
            scored, scored_table = train, table
            groups = np.array(tasks)[owners]  # no task is in both parts of a fold
            folds = GroupKFold(_FOLDS).split(groups, groups=groups)
            parts = [(_fitted(table[rows]), others) for rows, others in folds]
        leads = _leads(parts, scored_table, owners)
        outcomes = _outcomes(leads)
        accuracy = float(outcomes.mean())
        importance = _importance(parts, scored_table, owners, accuracy)
    hard = np.array([matched(pair) for pair in scored]) & (abs(leads) < _UNSURE)
    return ProbeResult(outcomes, hard, importance)


def _fitted(table: Array) -> HistGradientBoostingClassifier:
    """The classifier of (expert, alternative) against (alternative, expert)."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = np.concatenate([_rows(table), _rows(table[:, ::-1])])
    labels = np.repeat([1, 0], len(table))
    verbs = [rows.shape[1] - 2, rows.shape[1] - 1]
    classifier = HistGradientBoostingClassifier(
        max_iter=60,
        learning_rate=0.2,
        max_leaf_nodes=15,
        categorical_features=verbs,
        early_stopping=False,
        random_state=0,
    )
    return classifier.fit(rows, labels)


def _rows(table: Array) -> Array:
    """Shape [comparisons, columns]: the numbers of both actions, their differences, and the two verbs."""
    first, second = table[:, 0], table[:, 1]
    return np.hstack([first[:, :-1], second[:, :-1], first[:, :-1] - second[:, :-1], table[:, :, -1]])


def _leads(parts: Sequence[_Part], table: Array, owners: NDArray[np.int64]) -> Array:
    """The probability of the expert's action over its closest alternative, from -1 to 1; shape [pairs]."""
    leads = np.zeros(len(table))
    for classifier, rows in parts:
        first, second = (classifier.predict_proba(_rows(side))[:, 1] for side in (table[rows], table[rows][:, ::-1]))
        leads[rows] = first - second
    closest = np.ones(owners[-1] + 1)
    np.minimum.at(closest, owners, leads)
    return closest


def _outcomes(leads: Array) -> Array:
    return 0.5 + np.sign(leads) / 2


def _importance(parts: Sequence[_Part], table: Array, owners: NDArray[np.int64], accuracy: float) -> dict[str, float]:
    lost = {}
    for column, name in enumerate(phase("probing features", len(FEATURES), "feature", FEATURES)):
        generator = np.random.default_rng(column)
        shuffled = table.copy()
        values = generator.permutation(table[:, :, column])
        shuffled[:, :, column] = generator.permuted(values, axis=1)  # else the expert's value would stay the expert's
        lost[name] = accuracy - float(_outcomes(_leads(parts, shuffled, owners)).mean())
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def _verb_codes(pairs: Sequence[Pair]) -> dict[str, int]:
    """The most frequent verbs -> codes from 1; other verbs get 0."""
    counts = Counter(verb(action) for pair in pairs for action in (pair.expert_action, *pair.alternatives))
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: code for code, name in enumerate(ranked[:_VERBS], 1)}


def _compared(pairs: Sequence[Pair], verbs: Mapping[str, int]) -> tuple[Array, NDArray[np.int64]]:
    """The features of (expert's action, alternative), shape [comparisons, 2, features], and the pair of each."""
    table, owners = list[list[list[float]]](), list[int]()
    for index, pair in enumerate(pairs):
        expert, *others = _features(pair, verbs)
        table += [[expert, other] for other in others]
        owners += [index] * len(others)
    return np.array(table), np.array(owners)


def _features(pair: Pair, verbs: Mapping[str, int]) -> list[list[float]]:
    """`FEATURES` of the expert's action and of each alternative."""
    context = pair.context
    listed = [normalise(action) for action in context.admissible_actions]
    listed_verbs = Counter(map(verb, context.admissible_actions))
    texts = [_words(context.goal), _words(context.observation)]
    texts.append(frozenset().union(*(_words(turn.observation) for turn in context.history)))
    earlier = Counter(normalise(turn.action) for turn in context.history)
    rows = []
    for action in (pair.expert_action, *pair.alternatives):
        name, words = normalise(action), _words(action)
        position = listed.index(name) if name in listed else -1
        numbers = _NUMBER.findall(name)
        rows.append(
            [
                len(action),
                len(action.split()),
                float(numbers[-1]) if numbers else -1,
                position >= 0,
                position / len(listed) if position >= 0 else -1,
                listed_verbs[verb(action)] / max(1, len(listed)),
                *(len(words & text) / max(1, len(words)) for text in texts),
                earlier[name],
                verbs.get(verb(action), 0),
            ]
        )
    return rows


@lru_cache(maxsize=100_000)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))
