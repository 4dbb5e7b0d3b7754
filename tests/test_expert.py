"""Experts and their trajectories: what they may know, how often they win, and that a file holds only proven games."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from verl_act.data_prep.expert.collect_expert import DROPPED, TRAJECTORIES, collect_expert, play, replays
from verl_act.envs.alfworld.beliefs import Beliefs
from verl_act.envs.alfworld.data import list_tasks
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.alfworld.importer import modern_command
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.alfworld.task_sentence import TaskGoal, parse_sentence
from verl_act.envs.base import StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.manifest import read_manifest
from verl_act.schema import Context, Step, Turn, read_steps
from verl_act.settings.data import ExpertSettings, GamesSettings

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


@pytest.fixture(scope="module")
def full_games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "games"
    make_games(GamesSettings(counts={"train": 12}, size="full", seed=3, workers=0), folder)
    return folder


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
        "pick_and_place_simple": TaskGoal("mug", "desk"),
        "look_at_obj_in_light": TaskGoal("mug", "desklamp", look=True),
        "pick_clean_then_place_in_recep": TaskGoal("mug", "desk", "clean"),
        "pick_heat_then_place_in_recep": TaskGoal("mug", "desk", "heat"),
        "pick_cool_then_place_in_recep": TaskGoal("mug", "desk", "cool"),
        "pick_two_obj_and_place": TaskGoal("mug", "desk", count=2),
    }
    for task_type, wanted in expected.items():
        for template in gdict[task_type]["templates"]:
            assert parse_sentence(template.format(obj="mug", recep="desk", toggle="desklamp")) == wanted
    assert parse_sentence("Kindly dance.") is None
    with pytest.raises(EnvError, match="templates"):
        decide("Kindly dance.")


@pytest.mark.parametrize("name", ["search", "planner", "walkthrough"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_experts_win(name: str, size: str, games: Path, full_games: Path) -> None:
    data = games if size == "small" else full_games
    environment, expert = AlfworldEnvironment(data), get_env("alfworld").experts[name]()
    for task in list_tasks("train", data):
        steps = play(environment, expert, task, source=name)
        assert steps[-1].success
        if name == "planner":
            assert [step.plan_length for step in steps] == list(range(len(steps), 0, -1))


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


def test_trajectories_are_written_proven_and_repeatable(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), tmp_path / "one"
    )
    collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=2), tmp_path / "two")
    steps = read_steps([tmp_path / "one" / TRAJECTORIES])
    assert steps == read_steps([tmp_path / "two" / TRAJECTORIES])
    assert all(step.verified and step.success and step.plan_length is not None for step in steps)
    assert all(step.action in step.context.admissible_actions for step in steps)
    assert len({step.state_id for step in steps}) == len(steps)
    assert (manifest.counts["trajectories"], manifest.counts["dropped"]) == (12, {})
    assert 0.3 < manifest.counts["inferable_share"] < 1
    assert all(bool(step.tied_actions) is not step.inferable for step in steps)
    assert all(step.action in step.tied_actions for step in steps if step.tied_actions)
    other = ExpertSettings(env="alfworld", split="train", env_settings=settings, seed=1, workers=0)
    collect_expert(other, tmp_path / "other")
    assert steps != read_steps([tmp_path / "other" / TRAJECTORIES])
    stored = read_manifest(tmp_path / "one")
    assert stored is not None and list(stored.inputs) == [str(games)]


def test_lost_games_are_dropped_and_counted(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games), "max_steps": 6}
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), tmp_path / "short"
    )
    kept, dropped = manifest.counts["trajectories"], manifest.counts["dropped"]
    assert kept + dropped["not won"] == 12 and 0 < kept < 12
    lost = [json.loads(line) for line in (tmp_path / "short" / DROPPED).read_text().splitlines()]
    assert [task["kind"] for task in lost] == ["not won"] * dropped["not won"]
    won = {step.task_id for step in read_steps([tmp_path / "short" / TRAJECTORIES])}
    assert len(won | {task["task_id"] for task in lost}) == 12
    with pytest.raises(DataError, match="won none of 12"):
        collect_expert(
            ExpertSettings(env="alfworld", split="train", env_settings={**settings, "max_steps": 1}, workers=0),
            tmp_path / "none",
        )
    assert not (tmp_path / "none").exists()


def test_errors_are_counted_by_kind_and_told_apart(games: Path, tmp_path: Path) -> None:
    shutil.copytree(games, tmp_path / "games")
    for task in list_tasks("train", games)[:2]:
        path = tmp_path / "games" / "json_2.1.1" / "train" / task.task_id / "game.tw-pddl"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pddl_problem": "(nonsense"}))
    settings = {"data": str(tmp_path / "games")}
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), tmp_path / "out"
    )
    assert manifest.counts["dropped"] == {"error": 2}
    details = [json.loads(line)["details"] for line in (tmp_path / "out" / DROPPED).read_text().splitlines()]
    assert len(set(details)) == 2 and all("game.tw-pddl" in text for text in details)


def test_a_bug_in_an_environment_costs_one_task(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = AlfworldEnvironment.step, []

    def buggy(self: AlfworldEnvironment, action: str) -> StepResult:
        taken.append(action)
        if len(taken) == 2:
            raise IndexError("in the middle of the first game")
        return step(self, action)

    monkeypatch.setattr(AlfworldEnvironment, "step", buggy)
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings={"data": str(games)}, workers=0), tmp_path / "out"
    )
    assert manifest.counts["dropped"] == {"error": 1}
    (lost,) = map(json.loads, (tmp_path / "out" / DROPPED).read_text().splitlines())
    assert lost["task_id"] == list_tasks("train", games)[0].task_id
    assert lost["details"] == "IndexError: in the middle of the first game"


def test_a_replay_that_differs_is_noticed(games: Path) -> None:
    from dataclasses import replace

    environment, task = AlfworldEnvironment(games), list_tasks("train", games)[0]
    steps = play(environment, SearchExpert(), task, source="search")
    assert replays(AlfworldEnvironment(games), task, steps)

    def changed(at: int, change: Callable[[Step], Step]) -> list[Step]:
        return [change(step) if number == at else step for number, step in enumerate(steps)]

    assert not replays(environment, task, changed(1, lambda s: replace(s, context=replace(s.context, observation="x"))))
    assert not replays(environment, task, changed(0, lambda step: replace(step, reward=1.0)))


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"expert": "oracle"}, {"limit": 0}, {"env": "nowhere"}])
def test_impossible_orders_are_refused(wrong: dict, games: Path, tmp_path: Path) -> None:
    order = {"env": "alfworld", "split": "train", "env_settings": {"data": str(games)}} | wrong
    with pytest.raises(ConfigError):
        collect_expert(ExpertSettings(workers=0, **order), tmp_path / "none")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("put mug 1 in/on desk 2", "move mug 1 to desk 2"),
        ("put cd 3 in drawer 1", "move cd 3 to drawer 1"),
        ("put pen 1 on sidetable 1", "move pen 1 to sidetable 1"),
        ("move mug 1 to desk 2", "move mug 1 to desk 2"),
        ("go to desk 1", "go to desk 1"),
        ("put mug 1", "put mug 1"),
        ("input mug 1 in/on desk 1", "input mug 1 in/on desk 1"),
        ("", ""),
    ],
)
def test_old_put_commands_are_respelled(old: str, new: str) -> None:
    assert modern_command(old) == new


def test_games_of_older_versions_are_played_in_their_own_words(games: Path, tmp_path: Path) -> None:
    """Before ALFWorld 0.4 a game's grammar said `put mug 1 in/on desk 1`."""
    shutil.copytree(games / "json_2.1.1" / "train", tmp_path / "json_2.1.1" / "train")
    for path in tmp_path.rglob("game.tw-pddl"):
        content = json.loads(path.read_text())
        content["grammar"] = (
            content["grammar"]
            .replace("move {o} to {r}", "put {o} in/on {r}")
            .replace("You move the {o.name} to the", "You put the {o.name} in/on the")
        )
        path.write_text(json.dumps(content))
    environment = AlfworldEnvironment(tmp_path)
    for task in list_tasks("train", tmp_path):
        for name in ("search", "planner"):
            steps = play(environment, get_env("alfworld").experts[name](), task, source=name)
            assert steps[-1].success and not any(step.action.startswith("move") for step in steps)
