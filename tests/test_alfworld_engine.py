"""Our engine against the stock one: the same transcript, word for word, and every text answered."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs import PddlEnv

from verl_act.envs.alfworld import planner_library
from verl_act.envs.alfworld.engine import AlfworldEngine, Frame
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game import read_game
from verl_act.envs.alfworld.game_index import TASK_TYPES, list_games
from verl_act.envs.base import Task
from verl_act.errors import ConfigError, DataError, EmptySplitError, EnvError

STEPS = 30
MANIPULATIONS = ("take", "move", "open", "close", "clean", "heat", "cool", "use", "slice")


def choose(rng: random.Random, commands: tuple[str, ...]) -> str:
    """A command, manipulations first; now and then one in disorder, or none at all."""
    manipulations = [command for command in commands if command.startswith(MANIPULATIONS)]
    command = rng.choice(manipulations if manipulations and rng.random() < 0.6 else commands)
    return rng.choice([command] * 20 + [f"  {command} ", command.upper(), "fly to the moon"])


@pytest.fixture(scope="module")
def stock() -> AlfredDemangler:
    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_transcripts_are_those_of_the_stock_engine(task_type: str, games: Path, stock: AlfredDemangler) -> None:
    engine = AlfworldEngine()

    def start() -> Frame:
        theirs, ours = stock.reset(), engine.reset()
        assert (ours.feedback, list(ours.commands)) == (theirs.feedback, theirs["admissible_commands"])
        return ours

    def step(command: str) -> Frame:
        ours, (theirs, score, done) = engine.step(command), stock.step(command)
        assert (ours.feedback, ours.won) == (theirs.feedback, theirs["won"]), command
        assert list(ours.commands) == theirs["admissible_commands"], command
        assert (int(ours.won), ours.won) == (score, done), command
        return ours

    for path in sorted(games.glob(f"json_2.1.1/*/{task_type}*/*/game.tw-pddl"))[:2]:
        stock.load(str(path))
        engine.load(read_game(path))
        start()
        for command in ("help", *read_game(path).walkthrough, "look"):
            step(command)
        rng, frame = random.Random(str(path.parent.name)), start()
        for _ in range(STEPS):
            frame = step(choose(rng, frame.commands))


HELP = "\\nAvailable commands:\\n  look:   look around\\n  go to (receptacle):  move, (and) so on\\n"


def test_help_prints_the_literal_text_of_official_games(games: Path, tmp_path: Path, stock: AlfredDemangler) -> None:
    """Its feedback is a text, not a symbol, and the package's grammar, which our games have, says it in other words."""
    path = tmp_path / "game.tw-pddl"
    content = json.loads(next(games.glob("json_2.1.1/train/*/*/game.tw-pddl")).read_text())
    before, _, _ = content["grammar"].rpartition("action help {")
    literal = HELP.replace("\\n", "\n")
    content["grammar"] = f'{before}action help {{\n    template :: "help";\n    feedback :: "{literal}";\n}}\n'
    path.write_text(json.dumps(content))
    stock.load(str(path))
    stock.reset()
    expected = stock.step("help")[0].feedback
    assert "go to (receptacle):  move, (and) so on" in expected
    environment = AlfworldEnvironment()
    first = environment.play(read_game(path))
    result = environment.step("help")
    assert result.observation == expected
    assert not result.admissible and result.admissible_actions == first.admissible_actions


