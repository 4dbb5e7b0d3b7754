"""ALFWorld's search expert: what it knows from the transcript, and what it does then."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_act.data_prep.expert.collect_expert import play
from verl_act.envs.alfworld.beliefs import Beliefs
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game_index import list_tasks
from verl_act.envs.alfworld.goal import Goal, parse_sentence
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import Task
from verl_act.errors import EnvError
from verl_act.schema import Context, Turn

ROOM = (
    "You are in the middle of a room. Looking quickly around you, "
    "you see a desk 1, a drawer 2, a drawer 1, and a shelf 1."
)
GO = ("go to desk 1", "go to drawer 2", "go to drawer 1", "go to shelf 1", "look", "inventory")


def decide(goal: str, *said: str, admissible: tuple[str, ...] = GO) -> tuple[str, bool]:
    """What the search expert does after hearing `said`."""
    *earlier, last = (ROOM, *said)
    history = tuple(Turn(text, "some action") for text in earlier)
    return SearchExpert().act(Context(goal, history, last, admissible))


def test_an_unseen_object_is_searched_for_and_a_seen_one_fetched() -> None:
    action, inferable = decide("put a pen in drawer")
    assert action in ("go to desk 1", "go to shelf 1") and not inferable
    nothing = "You arrive at desk 1. On the desk 1, you see nothing."
    assert decide("put a pen in drawer", nothing) == ("go to shelf 1", True)
    pen = "You arrive at shelf 1. On the shelf 1, you see a book 1, and a pen 2."
    take = (*GO, "take pen 2 from shelf 1")
    assert decide("put a pen in drawer", nothing, pen, admissible=take) == ("take pen 2 from shelf 1", True)
    away = "You arrive at desk 1. On the desk 1, you see nothing."
    assert decide("put a pen in drawer", pen, away) == ("go to shelf 1", True)


def test_opening_where_one_stands_and_the_last_unseen_place_are_inferable() -> None:
    closed = "You arrive at drawer 2. The drawer 2 is closed."
    assert decide("put a pen on shelf", closed, admissible=(*GO, "open drawer 2")) == ("open drawer 2", True)
    seen = [f"You arrive at {r}. On the {r}, you see nothing." for r in ("desk 1", "drawer 2", "shelf 1")]
    assert decide("put a pen on shelf", *seen) == ("go to drawer 1", True)


def test_a_place_that_shares_its_spot_is_opened_without_walking() -> None:
    """ALFWorld offers no `go to` for a receptacle within reach of where the agent stands."""
    here = "You arrive at drawer 2. The drawer 2 is open. In it, you see nothing."
    offered = ("go to desk 1", "open drawer 1", "close drawer 2", "look")
    seen = [f"You arrive at {r}. On the {r}, you see nothing." for r in ("desk 1", "shelf 1")]
    assert decide("put a pen on shelf", *seen, here, admissible=offered) == ("open drawer 1", True)


def test_a_wrong_object_is_put_away_first() -> None:
    holding = "You pick up the book 1 from the desk 1."
    assert (
        decide("put a pen on shelf", holding, admissible=(*GO, "move book 1 to desk 1"))[0] == "move book 1 to desk 1"
    )


def test_beliefs_follow_the_transcript() -> None:
    beliefs = Beliefs()
    for text in (
        ROOM,
        "You arrive at drawer 2. The drawer 2 is closed.",
        "You open the drawer 2. The drawer 2 is open. In it, you see a mug 1, and a pen 1.",
        "You pick up the mug 1 from the drawer 2.",
        "You heat the mug 1 using the microwave 1.",
        "You cool the mug 1 using the fridge 1.",
        "You move the mug 1 to the desk 1.",
        "Nothing happens.",
        "gibberish \x00 You see a",
    ):
        beliefs.observe(text)
    assert beliefs.receptacles == ["desk 1", "drawer 2", "drawer 1", "shelf 1"]
    assert beliefs.contents == {"drawer 2": ["pen 1"], "desk 1": ["mug 1"]}
    assert (beliefs.position, beliefs.held, beliefs.treated) == ("drawer 2", None, {"mug 1": {"cool"}})


def test_every_template_of_alfworld_is_read() -> None:
    from alfworld.gen.goal_library import gdict

    expected = {
        "pick_and_place_simple": Goal("mug", "desk"),
        "look_at_obj_in_light": Goal("mug", "desklamp", look=True),
        "pick_clean_then_place_in_recep": Goal("mug", "desk", "clean"),
        "pick_heat_then_place_in_recep": Goal("mug", "desk", "heat"),
        "pick_cool_then_place_in_recep": Goal("mug", "desk", "cool"),
        "pick_two_obj_and_place": Goal("mug", "desk", count=2),
    }
    for task_type, wanted in expected.items():
        for template in gdict[task_type]["templates"]:
            assert parse_sentence(template.format(obj="mug", recep="desk", toggle="desklamp")) == wanted
    assert parse_sentence("Kindly dance.") is None
    with pytest.raises(EnvError, match="templates"):
        decide("Kindly dance.")


def test_the_search_expert_needs_no_environment(games: Path) -> None:
    """Its actions are the same where there is nothing to ask."""
    environment = AlfworldEnvironment(games)
    for task in list_tasks("valid_unseen", games):
        expert = SearchExpert()
        for step in play(environment, expert, task, source="search", seed=3):
            assert expert.act(step.context) == (step.action, step.inferable)
            assert expert.ties(step.context) == step.tied_actions


def test_ties_are_drawn_by_task_and_seed() -> None:
    context = Context("put a pen in drawer", (), ROOM, GO)

    def drawn(number: int, seed: int) -> str:
        expert = SearchExpert()
        expert.reset(Task("alfworld", "train", f"game {number}", "pick_and_place_simple"), seed)
        assert expert.ties(context) == ("go to desk 1", "go to shelf 1")
        return expert.act(context)[0]

    first, second = ([drawn(number, seed) for number in range(200)] for seed in (0, 1))
    assert first == [drawn(number, 0) for number in range(200)] != second
    assert all(70 < actions.count("go to desk 1") < 130 for actions in (first, second))


def test_equal_destinations_tools_and_objects_are_tied() -> None:
    room = ROOM.replace("a shelf 1", "a shelf 1, a shelf 2, a sinkbasin 1, and a sinkbasin 2")
    go = tuple(f"go to {name}" for name in ("desk 1", "shelf 1", "shelf 2", "sinkbasin 1", "sinkbasin 2"))

    def ties(goal: str, *said: str, admissible: tuple[str, ...] = go) -> tuple[str, ...]:
        *earlier, last = (room, *said)
        return SearchExpert().ties(Context(goal, tuple(Turn(text, "x") for text in earlier), last, admissible))

    holding = "You pick up the pen 1 from the desk 1."
    assert ties("put a pen on shelf", holding) == ("go to shelf 1", "go to shelf 2")
    assert ties("put a clean pen on shelf", holding) == ("go to sinkbasin 1", "go to sinkbasin 2")
    pens = "You arrive at desk 1. On the desk 1, you see a pen 1, and a pen 2."
    take = ("take pen 1 from desk 1", "take pen 2 from desk 1")
    assert ties("put a pen on shelf", pens, admissible=(*go, *take)) == take
    assert ties("put a pen on shelf", pens, "You arrive at shelf 1. On the shelf 1, you see nothing.") == ()
    put = "You move the pen 1 to the shelf 2."
    assert ties("put two pen on shelf", pens, put, "You pick up the pen 2 from the desk 1.") == ()
