"""ScienceWorld on its real Java engine: splits, gold paths, hostile texts, and a Java that dies or is not there."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from processes import started_processes

from verl_act.data_prep.expert.collect_expert import DROPPED, TRAJECTORIES, collect_expert, play, replays
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.envs.base import Observation, StepResult, Task
from verl_act.envs.contract import check_environment
from verl_act.envs.registry import get_env
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.envs.scienceworld.experts import GoldExpert, follows
from verl_act.envs.scienceworld.game import ActionMenu, Game
from verl_act.envs.scienceworld.server import ScienceWorldEngine, engine
from verl_act.envs.scienceworld.variations import SIMPLIFICATIONS, SPLITS, VARIATIONS, list_tasks, variations
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.schema import Context, Turn, read_pairs, read_steps
from verl_act.settings.data import ExpertSettings, PairsSettings, TasksSettings

BOIL = Task("scienceworld", "train", "boil/2", "boil")
"""Begins in the kitchen."""
CIRCUIT = Task("scienceworld", "train", "power-component/0", "power-component")
ANIMAL = Task("scienceworld", "train", "find-animal/7", "find-animal")
GIVEN_POINTS = Task("scienceworld", "train", "find-plant/2", "find-plant")
LIFE_SPAN = Task("scienceworld", "train", "lifespan-longest-lived/44", "lifespan-longest-lived")

HOSTILE = (
    "look around " * 100_000,
    "x" * 1_500_000,
    "\x00",
    "look\x00around",
    "\x1b[2J",
    "\ud83e",
    "\u202e",
    "wait\r\nr\nreset\ne\n",
    "\\n\ne\n",
    "",
)
"""More than 1 MB, control characters, half a surrogate pair, and lines of the protocol between Python and Java."""


@pytest.fixture
def environment() -> Iterator[ScienceWorldEnvironment]:
    made = ScienceWorldEnvironment()
    yield made
    made.close()


def take(environment: ScienceWorldEnvironment, actions: Sequence[str]) -> list[StepResult]:
    """What the steps say."""
    return [environment.step(action) for action in actions]


def last(environment: ScienceWorldEnvironment, *actions: str) -> StepResult:
    """The answer to the last of the actions."""
    return take(environment, actions)[-1]


def in_new_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with these environment variables changed."""
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )


def test_the_environment_keeps_the_contract() -> None:
    settings = {"tasks": ["find-animal", "lifespan-longest-lived"], "max_steps": 15}
    check_environment(get_env("scienceworld"), "dev", settings, tasks=2, seed=2)


def test_tasks_and_splits_are_the_packages_own() -> None:
    from scienceworld import ScienceWorldEnv

    stock = ScienceWorldEnv()
    try:
        assert list(VARIATIONS) == stock.task_names and sorted(VARIATIONS) == sorted(stock.get_task_names())
        assert sorted(SIMPLIFICATIONS) == sorted(stock.get_possible_simplifications())
        for name in VARIATIONS:
            stock.load(name, 0, "")
            own = stock.get_variations_train(), stock.get_variations_dev(), stock.get_variations_test()
            assert tuple(list(variations(name, split)) for split in SPLITS) == own, name
            assert stock.get_max_variations(name) == VARIATIONS[name]
    finally:
        stock.close()
    counts = {split: len(list_tasks(split)) for split in SPLITS}
    assert counts == {"train": 3592, "dev": 1796, "test": 1819}