EXPRESSIONS = {
    "call": "__import__('pathlib').Path('hacked').touch()",
    "call of a text's method": "r.name.upper()",
    "call by name": "print(r)",
    "dunder name": "__builtins__",
    "dunder attribute": "r.__class__",
    "attribute of an attribute": "r.name.name",
    "attribute of another kind": "r.synonyms",
    "lambda": "(lambda: 1)()",
    "f-string": "f'r.name'",
    "escape": "'\\\\x41'",
    "double quotes": "(r.name)",
    "walrus": "(r := 1)",
    "conditional": "r.name if r else r.id",
    "comprehension": "(a for a in r.name)",
    "and": "r.name and r.id",
    "negation": "not r",
    "keyword": "None",
    "number": "1",
    "power": "9**9**9",
    "two names": "r.name r.id",
    "sum of objects": "r + r",
    "sum without end": "r.name + ",
    "or without end": "r.name or ",
    "nothing between": "r.name or or r.id",
    "await": "await r",
    "deep nesting": "(" * 500 + "r" + ")" * 500,
    "long": " + ".join(["r.name"] * 10_000),
    "long blank": " " * 100_000,
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_game_file_cannot_run_python(
    expression: str, games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = json.loads(next(games.glob("json_2.1.1/train/*/*/game.tw-pddl")).read_text())
    assert "{r.name}" in content["grammar"]
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(content | {"grammar": content["grammar"].replace("{r.name}", f"{{{expression}}}", 1)}))
    with pytest.raises(DataError) as refused:
        AlfworldEnvironment().play(read_game(path))
    assert str(path) in str(refused.value) and expression[:5] in str(refused.value)
    assert not (tmp_path / "hacked").exists()


def test_a_grammar_without_end_is_named(games: Path, tmp_path: Path) -> None:
    content = json.loads(next(games.glob("json_2.1.1/train/*/*/game.tw-pddl")).read_text())
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(content | {"grammar": content["grammar"].replace("{r.name or r.id}", "#overview(r)#")}))
    with pytest.raises(EnvError, match="grammar"):
        AlfworldEnvironment().play(read_game(path))


def test_expressions_mean_what_they_mean_to_the_stock_engine(
    games: Path, tmp_path: Path, stock: AlfredDemangler
) -> None:
    content = json.loads(next(games.glob("json_2.1.1/train/*/*/game.tw-pddl")).read_text())
    shown = set()
    for expression in (
        "r",
        "r.type + '_' + r.id",
        "'' or r.definite",
        "r or r.id",
        "'' or ''",
        " r.name  or 'or + it' ",
        "'a + b or c'",
    ):
        path = tmp_path / "game.tw-pddl"
        path.write_text(
            json.dumps(content | {"grammar": content["grammar"].replace("{r.name or r.id}", f"{{{expression}}}")})
        )
        stock.load(str(path))
        engine = AlfworldEngine()
        engine.load(read_game(path))
        shown.add(engine.reset().feedback)
        assert engine.reset().feedback == stock.reset().feedback, expression
    assert len(shown) == 5  # three of them say the name


def test_the_official_wording_of_a_game_is_kept(games: Path) -> None:
    """Goals with signs that mean something to the grammar, or to JSON, come out as the stock engine says them."""
    path = next(games.glob("json_2.1.1/train/*/*/game.tw-pddl"))
    content = json.loads(path.read_text())
    goal = content["grammar"].partition("Your task is to: ")[2].partition(".")[0]
    for odd in ('put a mug (the \\"blue\\" one) in desk', "put it in the caf\\u00e9 box", "x" * 5000, "put. it. down"):
        environment = AlfworldEnvironment()
        changed = content | {"grammar": content["grammar"].replace(goal, odd)}
        path_of_odd = path.with_name("odd.tw-pddl")
        path_of_odd.write_text(json.dumps(changed))
        stock = PddlEnv(textworld.EnvInfos())
        stock.load(str(path_of_odd))
        assert f"Your task is to: {environment.play(read_game(path_of_odd)).goal}." in stock.reset().feedback
        path_of_odd.unlink()


def test_observations_leave_out_the_banner_and_the_task(games: Path) -> None:
    environment = AlfworldEnvironment(games)
    first = environment.reset(list_games("train", games).tasks[0])
    assert first.observation.startswith("You are in the middle of a room. Looking quickly around you, you see a ")
    assert "Welcome" not in first.observation and "task" not in first.observation
    assert "help" not in first.admissible_actions and "look" in first.admissible_actions


