"""Statistics of an evaluation and of a comparison, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_act.evaluate.statistics import (
    ItemOutcome,
    against,
    effective_count,
    estimate,
    holm,
    seed_p,
    share_interval,
    wilson_interval,
)


def items(values: Mapping[str, float]) -> dict[str, ItemOutcome]:
    """Items that have nothing in common."""
    return {item: ItemOutcome(value) for item, value in values.items()}


def test_one_seed_is_wilson_and_mcnemar() -> None:
    ours = items({str(number): float(number < 14) for number in range(20)})
    theirs = items({str(number): float(3 <= number < 10) for number in range(20)})
    found = estimate([ours], is_share=True)
    assert (found.value, found.items, found.deviation) == (0.7, 20, None)
    assert (found.low, found.high) == pytest.approx((0.4810, 0.8545), abs=1e-4)
    test = against([ours], [theirs])
    assert test is not None and test.difference == pytest.approx(7 / 20)
    assert test.p_tasks == pytest.approx(2 * 0.5**7), "seven gained, none lost"


def test_several_seeds_are_averaged_by_item_and_spread_over_seeds() -> None:
    values = ({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 1.0})
    seeds = [items(seed) for seed in values]
    found = estimate(seeds, is_share=True)
    assert found.value == pytest.approx(6 / 9)
    assert found.by_seed == pytest.approx([2 / 3, 1.0, 1 / 3])
    assert found.deviation == pytest.approx(1 / 3)
    assert (found.low, found.high) == pytest.approx(wilson_interval(2, 3)), "three items, however often they are asked"
    assert estimate(seeds, is_share=True) == found, "the same items give the same interval"
    assert estimate([], True).value is None


def test_a_share_counts_as_many_items_as_its_tasks_leave_independent() -> None:
    tasks = [number // 10 for number in range(200)]
    alike = [float(task % 2) for task in tasks]
    assert effective_count(alike, tasks) == pytest.approx(20)
    apart = np.random.default_rng(0).permutation(alike).tolist()
    assert 120 < effective_count(apart, tasks) <= 200
    assert effective_count(alike, list(range(200))) == 200, "one item a task"
    widths = []
    for right in (0, 1, 2):
        low, high = share_interval([1.0] * right + [0.0] * (200 - right), tasks)
        assert low <= right / 200 <= high
        widths.append(high)
    assert widths == sorted(widths), "one success more does not make the interval end lower"


def test_copies_of_a_seed_tell_nothing_new() -> None:
    seed = items({str(number): float(number < 22) for number in range(23)})
    one, three = estimate([seed], is_share=True), estimate([seed] * 3, is_share=True)
    for found in (one, three):
        assert (found.low, found.high) == pytest.approx(wilson_interval(22, 23))


def test_a_difference_has_an_interval_where_there_is_one() -> None:
    ours, theirs = ({str(number): float(number % other == 0) for number in range(60)} for other in (2, 3))
    found = against([items(ours)], [items(theirs)])
    assert found is not None and found.low is not None and found.high is not None
    assert found.difference == pytest.approx(1 / 6) and found.low < found.difference < found.high
    same = against([items(ours)], [items(ours)])
    assert same is not None and same.low is None and same.p_tasks == 1.0


def test_more_seeds_of_no_success_are_not_certainty() -> None:
    nothing = items({str(number): 0.0 for number in range(72)})
    one, two = estimate([nothing], is_share=True), estimate([nothing, nothing], is_share=True)
    assert (one.low, one.high) == (two.low, two.high) == pytest.approx((0.0, 0.0506), abs=1e-4)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_sign_flips_agree_with_mcnemar_where_both_apply(outcomes_of_both: list[tuple[bool, bool]]) -> None:
    ours = {str(number): float(first) for number, (first, _) in enumerate(outcomes_of_both)}
    theirs = {str(number): float(second) for number, (_, second) in enumerate(outcomes_of_both)}
    exact = against([items(ours)], [items(theirs)])
    halves = ({item: value / 2 for item, value in side.items()} for side in (ours, theirs))
    halved = against(*([items(side)] for side in halves))
    assert exact is not None and halved is not None
    assert halved.p_tasks == pytest.approx(exact.p_tasks, abs=0.01)
    back = against([items(theirs)], [items(ours)])
    assert back is not None and (back.difference, back.p_tasks) == (-exact.difference, exact.p_tasks)


def test_no_common_item_is_no_test() -> None:
    assert against([items({"a": 1.0})], [items({"b": 1.0})]) is None


def test_five_copies_of_every_answer_say_no_more_than_one() -> None:
    """The states of one game are not independent: were they counted as such, the interval would be far too narrow."""
    rng = np.random.default_rng(0)
    alone = {str(task): ItemOutcome(float(rng.random() < 0.6), task=task) for task in range(40)}
    copies = {f"{task}#{copy}": outcome for task, outcome in alone.items() for copy in range(5)}
    one, five = estimate([alone], is_share=True), estimate([copies], is_share=True)
    assert (five.value, five.items) == (one.value, 200)
    widths = [found.high - found.low for found in (one, five) if found.high is not None and found.low is not None]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    worse = {
        name: outcome._replace(amount=0.0 if outcome.task < 6 else outcome.amount) for name, outcome in copies.items()
    }
    lost = sum(outcome.amount for outcome in list(alone.values())[:6])
    test = against([worse], [copies])
    assert test is not None and test.p_tasks == pytest.approx(2 * 0.5**lost, abs=0.01), "a game has one sign, not five"


def test_all_alike_is_as_sure_as_the_number_of_tasks() -> None:
    found = estimate([{str(number): ItemOutcome(1.0, task=number % 36) for number in range(200)}], is_share=True)
    assert (found.low, found.high) == pytest.approx(wilson_interval(36, 36))


def test_a_ratio_is_of_sums() -> None:
    """Ten tokens of ten and none of ninety are a tenth, not a half."""
    found = estimate([{"a": ItemOutcome(10, 10), "b": ItemOutcome(0, 90)}], is_share=False)
    assert found.value == pytest.approx(0.1) and (found.low, found.high) == pytest.approx((0.0, 1.0))
    steps = {"won": ItemOutcome(6, 1), "lost": ItemOutcome(0, 0), "won later": ItemOutcome(8, 1)}
    assert (estimate([steps], is_share=False).value, estimate([steps], is_share=False).items) == (7.0, 2)
    assert estimate([{"lost": ItemOutcome(0, 0)}], is_share=False).value is None
    assert against([steps], [{"won": ItemOutcome(0, 0), "lost": ItemOutcome(0, 0)}]) is None
    longer = against(
        [{"won": ItemOutcome(9, 1), "lost": ItemOutcome(0, 0)}], [{"won": ItemOutcome(6, 1), "lost": ItemOutcome(4, 1)}]
    )
    assert longer is not None and (longer.difference, longer.items) == (4.0, 2)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # statsmodels' multipletests(method="holm").
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.0001, 0.5, 0.02, 0.02, 0.9], [0.0005, 1.0, 0.08, 0.08, 1.0]),
        ([0.3], [0.3]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_only_raises(thousandths: list[int]) -> None:
    p_values = [value / 1000 for value in thousandths]
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert max(adjusted) >= min(1.0, min(p_values) * len(p_values))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[index] for index in order] == sorted(adjusted)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        # Worked out by hand: t = 5.0, 4 degrees of freedom.
        ([0.6, 0.7, 0.8], [0.2, 0.3, 0.4], 2 * 0.00402496),
        # An untrained model is known exactly: t = 4, 2 degrees of freedom, p = 1 - 4 / sqrt(18).
        ([0.4, 0.6, 0.5], [0.5 - 4 / 300**0.5], 1 - 4 / 18**0.5),
        ([0.5 - 4 / 300**0.5], [0.4, 0.6, 0.5], 1 - 4 / 18**0.5),
        ([0.5, 0.5], [0.5, 0.5], 1.0),
        ([0.5, 0.5], [0.4, 0.4], 0.0),
        ([0.5], [0.4], None),
        ([], [0.4, 0.5], None),
    ],
)
def test_the_test_over_seeds(first: list[float], second: list[float], p: float | None) -> None:
    assert seed_p(first, second) == (p if p is None else pytest.approx(p, rel=1e-3))
