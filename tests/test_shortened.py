"""A shortened list of admissible actions does not tell which candidate is the expert's: a learner stays at chance."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from verl_act.data_prep.expert.collect_expert import play
from verl_act.envs.base import Task
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.envs.scienceworld.experts import GoldExpert
from verl_act.envs.scienceworld.variations import list_tasks
from verl_act.parse import verb
from verl_act.prompts import get_template
from verl_act.prompts.shortened import shortened
from verl_act.schema import Context

LISTED = 60
PER_STATE = 40
"""Choices asked at each state."""

Candidates = tuple[str, str]
"""The expert's action, which the policy has not seen, and the alternative."""
Shorten = Callable[[Sequence[str], int, Sequence[str]], Sequence[str]]


@pytest.fixture(scope="module")
def contexts() -> list[Context]:
    """States of gold paths whose lists are shortened."""
    environment, expert = ScienceWorldEnvironment(max_steps=30), GoldExpert()
    names = ("find-animal", "find-plant", "lifespan-longest-lived", "chemistry-mix-paint-secondary-color")
    tasks: list[Task] = [task for name in names for task in list_tasks("train", [name])[:2]]
    steps = [step for task in tasks for step in play(environment, expert, task, source="gold")]
    environment.close()
    return [step.context for step in steps if len(step.context.admissible_actions) > LISTED]


def seen_and_unseen(actions: Sequence[str], rng: random.Random) -> Iterator[Candidates]:
    """An alternative from the list without candidates, as a policy copies it, and an expert's action that it lacks.

    Both are of kinds that are not listed completely, each kind as often the expert's as the alternative's.
    """
    listed = set(shortened(actions, LISTED))
    seen, unseen = _by_kind(action for action in actions if action in listed), _by_kind({*actions} - listed)
    kinds = sorted(seen.keys() & unseen.keys())
    for _ in range(PER_STATE if len(kinds) > 1 else 0):
        expert, other = rng.sample(kinds, 2)
        yield rng.choice(unseen[expert]), rng.choice(seen[other])


def listed_and_refused(actions: Sequence[str], rng: random.Random) -> Iterator[Candidates]:
    """An alternative that the environment refuses, and an admissible action of the expert."""
    kinds = _by_kind(actions)
    for _ in range(PER_STATE):
        expert, other = rng.sample(sorted(kinds), 2)
        yield rng.choice(kinds[expert]), f"{rng.choice(kinds[other])} twice"


def _by_kind(actions: Sequence[str] | Iterator[str] | set[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for action in sorted(actions):
        kinds.setdefault(verb(action), []).append(action)
    return kinds


def features(prompt: str, candidates: Sequence[str]) -> list[float]:
    """What the list in `prompt` shows about two candidates: counts, kinds, positions and neighbours."""
    listed = re.findall(r"^- (.*)$", prompt, re.MULTILINE)
    shown, total = map(int, re.findall(r"\((\d+) of (\d+)\)", prompt)[0])
    counts = Counter(map(verb, listed))
    row: list[float] = [len(listed), shown, total, len(counts)]
    described = [_described(candidate, listed, counts) for candidate in candidates]
    return row + [value for one in described for value in one] + [a - b for a, b in zip(*described, strict=True)]


def _described(candidate: str, listed: Sequence[str], counts: Counter[str]) -> list[float]:
    kind = [action for action in listed if verb(action) == verb(candidate)]
    if candidate not in listed:
        return [0, -1, -1, len(kind), max(counts.values()) - len(kind), -1, -1]
    index = listed.index(candidate)
    neighbours = [listed[other] for other in (index - 1, index + 1) if 0 <= other < len(listed)]
    alike = max(sum(a == b for a, b in zip(candidate, other, strict=False)) for other in neighbours)
    repeated = listed.count(candidate)
    return [repeated, index, kind.index(candidate), len(kind), max(counts.values()) - len(kind), alike, len(neighbours)]


def accuracy(contexts: Sequence[Context], draw: Callable, shorten: Shorten | None = None) -> tuple[float, int]:
    """How often a learner names the expert's action in unseen states, and the number of choices it was asked."""
    rng, template = random.Random(0), get_template("plain", max_listed=LISTED)
    rows, labels, groups = [], [], []
    for group, context in enumerate(contexts):
        for expert, other in draw(context.admissible_actions, rng):
            candidates, first = [expert, other], rng.random() < 0.5
            candidates = candidates if first else candidates[::-1]
            if shorten is None:
                prompt = template.choice_messages(context, candidates)[0]["content"]
            else:
                listed = shorten(context.admissible_actions, LISTED, candidates)
                heading = f"Admissible actions ({len(listed)} of {len(context.admissible_actions)}):"
                prompt = "\n".join([heading, *(f"- {action}" for action in listed)])
            rows.append(features(prompt, candidates))
            labels.append(first)
            groups.append(group)
    held_out = np.array(groups) % 2 == 1
    x, y = np.array(rows, dtype=float), np.array(labels)
    learner = HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0).fit(
        x[~held_out], y[~held_out]
    )
    return float(learner.score(x[held_out], y[held_out])), int(held_out.sum())


def appended(actions: Sequence[str], most: int, candidates: Sequence[str]) -> tuple[str, ...]:
    """A rule that gives the label away: what the list lacks is added to it."""
    listed = {*shortened(actions, most), *candidates}
    return tuple(action for action in actions if action in listed)


@pytest.mark.parametrize("draw", [seen_and_unseen, listed_and_refused])
def test_the_list_tells_no_label(draw: Callable, contexts: list[Context]) -> None:
    reached, count = accuracy(contexts, draw)
    assert count > 1000
    assert abs(reached - 0.5) < 4 * 0.5 / count**0.5


@pytest.mark.parametrize("draw", [seen_and_unseen, listed_and_refused])
def test_the_learner_uses_a_list_that_tells(draw: Callable, contexts: list[Context]) -> None:
    assert accuracy(contexts, draw, appended)[0] > 0.65