def test_tasks_are_listed_once_in_a_fixed_order_and_can_be_restricted() -> None:
    listed = [task for split in SPLITS for task in list_tasks(split)]
    assert len(set(listed)) == len(listed) == sum(VARIATIONS.values())
    assert [task.task_id for task in list_tasks("dev", ["melt", "boil"])][6:8] == ["boil/20", "melt/14"]
    assert {task.task_type for task in list_tasks("test", "freeze", max_steps=3)} == {"freeze"}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tasks": ["boyl"]}, "'boyl'.* boil, melt"),
        ({"tasks": []}, "`tasks`"),
        ({"simplification": "simple"}, "'simple'.*'easy'"),
        ({"simplification": "openDoors,easy,"}, "simplification"),
        ({"max_steps": 0}, "max_steps is 0"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ScienceWorldEnvironment(**settings)  # type: ignore[arg-type]


def test_unknown_splits_and_tasks_are_told(environment: ScienceWorldEnvironment) -> None:
    with pytest.raises(DataError, match=r"'valid'.* train, dev, test"):
        list_tasks("valid")
    with pytest.raises(ConfigError, match=r"'noElectricalAction'.*'power-component'.*`tasks`"):
        list_tasks("train", simplification="openDoors,noElectricalAction")
    with pytest.raises(EnvError, match="'noElectricalAction'"):
        ScienceWorldEnvironment("noElectricalAction").reset(CIRCUIT)
    for task_id in ("boyl/1", "boil", "boil/x", "boil/01", "boil/²", "boil/-1", "boil/" + "9" * 5000):
        with pytest.raises(EnvError, match=task_id[:6]):
            environment.reset(Task("scienceworld", "train", task_id, "boil"))
    environment.reset(LIFE_SPAN)
    with pytest.raises(EnvError, match=r"train .*0 to 13 .*boil"):
        environment.reset(Task("scienceworld", "train", "boil/14", "boil"))
    with pytest.raises(EnvError, match="reset"):
        environment.step("look around")


def test_gold_paths_reach_100_and_replay(environment: ScienceWorldEnvironment) -> None:
    other = ScienceWorldEnvironment()
    for task in (BOIL, CIRCUIT, ANIMAL, LIFE_SPAN, GIVEN_POINTS):
        steps = play(environment, GoldExpert(), task, source="gold")
        assert steps[-1].success and environment.score() == 100, task
        assert replays(other, task, steps), task
        assert 0 < sum(step.inferable for step in steps) < len(steps), task
        assert sum(step.reward for step in steps) == pytest.approx(1.0), "what the start gives is in the first reward"
    environment.reset(GIVEN_POINTS)
    assert environment.score() > 0


def test_a_snapshot_is_the_state_that_a_replay_comes_to(environment: ScienceWorldEnvironment) -> None:
    rng = random.Random(0)
    for task in (BOIL, ANIMAL, LIFE_SPAN):
        shown: list[Observation | StepResult] = [environment.reset(task)]
        actions: list[str] = []
        for number in range(8):
            if number == 4:
                snapshot = environment.snapshot()
            # What is in focus may end the episode.
            offered = [action for action in shown[-1].admissible_actions if not action.startswith("focus")]
            actions.append(rng.choice(offered))
            shown.append(environment.step(actions[-1]))
        for _ in range(2):
            environment.restore(snapshot)
            assert take(environment, actions[4:]) == shown[5:]
        environment.restore(snapshot)
        engine().close()
        assert take(environment, actions[4:]) == shown[5:], "an engine that dies after that is replaced as ever"


def test_every_task_starts_and_goes_on_alike_on_every_engine() -> None:
    """`find-living-thing` and its like draw their rooms at random, which our engine seeds."""

    def opening(name: str) -> list[Observation | StepResult]:
        environment = ScienceWorldEnvironment()
        first = environment.reset(list_tasks("train", [name])[0])
        actions = first.admissible_actions
        return [first, *take(environment, [actions[len(actions) // 3], actions[-1]])]

    before = {name: opening(name) for name in VARIATIONS}
    engine().close()
    assert {name: opening(name) for name in VARIATIONS} == before


def test_a_simplification_changes_the_house() -> None:
    task = list_tasks("train", ["find-plant"])[0]
    texts = {name: ScienceWorldEnvironment(name).reset(task) for name in ("", "openDoors", "teleportAction")}
    assert "(that is closed)" in texts[""].observation and "(that is closed)" not in texts["openDoors"].observation
    teleports = {
        name: any("teleport" in action for action in shown.admissible_actions) for name, shown in texts.items()
    }
    assert teleports == {"": False, "openDoors": False, "teleportAction": True}


def test_all_episodes_of_a_process_share_one_engine() -> None:
    environments = [ScienceWorldEnvironment() for _ in range(4)]
    for environment in environments:
        environment.reset(LIFE_SPAN)
    assert len(started_processes("py4j.GatewayServer")) == 1


def test_trajectories_that_do_not_win_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"tasks": ["lifespan-longest-lived", "find-plant"], "max_steps": 7}
    manifest = collect_expert(
        ExpertSettings(env="scienceworld", split="dev", limit=6, env_settings=settings, workers=0), tmp_path / "expert"
    )
    steps = read_steps([tmp_path / "expert" / TRAJECTORIES])
    assert manifest.counts["dropped"]["not won"] > 0
    assert manifest.counts["trajectories"] + manifest.counts["dropped"]["not won"] == 6
    assert f"dev: {manifest.counts['dropped']['not won']} of 6 tasks have no trajectory: not won" in caplog.text
    assert all(step.verified and step.success and step.env == "scienceworld" for step in steps)
    counts = build_pairs(
        PairsSettings(
            trajectories=[tmp_path / "expert" / TRAJECTORIES], env_settings=settings, source="admissible", workers=0
        ),
        tmp_path / "pairs",
    ).counts
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    refused = [step for step in steps if not step.admissible]
    assert counts.get("states_expert_inadmissible", 0) == len(refused) < len(steps), "gold paths open open doors"
    assert counts["pairs"] == len(pairs) == len(steps) - len(refused) and "trajectories_not_replayed" not in counts
    assert all(pair.alternative_admissible and pair.margin is None for pair in pairs)
    assert (
        make_tasks(
            TasksSettings(env="scienceworld", splits=["dev", "test"], limit=7, env_settings=settings),
            tmp_path / "tasks",
        ).counts["tasks"]
        == 14
    )


def test_a_gold_path_that_ends_before_the_goal_is_not_won_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold_path, found = ScienceWorldEnvironment.gold_path, []

    def second_cut_short(environment: ScienceWorldEnvironment) -> tuple[str, ...]:
        found.append(gold_path(environment))
        return found[0] if len(found) == 1 else found[-1][:-1]

    monkeypatch.setattr(ScienceWorldEnvironment, "gold_path", second_cut_short)
    settings = {"tasks": ["find-animal"]}
    manifest = collect_expert(
        ExpertSettings(env="scienceworld", split="dev", limit=2, env_settings=settings, workers=0), tmp_path / "x"
    )
    assert manifest.counts["dropped"] == {"not won": 1}
    (lost,) = map(json.loads, (tmp_path / "x" / DROPPED).read_text().splitlines())
    assert lost["details"] == f"The gold path ends after {len(found[1]) - 1} actions, before the goal."


def test_an_expert_refuses_what_it_cannot_judge(environment: ScienceWorldEnvironment) -> None:
    first, expert = environment.reset(LIFE_SPAN), GoldExpert()
    expert.reset(LIFE_SPAN, 0)
    history = (Turn("", "another way"),)
    with pytest.raises(EnvError, match="step 1"):
        expert.act(Context(first.goal, history, first.observation, ()), environment)


def test_inferable_needs_seen_objects_and_no_search() -> None:
    room = "This room is called the kitchen. In it, you see: a cupboard, a thermometer. A door to the hallway"
    here = Context("measure the bowl in the workshop.", (), room, ())
    assert follows("pick up thermometer", here) and follows("use thermometer in inventory on thermometer", here)
    assert not follows("pick up jug", here)
    assert not follows("go to hallway", here) and not follows("open cupboard", here)
    assert follows("go to workshop", here) and follows("teleport to kitchen", here)
    assert not follows("go to foundry", here) and not follows("0", here)
    moved = Context(here.goal, (Turn(room, "go to hallway"),), "You move to the hallway.", ())
    assert follows("go to hallway", moved) and follows("wait1", moved)


def test_success_is_a_score_of_100_and_a_wrong_focus_ends_the_episode(environment: ScienceWorldEnvironment) -> None:
    environment.reset(ANIMAL)
    failed = environment.step("focus on air")
    assert (failed.done, failed.success, environment.score()) == (True, False, -100)
    assert failed.reward == -1.0
    after = environment.step("look around")
    assert after.done and not after.success and not after.admissible and after.reward == 0


def test_admissible_is_about_what_can_be_done_in_any_wording(environment: ScienceWorldEnvironment) -> None:
    first = environment.reset(BOIL)
    assert not any("ceramic cup" in action for action in first.admissible_actions)  # in the closed cupboard
    assert not any("sewer" in action for action in first.admissible_actions)
    assert "reset task" not in first.admissible_actions
    assert "examine thermometer" not in first.admissible_actions
    assert all(last(environment, action).admissible for action in ("examine thermometer", "LOOK  At the thermometer"))
    assert not last(environment, "open door to hallway").admissible  # it is open
    opened = environment.step("open cupboard")
    assert opened.admissible and "pick up ceramic cup" in opened.admissible_actions
    assert not last(environment, "open cupboard").admissible
    for action in ("go to foundry", "pick up agent", "eat cupboard", "help", "fly"):
        assert not last(environment, action).admissible, action
    assert last(environment, "teleport to foundry").observation == "You teleport to the foundry."


def test_a_question_is_answered_by_its_numbers_alone(environment: ScienceWorldEnvironment) -> None:
    environment.reset(BOIL)
    asked = last(environment, "open cupboard", "pick up cup")
    assert asked.admissible and asked.observation.startswith("Ambiguous request")
    assert asked.admissible_actions == ("0", "1", "2") and asked.observation.count("\n") == 3
    answered = environment.step("1")
    assert answered.admissible and answered.observation.startswith("You move the ceramic cup")
    assert len(answered.admissible_actions) > 100 and not environment.step("1").admissible
    for refusal in ("3", "pick up tin cup", "x" * 1_000_000):
        assert last(environment, "pick up cup").admissible_actions[:2] == ("0", "1")
        refused = environment.step(refusal)
        assert not refused.admissible and len(refused.admissible_actions) > 100


def test_hostile_actions_are_refused_and_change_nothing(environment: ScienceWorldEnvironment) -> None:
    environment.reset(BOIL)
    calm = take(environment, ["open cupboard", "pick up thermometer", "wait1"])
    environment.reset(BOIL)
    started = time.monotonic()
    assert last(environment, "open cupboard") == calm[0]
    for action in HOSTILE:
        result = environment.step(action)
        assert result.observation == "No known action matches that input." and not result.admissible, action[:30]
        assert result.admissible_actions == calm[0].admissible_actions and result.reward == 0
    assert take(environment, ["pick up thermometer", "wait1"]) == calm[1:]
    assert time.monotonic() - started < 60


def test_interleaved_episodes_do_not_mix_whatever_else_the_engine_plays() -> None:
    """Their simplifications differ, both draw random numbers, and each makes new objects."""
    plans = {
        BOIL: ["activate sink", "open cupboard", "teleport to outside", "wait", "use shovel on ground", "wait1"],
        CIRCUIT: ["teleport to greenhouse", "open bee hive", "wait", "pick up jug", "wait1", "look around"],
        Task("scienceworld", "train", "grow-fruit/3", "grow-fruit"): [
            "teleport to greenhouse", "open bee hive", "wait", "look around", "wait", "look around",
        ],
    }  # fmt: skip
    alone: dict[Task, list[Observation | StepResult]] = {}
    for task, plan in plans.items():
        engine().close()  # each alone on an engine that has never played anything
        environment = ScienceWorldEnvironment()
        alone[task] = [environment.reset(task), *take(environment, plan)]
    environments = {task: ScienceWorldEnvironment() for task in plans}
    mixed: dict[Task, list[Observation | StepResult]] = {task: [environments[task].reset(task)] for task in plans}
    for at in range(6):
        for task, plan in plans.items():
            mixed[task].append(environments[task].step(plan[at]))
    for task in plans:
        assert mixed[task] == alone[task], task


def test_an_engine_that_dies_is_replaced_and_its_episodes_go_on() -> None:
    plan = ["open cupboard", "pick up thermometer", "look around", "wait1", "look around"]
    calm = ScienceWorldEnvironment()
    calm.reset(BOIL)
    wanted = take(calm, plan)
    first, second = ScienceWorldEnvironment(), ScienceWorldEnvironment()
    for environment in (first, second):
        environment.reset(BOIL)
    assert take(first, plan[:2]) == wanted[:2] and take(second, plan[:1]) == wanted[:1]
    killed = engine().pid
    os.kill(killed, signal.SIGKILL)
    assert take(first, plan[2:]) == wanted[2:] and take(second, plan[1:]) == wanted[1:]
    assert engine().pid != killed
    os.kill(engine().pid, signal.SIGKILL)
    assert first.reset(BOIL) == calm.reset(BOIL)


def test_an_engine_that_dies_within_a_step_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has taken the action, and dies before it tells what can be done next."""
    plan = ["open cupboard", "pick up thermometer", "look around"]
    environment = ScienceWorldEnvironment()
    environment.reset(BOIL)
    wanted = take(environment, plan)
    environment.reset(BOIL)
    assert take(environment, plan[:1]) == wanted[:1]
    menu, killed = Game.menu, []

    def die_first(game: Game) -> ActionMenu:
        if not killed:
            killed.append(engine().pid)
            os.kill(engine().pid, signal.SIGKILL)
        return menu(game)

    monkeypatch.setattr(Game, "menu", die_first)
    assert take(environment, plan[1:]) == wanted[1:] and engine().pid not in killed


def test_an_engine_that_hangs_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_act.envs.scienceworld.server.CALL_SECONDS", 5.0)
    engine().close()
    environment = ScienceWorldEnvironment()
    environment.reset(BOIL)
    take(environment, ["open cupboard"])
    hung = engine().pid
    os.kill(hung, signal.SIGSTOP)
    assert environment.step("pick up ceramic cup").observation == "You move the ceramic cup to the inventory."
    assert not psutil.pid_exists(hung)
    engine().close()  # the next one has its usual patience


def with_heap(megabytes: int, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with `SPEC`, `server` and `NoRoom`, on engines with so much heap; a game takes 10 MB."""
    start = """
import verl_act.envs.scienceworld.server as server
server._OPTIONS = tuple("-Xmx{}m" if option.startswith("-Xmx") else option for option in server._OPTIONS)
server.HEAP_MB = {}
from verl_act.envs.base import NoRoom
from verl_act.envs.scienceworld import SPEC
from verl_act.errors import EnvError
"""
    return in_new_process(start.format(megabytes, megabytes) + code)


def test_an_engine_that_is_out_of_heap_says_so() -> None:
    code = """
try:
    SPEC.make().reset(SPEC.tasks("train")[0])
except NoRoom as error:
    print(error)
"""
    said = with_heap(20, code).stdout
    assert "ran out of its 20 MB; live games: 1. Play fewer at a time in one process: give more `actors`" in said


def test_episodes_beyond_the_heap_end_with_a_word_and_leave_the_others_theirs() -> None:
    """There is room for four. Those that end are not played again on another engine, where the others go on."""
    code = """
playing = {number: SPEC.make() for number in range(6)}
errors = []
for step in range(3):
    for number, environment in list(playing.items()):
        try:
            step or environment.reset(SPEC.tasks("train")[number])
            environment.step("look around")
        except NoRoom as error:
            errors.append(str(error))
            del playing[number]
            try:
                environment.step("look around")
            except EnvError as ended:
                assert "Call `reset" in str(ended)
assert len(playing) + len(errors) == 6
assert all(len(environment.snapshot().actions) == 3 for environment in playing.values())
print(len(playing), *errors, sep="\\n")
"""
    run = with_heap(60, code)
    assert run.returncode == 0, run.stderr
    left, *errors = run.stdout.splitlines()
    assert 2 <= int(left) <= 5 and len(errors) == 6 - int(left)
    for error in errors:
        assert "ran out of its 60 MB; live games: " in error and "give more `actors`" in error
    replaced = run.stderr.count("live games: they need more than its 60 MB")
    assert replaced in (len(errors), len(errors) - 1), "told each time"


def test_a_process_takes_as_many_games_as_the_heap_has_room_for() -> None:
    code = """
server.MOST_GAMES = 3
from verl_act.envs.scienceworld.game import gold_path
first, second, third, fourth = [SPEC.make() for _ in range(4)]
tasks = SPEC.tasks("train")
for environment in (first, second, third):
    environment.reset(tasks[0])
for refused in (lambda: fourth.reset(tasks[1]), lambda: gold_path("find-animal", 0, "easy")):
    try:
        refused()
    except NoRoom as error:
        print(error)
pid = server.engine().pid
third.reset(tasks[2])
second.release()
fourth.reset(tasks[1])
for environment in (first, third, fourth):
    environment.step("look around")
assert server.engine().pid == pid
"""
    run = with_heap(1024, code)
    told = "This process plays 3 games of ScienceWorld already; the 1024 MB of its Java engine have no room for more."
    assert run.returncode == 0 and run.stdout.count(told) == 2, run.stderr
    assert "give more `actors`" in run.stdout and not run.stderr


def test_a_released_game_leaves_the_engine_and_can_be_followed_by_another() -> None:
    environment, task = ScienceWorldEnvironment(), list_tasks("train")[0]
    first = environment.reset(task)
    environment.release()
    with pytest.raises(EnvError, match="reset"):
        environment.step("look around")
    assert environment.reset(task) == first


def runs(pid: int) -> bool:
    """Whether it does anything still: where nothing collects orphans, an ended one stays as a zombie."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_an_engine_ends_with_its_process() -> None:
    code = (
        "import os, signal, sys; from verl_act.envs.scienceworld.server import engine; print(engine().pid, flush=True);"
    )
    for end in ("", "os.kill(os.getpid(), signal.SIGKILL)"):
        pid = int(in_new_process(code + end).stdout)
        deadline = time.monotonic() + 20
        while runs(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not runs(pid)


def test_without_java_tasks_are_listed_and_playing_is_told(tmp_path: Path) -> None:
    code = """
from verl_act.envs.registry import get_env
from verl_act.errors import ActError
spec = get_env("scienceworld")
task = spec.tasks("train")[0]
try:
    spec.make().reset(task)
except ActError as error:
    print(type(error).__name__, error)
"""
    absent = in_new_process(code, PATH=str(tmp_path), JAVA_HOME="")
    assert absent.stdout.startswith("ConfigError ScienceWorld runs on Java, and no `java` was found. Install Java 8")
    no_home = in_new_process(code, JAVA_HOME=str(tmp_path))
    assert no_home.stdout.startswith(f"ConfigError $JAVA_HOME is {tmp_path}, which holds no bin/java. Install Java")
    wrong = tmp_path / "java"
    wrong.write_text(
        "#!/bin/sh\necho 'Picked up JAVA_TOOL_OPTIONS: x' >&2\necho 'UnsupportedClassVersionError' >&2\nexit 1\n"
    )
    wrong.chmod(0o755)
    old = in_new_process(code, PATH=f"{tmp_path}:{os.environ['PATH']}", JAVA_HOME="")
    assert old.stdout.startswith(f"ConfigError {wrong} does not start ScienceWorld's engine (UnsupportedClassVersion")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("\x7fELF of another machine", "cannot be executed (Exec format error). Install Java 8"),
        ("#!/no/such/interpreter\n", "cannot be executed (No such file or directory). Install Java 8"),
        (
            "#!/bin/sh\necho 'Picked up JAVA_TOOL_OPTIONS: x' >&2\n"
            "echo 'Error occurred during initialization of VM'\necho 'Too small maximum heap'\nexit 1\n",
            "does not start ScienceWorld's engine (Error occurred during initialization of VM: Too small maximum heap)",
        ),
        (
            "#!/bin/sh\necho '#'\necho '# There is insufficient memory'\necho '# Native'\nexit 1\n",
            "does not start ScienceWorld's engine (# There is insufficient memory",
        ),
        ("#!/bin/sh\nexit 7\n", "does not start ScienceWorld's engine (no word within 60 s, or exit status 7)"),
    ],
)
def test_a_java_that_does_not_run_is_named_with_what_it_said(
    content: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(content)
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        ScienceWorldEngine()
    assert str(caught.value).startswith(f"{java} {complaint}")


@pytest.mark.slow
def test_episodes_in_a_pool_survive_the_death_of_their_engine() -> None:
    import ray

    from verl_act.envs.pool import EnvPool

    async def go_on() -> list[StepResult]:
        pool = EnvPool("scienceworld", {"tasks": ["boil"]})
        sessions = await asyncio.gather(*(pool.open(BOIL) for _ in range(3)))
        await asyncio.gather(*(session.step("open cupboard") for session in sessions))
        engines = started_processes("py4j.GatewayServer")
        assert len(engines) == 1, "three episodes of one actor share an engine"
        engines[0].kill()
        results = await asyncio.gather(*(session.step("pick up ceramic cup") for session in sessions))
        await asyncio.gather(*(session.close() for session in sessions))
        return results

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        results = asyncio.run(go_on())
    finally:
        ray.shutdown()
    assert [result.observation for result in results] == ["You move the ceramic cup to the inventory."] * 3
