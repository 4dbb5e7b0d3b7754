"""WebShop's plans: as short as any way, and unknown where the planner has not looked everywhere."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from small_shop import TEAPOT, opened, product, write_shop

from verl_act.data_prep.expert.collect_expert import play
from verl_act.data_prep.pairs.margins import UNREACHABLE, TrajectoryReplayer
from verl_act.envs.base import Task
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.experts import GoalExpert
from verl_act.envs.webshop.goals import SPLITS, Goal, list_goals, list_tasks
from verl_act.envs.webshop.instruction import likely_search
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.envs.webshop.nouns import noun_tagger
from verl_act.envs.webshop.planner import WebShopPlanner, missing_options
from verl_act.envs.webshop.reward import score_purchase
from verl_act.envs.webshop.session import Page, ShopState, clickables, follow
from verl_act.errors import EnvError
from verl_act.settings.data import CatalogueSettings

pytest_plugins = "small_shop"


@pytest.mark.parametrize(
    ("asked", "chosen", "clicks"),
    [
        ((), {}, ()),
        (("green",), {}, ("green",)),
        (("green",), {"color": "green"}, ()),
        (("green",), {"color": "blue"}, ("green",)),
        (("green", "large"), {"size": "small"}, ("green", "large")),
        (("green", "blue"), {}, None),
        (("pack of 2",), {}, ("large pack of 2",)),
        (("large", "pack of 2"), {}, ("large pack of 2",)),
        (("large", "pack of 2"), {"size": "large"}, ("large pack of 2",)),
        (("velvet",), {}, None),
    ],
)
def test_the_fewest_option_clicks(
    asked: tuple[str, ...], chosen: dict[str, str], clicks: tuple[str, ...] | None
) -> None:
    options = (("color", ("green", "blue")), ("size", ("small", "large", "large pack of 2")))
    assert missing_options(product(options=options), asked, chosen) == clicks


def test_plans_are_as_short_as_any_way(tmp_path: Path) -> None:
    """Breadth first over every click and the likely searches, in a shop of six."""
    make_catalogue(CatalogueSettings(products=6, instructions=3), tmp_path / "six")
    catalogue = load_catalogue(tmp_path / "six")
    searches = [f"search[{catalogue.product(row).name.lower()}]" for row in range(6)]
    for one in list_goals(catalogue)[:6]:
        planner = WebShopPlanner(catalogue, one, noun_tagger())
        actions = [*searches, f"search[{likely_search(one.instruction)}]"]
        states, edges = _explore(catalogue, actions)
        left = _distances(states, edges, catalogue, one)
        for state in states:
            plan = planner.plan(state)
            assert plan is not None and len(plan) == left[state], (one.instruction, state)
            for action in plan:
                following = follow(state, action, catalogue)
                assert following is not None
                state = following
            assert score_purchase(catalogue.product(state.row), dict(state.options), one).reward == 1.0


def _explore(catalogue: Any, searches: list[str]) -> tuple[list[ShopState], dict[ShopState, list[ShopState]]]:
    """Every state but purchases, with the states after it; what has been visited is left aside."""

    def plain(state: ShopState) -> ShopState:
        return ShopState(state.page, state.hits, state.page_number, state.row, tuple(sorted(state.options)))

    edges: dict[ShopState, list[ShopState]] = {}
    waiting = deque([ShopState()])
    while waiting:
        state = waiting.popleft()
        if state in edges or state.page_number > 2:
            continue
        clicks = [f"click[{target}]" for target in clickables(state, catalogue)]
        after = [follow(state, action, catalogue) for action in (*searches, *clicks)]
        edges[state] = [plain(found) for found in after if found is not None]
        waiting.extend(found for found in edges[state] if found.page is not Page.DONE)
    return list(edges), edges


def _distances(
    states: list[ShopState], edges: dict[ShopState, list[ShopState]], catalogue: Any, one: Goal
) -> dict[ShopState, int]:
    """The fewest actions from each state to a purchase of reward 1.0."""

    def wins(state: ShopState) -> bool:
        bought = state.page is Page.DONE
        return bought and score_purchase(catalogue.product(state.row), dict(state.options), one).reward == 1.0

    left = {state: 1 for state in states if any(map(wins, edges[state]))}
    changed = True
    while changed:
        nearer = {
            state: 1 + min(left[after] for after in edges[state] if after in left)
            for state in states
            if state not in left and any(after in left for after in edges[state])
        }
        left |= nearer
        changed = bool(nearer)
    return left


def test_a_wrong_purchase_is_out_of_reach(shop: Path) -> None:
    environment, _ = opened(shop)
    assert environment.plan_length() == 4
    environment.step("search[mug]")
    environment.step("click[b00000mug0]")
    start = environment.snapshot()
    assert environment.step("click[buy now]").success is False
    assert environment.plan() is None
    environment.restore(start)
    assert environment.plan_length() == 4
    with pytest.raises(EnvError, match="WebShopEnvironment"):
        GoalExpert().act(None, None)  # type: ignore[arg-type]


def test_a_margin_is_unknown_where_the_planner_has_not_looked_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No likely search finds the goal's product: fifty others of its name come first. The expert's own search does."""
    monkeypatch.setattr("verl_act.envs.webshop.planner.SCANNED", 5)
    twin = {**TEAPOT, "full_description": "A lead free teapot in green.", "customization_options": None}
    twins = [{**twin, "asin": f"B000TWIN{number:02}"} for number in range(60)]
    shop = write_shop(tmp_path, [*twins, {**TEAPOT, "full_description": "An heirloom."}])
    environment, _ = opened(shop)
    assert environment.plan() is None
    actions = ["search[heirloom]", "click[b00teapot1]", "click[green]", "click[buy now]"]
    task = next(task for split in SPLITS for task in list_tasks(split, shop) if "green" in environment.reset(task).goal)

    class Knows:
        def reset(self, task: Task, seed: int) -> None: ...

        def act(self, context: Any, environment: Any) -> tuple[str, bool]:
            return actions[len(context.history)], True

    steps = play(environment, Knows(), task, source="x")
    assert steps[-1].success and [step.plan_length for step in steps] == [None, 3, 2, 1]
    replayer = TrajectoryReplayer("webshop", {"data": str(shop)})
    states = {}
    for state in replayer.replay(steps):
        alternatives = ("click[back to search]", "click[buy now]")
        states[state.step.action] = [state.judge(action).margin for action in alternatives]
    assert states["search[heirloom]"] == [None, None]
    assert states["click[b00teapot1]"] == [None, 1]
    assert states["click[green]"] == [None, UNREACHABLE], "nothing undoes a wrong purchase"