def test_winning_ends_an_episode_and_the_step_limit_does_not_win_it(games: Path) -> None:
    task = list_games("train", games).tasks[0]
    environment = AlfworldEnvironment(games)
    environment.reset(task)
    plan = environment.plan()
    assert plan
    results = [environment.step(action) for action in plan]
    assert [result.reward for result in results] == [0.0] * (len(plan) - 1) + [1.0]
    assert results[-1].done and results[-1].success and not results[-2].done
    after = environment.step("look")
    assert (after.done, after.success, after.reward) == (True, True, 0.0)

    limited = AlfworldEnvironment(games, max_steps=len(plan) - 1)
    limited.reset(task)
    last = [limited.step(action) for action in plan[:-1]][-1]
    assert last.done and not last.success and last.reward == 0.0
    assert not limited.step(plan[-1]).success


def test_an_engine_copies_the_loaded_part_of_the_planner_alone(tmp_path: Path) -> None:
    shipped = os.path.getsize(planner_library.WHOLE)
    part = planner_library.loaded_part(planner_library.WHOLE)
    assert os.path.getsize(part) < min(2_000_000, shipped / 10)
    (tmp_path / "other").write_bytes(b"\xcf\xfa\xed\xfe, another system's")
    assert planner_library.loaded_part(str(tmp_path / "other")) == str(tmp_path / "other")


def test_engines_are_reused(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = list_games("train", games).tasks
    environment = AlfworldEnvironment(games)
    environment.reset(first)
    environment.close()
    monkeypatch.setattr("verl_act.envs.alfworld.environment.AlfworldEngine", None)  # none is made
    AlfworldEnvironment(games).reset(second)


def test_translation_leaves_no_trace_in_the_interpreter(games: Path) -> None:
    before, out = list(sys.argv), sys.stdout
    AlfworldEnvironment(games).reset(list_games("valid_seen", games).tasks[0])
    assert sys.argv == before and sys.stdout is out


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[:100], "JSON"),
        (lambda text: "{}", "ALFWorld game"),
        (lambda text: "[1, 2]", "ALFWorld game"),
        (lambda text: text.replace("(:goal", "(:gaol"), "rules"),
        (lambda text: text.replace("Type)", "Kind)"), "rules"),
        (lambda text: text.replace("action look {", "action look [["), "rules"),
    ],
)
def test_damaged_games_name_the_file_and_the_remedy(damage, complaint: str, games: Path, tmp_path: Path) -> None:
    source = next(games.glob("json_2.1.1/train/*/*/game.tw-pddl"))
    folder = tmp_path / "json_2.1.1" / "train" / "broken" / "trial"
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(damage(source.read_text()))
    with pytest.raises(EnvError, match=rf"game\.tw-pddl.*{complaint}"):
        AlfworldEnvironment(tmp_path).reset(Task("alfworld", "train", "broken/trial", "pick_and_place_simple"))


def test_after_a_reset_that_fails_no_episode_goes_on(games: Path) -> None:
    environment, task = AlfworldEnvironment(games), list_games("train", games).tasks[0]
    first = environment.reset(task)
    with pytest.raises(EnvError, match="no-such"):
        environment.reset(replace(task, task_id="no-such/trial"))
    with pytest.raises(EnvError, match="reset"):
        environment.step("look")
    assert environment.reset(task) == first and environment.step("look").admissible


def test_a_game_that_loads_in_part_is_never_played(games: Path, tmp_path: Path) -> None:
    """Its grammar fails where the first commands are listed, when the engine has the game already."""
    good = list_games("train", games).tasks[0]
    source = sorted(games.glob("json_2.1.1/train/*/*/game.tw-pddl"))[-1]
    folder = tmp_path / "json_2.1.1" / "train" / "broken" / "trial"
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(source.read_text().replace("go to [", "go to #nowhere# ["))
    broken = Task("alfworld", "train", "broken/trial", "pick_and_place_simple")
    whole, part = AlfworldEnvironment(games), AlfworldEnvironment(tmp_path)
    first = whole.reset(good)
    for _ in range(2):
        whole.close()  # its engine goes to the next
        with pytest.raises(EnvError, match="nowhere"):
            part.reset(broken)
        part.close()
        assert whole.reset(good) == first


