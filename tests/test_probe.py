"""The shortcut probe: planted shortcuts are seen and named, pairs without any are at chance, and hard pairs resist."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samples import make_context, make_pair

from verl_act.data_prep.pairs.giveaways import matched
from verl_act.data_prep.pairs.probe import FEATURES, MIN_PAIRS, probe_pairs
from verl_act.evaluate.choices import choice_questions, judged_choice, with_probe
from verl_act.evaluate.metric_registry import summary
from verl_act.evaluate.records import CHOICES
from verl_act.schema import Context, Pair, Turn

PLACES = [f"{name} {number}" for name in ("desk", "shelf", "drawer", "cabinet") for number in range(1, 6)]


def state(draw: random.Random) -> Context:
    """Twenty places to go to in a random order, of which the goal, the observation and the past name none."""
    actions = [f"go to {place}" for place in PLACES]
    draw.shuffle(actions)
    return replace(make_context(), goal="win.", observation="a hall", history=(), admissible_actions=tuple(actions))


def pairs_of(choose: Callable[[Context, random.Random], tuple[Context, str, str]], count: int, seed: int) -> list[Pair]:
    """Pairs of (state, expert's action, alternative) as `choose` draws them; three pairs a task."""
    draw, pairs = random.Random(seed), []
    for number in range(count):
        context, expert, other = choose(state(draw), draw)
        task = f"game-{seed}-{number // 3}"
        names = {"task_id": task, "state_id": f"{task}#{number}"}
        pairs.append(make_pair(number, context=context, expert_action=expert, alternative_action=other, **names))
    return pairs


def any_two(context: Context, draw: random.Random) -> tuple[Context, str, str]:
    expert, other = draw.sample(context.admissible_actions, 2)
    return context, expert, other


def earlier_in_the_list(context: Context, draw: random.Random) -> tuple[Context, str, str]:
    first, second = sorted(draw.sample(range(20), 2))
    return context, context.admissible_actions[first], context.admissible_actions[second]


def named_in_the_goal(context: Context, draw: random.Random) -> tuple[Context, str, str]:
    expert, other = draw.sample(context.admissible_actions, 2)
    return replace(context, goal=f"put a mug on {expert.removeprefix('go to ')}."), expert, other


def not_used_before(context: Context, draw: random.Random) -> tuple[Context, str, str]:
    expert, other = draw.sample(context.admissible_actions, 2)
    return replace(context, history=(Turn("a hall", other),)), expert, other


def of_another_verb(context: Context, draw: random.Random) -> tuple[Context, str, str]:
    expert, other = draw.sample(context.admissible_actions, 2)
    return context, expert, other.replace("go to", "sit at")


SHORTCUTS = {
    "position in the list": earlier_in_the_list,
    "words of the goal": named_in_the_goal,
    "earlier uses": not_used_before,
    "verb": of_another_verb,
}


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out", "cross-validated"])
@pytest.mark.parametrize("feature", SHORTCUTS)
def test_a_shortcut_is_seen_and_named(feature: str, held_out: bool) -> None:
    scored = pairs_of(SHORTCUTS[feature], 200, seed=1) if held_out else []
    result = probe_pairs(pairs_of(SHORTCUTS[feature], 400, seed=0), scored)
    assert result is not None and len(result.outcomes) == (200 if held_out else 400)
    assert result.accuracy > 0.85
    assert feature in list(result.importance)[:3] and set(result.importance) == set(FEATURES)


def test_without_a_shortcut_the_probe_is_at_chance_and_sure_of_little() -> None:
    result = probe_pairs(pairs_of(any_two, 900, seed=0), pairs_of(any_two, 900, seed=1))
    assert result is not None and abs(result.accuracy - 0.5) < 0.06
    assert result.hard.mean() > 0.3


def test_the_probe_is_near_chance_on_hard_pairs_where_it_knows_the_others() -> None:
    """A third of the pairs has a shortcut; the hard ones are of the other two."""

    def some(context: Context, draw: random.Random) -> tuple[Context, str, str]:
        return draw.choice((any_two, any_two, named_in_the_goal))(context, draw)

    scored = pairs_of(some, 900, seed=1)
    result = probe_pairs(pairs_of(some, 1800, seed=0), scored)
    assert result is not None and result.hard_accuracy is not None
    assert result.accuracy > 0.6 > result.hard_accuracy
    assert all(matched(pair) for pair, hard in zip(scored, result.hard, strict=True) if hard)


def test_the_order_of_pairs_and_a_second_run_change_nothing() -> None:
    train, scored = pairs_of(named_in_the_goal, 300, seed=0), pairs_of(any_two, 150, seed=1)
    first, again = probe_pairs(train, scored), probe_pairs(train, scored)
    backwards = probe_pairs(train, scored[::-1])
    assert first is not None and again is not None and backwards is not None
    assert np.array_equal(first.outcomes, again.outcomes) and first.importance == again.importance
    assert np.array_equal(first.outcomes, backwards.outcomes[::-1])
    assert np.array_equal(first.hard, backwards.hard[::-1])


def test_a_pair_of_three_actions_needs_the_expert_s_before_both() -> None:
    train = pairs_of(named_in_the_goal, 300, seed=0)
    pair = pairs_of(named_in_the_goal, 1, seed=2)[0]
    both = replace(pair, further_alternatives=(pair.alternative_action.replace("go to", "sit at"),))
    same = replace(pair, further_alternatives=(pair.expert_action,))
    result = probe_pairs(train, [pair, both, same])
    assert result is not None and list(result.outcomes) == [1.0, 1.0, 0.5]


def test_too_few_pairs_or_tasks_have_no_probe() -> None:
    assert probe_pairs(pairs_of(any_two, MIN_PAIRS - 1, seed=0)) is None
    one_task = [replace(pair, task_id="game") for pair in pairs_of(any_two, MIN_PAIRS, seed=0)]
    assert probe_pairs(one_task) is None
    assert probe_pairs(one_task, one_task[:5]) is not None


@pytest.mark.parametrize(
    ("expert", "alternative", "alike"),
    [
        ("go to desk 1", "go to shelf 1", True),
        ("go to desk 1", "sit at desk 1", False),
        ("go to desk 1", "go to desk", False),
        ("go to desk 1", "go to moon 1", False),
    ],
)
def test_matched_pairs_are_listed_and_of_one_verb_and_length(expert: str, alternative: str, alike: bool) -> None:
    listed = ("go to desk 1", "go to desk", "go to shelf 1", "sit at desk 1")
    context = replace(make_context(), admissible_actions=listed)
    assert matched(make_pair(context=context, expert_action=expert, alternative_action=alternative)) is alike


def answered(pairs: list[Pair]) -> list[dict[str, Any]]:
    """Records of a model that always answers with the first of the two."""
    return [
        {
            "pair_id": question.pair.pair_id,
            "order": question.order,
            "task_id": question.pair.task_id,
            "split": question.pair.split,
            "inferable": True,
            "margin": 1,
            "candidates": question.candidates,
            "expert_position": question.candidates.index(question.pair.expert_action),
            "consistent": False,
            **judged_choice(question, "<action>1</action>"),
        }
        for question in choice_questions(pairs)
    ]


def test_choices_on_hard_pairs_and_the_probe_s_stand_beside_the_model_s() -> None:
    pairs = [*pairs_of(any_two, 300, seed=0), *pairs_of(named_in_the_goal, 300, seed=1)]
    result = probe_pairs(pairs)
    assert result is not None and 0 < result.hard.sum() < 600
    metrics = summary({CHOICES: with_probe(answered(pairs), pairs)})["train"]
    assert metrics["choice"]["value"] == metrics["choice_hard"]["value"] == 0.5, "every pair in both orders"
    assert metrics["choice"]["items"] == metrics["choice_probe"]["items"] == 600
    assert metrics["choice_hard"]["items"] == metrics["choice_probe_hard"]["items"] == result.hard.sum()
    assert metrics["choice_probe"]["value"] == pytest.approx(result.accuracy)
    assert metrics["choice_probe_hard"]["value"] == pytest.approx(result.hard_accuracy)


def test_choices_on_few_pairs_have_no_probe() -> None:
    pairs = pairs_of(any_two, 20, seed=0)
    records = answered(pairs)
    assert with_probe(records, pairs) == records
    assert not {"choice_hard", "choice_probe"} & set(summary({CHOICES: records})["train"])