def test_missing_data_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(DataError, match=r"ALFWORLD_DATA.*data games"):
        list_games("train")
    with pytest.raises(DataError, match=str(tmp_path)):
        list_games("train", tmp_path)
    with pytest.raises(DataError, match="'test'"):
        list_games("test", tmp_path)
    with pytest.raises(ConfigError, match="max_steps is 0"):
        AlfworldEnvironment(max_steps=0)
    with pytest.raises(EnvError, match="reset"):
        AlfworldEnvironment().step("look")


def add_game(data: Path, name: str, source: Path, **changes: object) -> Path:
    """A copy of the game in the folder `source`, whose `game.tw-pddl` is changed so; its folder."""
    folder = data / "json_2.1.1" / "train" / name / "trial"
    folder.mkdir(parents=True)
    shutil.copy(source / "traj_data.json", folder)
    game = json.loads((source / "game.tw-pddl").read_text()) | changes
    (folder / "game.tw-pddl").write_text(json.dumps({key: value for key, value in game.items() if value is not None}))
    return folder


@pytest.fixture
def one_game(games: Path) -> Path:
    """The folder of a game."""
    return next(games.glob("json_2.1.1/train/*/*/game.tw-pddl")).parent


def test_unplayable_games_are_left_out_and_counted(
    one_game: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("good", "with_movable_recep", "AppleSliced"):
        add_game(tmp_path, name, one_game)
    (add_game(tmp_path, "no_game", one_game) / "game.tw-pddl").unlink()
    add_game(tmp_path, "unsolvable", one_game, solvable=False)
    traj = json.loads((one_game / "traj_data.json").read_text())
    other = add_game(tmp_path, "other", one_game) / "traj_data.json"
    other.write_text(json.dumps(traj | {"task_type": "dance"}))
    found = list_games("train", tmp_path / "json_2.1.1")
    assert [task.task_id for task in found.tasks] == ["good/trial"]
    reasons = {"movable receptacle or sliced object": 2, "no game file": 1, "unsolvable": 1, "other task type": 1}
    assert found.skipped == reasons and not caplog.records

    # What an interrupted download leaves, or another tool has written.
    first = add_game(tmp_path, "damage", one_game, solvable=None) / "game.tw-pddl"
    add_game(tmp_path, "damage_2", one_game, pddl_problem=None)
    for number, text in enumerate(("", "[1]", '{"solvable": tr', "[" * 100_000)):
        (add_game(tmp_path, f"damaged_game_{number}", one_game) / "game.tw-pddl").write_text(text)
        (add_game(tmp_path, f"damaged_traj_{number}", one_game) / "traj_data.json").write_text(text)
    link = tmp_path / "json_2.1.1" / "train" / "unmounted"
    link.symlink_to(tmp_path / "nowhere")
    found = list_games("train", tmp_path)
    assert [task.task_id for task in found.tasks] == ["good/trial"]
    assert found.skipped == reasons | {"damaged": 11}
    (record,) = caplog.records
    assert "11" in record.getMessage() and str(link) in record.getMessage()
    link.unlink()
    list_games("train", tmp_path)
    assert "10" in caplog.text and f"{first}: has no 'solvable'" in caplog.text


def test_a_byte_order_mark_changes_nothing(one_game: Path, tmp_path: Path) -> None:
    folder = add_game(tmp_path, "marked", one_game)
    for path in folder.iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    (task,) = list_games("train", tmp_path).tasks
    assert AlfworldEnvironment(tmp_path).reset(task).goal


def test_linked_games_are_listed_once(one_game: Path, tmp_path: Path) -> None:
    data, disk = tmp_path / "data", tmp_path / "disk"
    add_game(data, "here", one_game)
    add_game(disk, "linked", one_game)
    add_game(disk, "trial_only", one_game)
    split, elsewhere = data / "json_2.1.1" / "train", disk / "json_2.1.1" / "train"
    (split / "linked").symlink_to(elsewhere / "linked")
    (split / "by_trial").mkdir()
    (split / "by_trial" / "trial").symlink_to(elsewhere / "trial_only" / "trial")
    expected = ["by_trial/trial", "here/trial", "linked/trial"]
    assert [task.task_id for task in list_games("train", data).tasks] == expected
    for task in list_games("train", data).tasks:
        assert AlfworldEnvironment(data).reset(task).goal
    # Round and round: to the split, to what holds it, to a game that is listed, and from the other disk.
    for link, target in (
        (split / "loop", split),
        (split / "up", tmp_path),
        (split / "again", split / "here"),
        (elsewhere / "linked" / "back", split),
    ):
        link.symlink_to(target)
    found = list_games("train", data)
    assert [task.task_id for task in found.tasks] == expected
    assert found.skipped == {"link to a folder that is listed already": 4}


def test_a_share_of_the_training_games_is_for_development(one_game: Path, tmp_path: Path) -> None:
    for number in range(40):
        for trial in ("a", "b"):
            add_game(tmp_path, f"task-{number}", one_game).rename(tmp_path / f"json_2.1.1/train/task-{number}/{trial}")
    split = {name: [task.task_id for task in list_games(name, tmp_path, 0.3).tasks] for name in ("train", "dev")}
    assert sorted(split["train"] + split["dev"]) == [task.task_id for task in list_games("train", tmp_path).tasks]
    assert 10 <= len(split["dev"]) <= 40
    folders = {name: {task_id.partition("/")[0] for task_id in ids} for name, ids in split.items()}
    assert not folders["train"] & folders["dev"]
    environment = AlfworldEnvironment(tmp_path, dev_share=0.3)
    assert environment.reset(list_games("dev", tmp_path, 0.3).tasks[0]).goal
    with pytest.raises(EmptySplitError, match="dev_share"):
        list_games("dev", tmp_path)
    (tmp_path / "json_2.1.1" / "dev").mkdir()
    with pytest.raises(DataError, match="dev_share"):
        list_games("train", tmp_path, 0.3)
    with pytest.raises(ConfigError, match="dev_share"):
        AlfworldEnvironment(tmp_path, dev_share=1.0)


@pytest.fixture
def shared_data(one_game: Path) -> Iterator[Path]:
    """Data of one game, in a folder that all users can enter; the test goes on as one who is not root."""
    data = Path(tempfile.mkdtemp(dir="/tmp"))
    data.chmod(0o755)
    add_game(data, "good", one_game)
    add_game(data, "closed", one_game)
    root = os.geteuid() == 0
    try:
        yield data
    finally:
        if root:
            os.seteuid(0)
        for folder, _, _ in os.walk(data):
            os.chmod(folder, 0o755)
        shutil.rmtree(data)


@pytest.mark.parametrize(
    ("closed", "mode"),
    [("", 0), ("", 0o444), ("trial", 0), ("trial", 0o444), ("trial/game.tw-pddl", 0), ("trial/traj_data.json", 0)],
)
def test_unreadable_games_are_named(closed: str, mode: int, shared_data: Path) -> None:
    path = shared_data / "json_2.1.1" / "train" / "closed" / closed
    path.chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(DataError, match=f"{path.parent}.*Permission denied"):
        list_games("train", shared_data)
    if closed != "trial/traj_data.json":
        with pytest.raises(EnvError, match=r"closed/trial/game\.tw-pddl.*Permission denied"):
            AlfworldEnvironment(shared_data).reset(Task("alfworld", "train", "closed/trial", "x"))
