"""The pool on real Ray: actors are killed and hang in the middle of episodes, and no episode is lost or mixed up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import fragile_env
import hostile_env
import psutil
import pytest
import ray
from installed_env import install, ray_with
from ray.exceptions import OutOfMemoryError

from verl_act.engine import Sampling
from verl_act.envs.actor_handle import GROWN_AFTER, ActorLost, PooledActor
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.base import NoRoom, StepResult, Task
from verl_act.envs.contract import NONSENSE
from verl_act.envs.pool import ALONE, SUSPECTED, EnvPool
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, EnvError
from verl_act.evaluate.evaluation import rollout_eval_tasks
from verl_act.evaluate.rollouts import PolicyUnderTest
from verl_act.prompts import get_template
from verl_act.settings.episodes import PoolSettings
from verl_act.settings.evaluation import EvaluationSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray job in which the fragile and the hostile environment are installed packages."""
    site = tmp_path_factory.mktemp("site")
    install(hostile_env, site)
    with ray_with(fragile_env, site):
        yield


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    return {"traps": str(tmp_path)}


def task(number: int) -> Task:
    return Task(fragile_env.NAME, "train", f"t{number}", "count")


def test_many_episodes_at_once_are_never_mixed_up(settings: dict[str, str]) -> None:
    async def count(pool: EnvPool, number: int) -> str:
        session = await pool.open(task(number))
        for _ in range(number):
            result = await session.step("add")
            await asyncio.sleep(0)
        result = await session.step("look")
        await session.close()
        return result.observation

    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=2))
        return await asyncio.gather(*(count(pool, number) for number in range(20)))

    assert asyncio.run(run()) == [f"t{number}: {number}" for number in range(20)]


def test_an_episode_is_played_while_others_are_reset(settings: dict[str, str], tmp_path: Path) -> None:
    """A step does not wait for all resets that came before it, and a reset not for its check of memory behind them."""
    (tmp_path / fragile_env.SLOW_TO_RESET).touch()
    opened: list[float] = []
    ended: list[float] = []

    async def play(pool: EnvPool, number: int) -> None:
        session = await pool.open(task(number))
        opened.append(time.monotonic())
        for _ in range(5):
            await session.step("add")
        ended.append(time.monotonic())
        await session.close()

    async def run() -> None:
        pool = EnvPool(fragile_env.NAME, settings)
        await asyncio.gather(*(play(pool, number) for number in range(12)))

    asyncio.run(run())
    assert opened[-1] - opened[0] > 10 * fragile_env.RESET_SECONDS, "one reset after the other"
    assert ended[0] < opened[-1] - fragile_env.RESET_SECONDS


def test_a_killed_actor_is_replaced_and_its_episodes_go_on(settings: dict[str, str]) -> None:
    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=1))
        sessions = [await pool.open(task(number)) for number in range(3)]
        for session in sessions:
            await session.step("add")
        os.kill(int((await sessions[0].step("who")).observation), signal.SIGKILL)
        results = await asyncio.gather(*(session.step("add") for session in sessions[1:]))
        return [result.observation for result in results]

    assert asyncio.run(run()) == ["t1: 2", "t2: 2"]


def test_a_stopped_actor_is_replaced_soon_after_the_time_out(settings: dict[str, str]) -> None:
    async def run() -> tuple[str, bool]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(step_timeout=2))
        session, other = await pool.open(task(0)), await pool.open(task(1))
        await session.step("add")
        stopped = int((await other.step("who")).observation)
        os.kill(stopped, signal.SIGSTOP)
        result = await asyncio.wait_for(session.step("add"), 60)
        return result.observation, psutil.pid_exists(stopped) and psutil.Process(stopped).status() == "stopped"

    assert asyncio.run(run()) == ("t0: 2", False)


@pytest.mark.parametrize("action", ["leave", "may not"])
def test_an_environment_that_exits_or_lacks_a_permission_costs_no_process(
    settings: dict[str, str], action: str
) -> None:
    async def run() -> None:
        pool = EnvPool(fragile_env.NAME, settings)
        session, other = await pool.open(task(0)), await pool.open(task(1))
        pid = (await other.step("who")).observation
        with pytest.raises(EnvError, match={"leave": "SystemExit", "may not": "PermissionError"}[action]):
            await session.step(action)
        await session.close()
        assert (await other.step("who")).observation == pid

    asyncio.run(run())


def test_a_killing_action_is_retried_once_and_hurts_only_its_own_episode(settings: dict[str, str]) -> None:
    async def run() -> None:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=1))
        good, deadly, lucky = [await pool.open(task(number)) for number in range(3)]
        for session in (good, deadly, lucky):
            await session.step("add")

        async def doomed() -> str:
            with pytest.raises(EnvError, match=r"'die' at step 1"):
                await deadly.step("die")
            return "given up"

        outcomes = await asyncio.gather(doomed(), good.step("add"), lucky.step("die once"))
        assert outcomes[0] == "given up"
        assert (outcomes[1].observation, outcomes[2].observation) == ("t0: 2", "t2: 1")
        for session in (good, deadly, lucky):
            await session.close()

    asyncio.run(run())


@pytest.fixture
def dedicated_actors(monkeypatch: pytest.MonkeyPatch) -> list[PooledActor]:
    """Every actor that a pool has made for one episode alone."""
    made: list[PooledActor] = []
    make = EnvPool.dedicated_actor
    monkeypatch.setattr(EnvPool, "dedicated_actor", lambda pool: made.append(make(pool)) or made[-1])
    return made


def test_an_episode_returns_from_an_actor_of_its_own(
    settings: dict[str, str], dedicated_actors: list[PooledActor]
) -> None:
    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings)
        lucky, other = [await pool.open(task(number)) for number in range(2)]
        await lucky.step("add")
        shown = [(await lucky.step(action)).observation for action in ("die once", "add")]
        assert (await lucky.step("who")).observation == (await other.step("who")).observation
        await lucky.close()
        return [*shown, (await other.step("add")).observation]

    assert asyncio.run(run()) == ["t0: 1", "t0: 2", "t1: 1"]
    assert [actor.handle for actor in dedicated_actors] == [None], "one was needed, and it has ended"


def test_many_suspects_have_few_actors_of_their_own(
    settings: dict[str, str], dedicated_actors: list[PooledActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_act.envs.pool.SUSPECTED", 0)  # every episode is one, at every step
    count = ALONE + 3

    async def run() -> tuple[list[str], int]:
        pool = EnvPool(fragile_env.NAME, settings)
        sessions = [await pool.open(task(number)) for number in range(count)]
        stepping = [asyncio.create_task(session.step("add")) for session in sessions]
        most = 0
        while not all(step.done() for step in stepping):
            most = max(most, sum(actor.handle is not None for actor in dedicated_actors))
            await asyncio.sleep(0.02)
        return [step.result().observation for step in stepping], most

    shown, most = asyncio.run(run())
    assert shown == [f"t{number}: 1" for number in range(count)]
    assert len(dedicated_actors) == count and most == ALONE


def test_an_episode_that_is_suspected_again_and_again_stays_away_from_the_others(
    settings: dict[str, str], dedicated_actors: list[PooledActor]
) -> None:
    async def run() -> tuple[list[str], list[str]]:
        pool = EnvPool(fragile_env.NAME, settings)

        async def shared() -> str:
            return (await (await pool.open(task(1))).step("who")).observation

        odd = await pool.open(task(0))
        for _ in range(SUSPECTED):
            os.kill(int(await shared()), signal.SIGKILL)
            await odd.step("add")
        pids = [await shared()]
        shown = [(await odd.step("add")).observation for _ in range(2)]
        return shown, [*pids, (await odd.step("who")).observation, await shared()]

    shown, (before, alone, after) = asyncio.run(run())
    assert shown == [f"t0: {SUSPECTED + number}" for number in (1, 2)]
    assert before == after != alone and len(dedicated_actors) == SUSPECTED + 3
    assert all(actor.handle is None for actor in dedicated_actors)


def test_steps_that_wait_go_together(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    call = PooledActor.call

    async def count(actor: PooledActor, timeout: float, method: str, *arguments: Any) -> Any:
        asked.append(method)
        return await call(actor, timeout, method, *arguments)

    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings)
        sessions = [await pool.open(task(number)) for number in range(17)]
        monkeypatch.setattr(PooledActor, "call", count)
        results = await asyncio.gather(*(session.step("add") for session in sessions))
        return [result.observation for result in results]

    assert asyncio.run(run()) == [f"t{number}: 1" for number in range(17)]
    assert asked == ["steps"] * 3, "the first, which finds nobody waiting, then eight and eight"


def test_what_a_step_does_reaches_none_that_went_with_it(settings: dict[str, str]) -> None:
    """One kills the process, one kills it once, one fails, one hangs once: all are in one call."""

    async def run() -> list[Any]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(step_timeout=5))
        sessions = [await pool.open(task(number)) for number in range(8)]
        await asyncio.gather(*(session.step("add") for session in sessions))
        actions = ["add", "add", "die", "add", "fail", "die once", "hang once", "add"]
        steps = zip(sessions, actions, strict=True)
        first = await asyncio.gather(*(session.step(action) for session, action in steps), return_exceptions=True)
        return first + await asyncio.gather(*(sessions[at].step("add") for at in (0, 1, 3, 4, 5, 6, 7)))

    results = asyncio.run(run())
    failed = {at: str(result) for at, result in enumerate(results) if isinstance(result, Exception)}
    assert list(failed) == [2, 4] and "its process died" in failed[2] and "a bug in the environment" in failed[4]
    shown = [None if at in failed else result.observation for at, result in enumerate(results)]
    assert shown[:8] == ["t0: 2", "t1: 2", None, "t3: 2", None, "t5: 1", "t6: 1", "t7: 2"]
    assert shown[8:] == ["t0: 3", "t1: 3", "t3: 3", "t4: 2", "t5: 2", "t6: 2", "t7: 3"]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_a_cancelled_step_leaves_those_that_went_with_it(settings: dict[str, str], cancelled: int) -> None:
    """The first is on its way alone; the second has sent its own and the third, or both wait."""

    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings)
        sessions = [await pool.open(task(number)) for number in range(3)]
        steps = [asyncio.create_task(session.step("slow")) for session in sessions]
        await asyncio.sleep(fragile_env.SLOW * (0.5 if cancelled == 0 else 1.5))
        steps[cancelled].cancel()
        await asyncio.wait(steps)
        others = [session for number, session in enumerate(sessions) if number != cancelled]
        assert [step.cancelled() for step in steps] == [number == cancelled for number in range(3)]
        return [(await session.step("add")).observation for session in others]

    assert asyncio.run(run()) == [f"t{number}: 2" for number in range(3) if number != cancelled]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_episode_goes_on_without_its_cancelled_step(settings: dict[str, str], place: int) -> None:
    """The first step is on its way when its caller gives up, the second has sent others, the third waits."""

    async def run() -> tuple[list[str], int]:
        pool = EnvPool(fragile_env.NAME, settings)
        sessions = [await pool.open(task(number)) for number in range(3)]
        await asyncio.gather(*(session.step("add") for session in sessions))
        seconds = [fragile_env.SLOW * (0.5 if place == 0 else 1.5) if at == place else 60 for at in range(3)]
        steps = [asyncio.wait_for(session.step("slow"), wait) for session, wait in zip(sessions, seconds, strict=True)]
        results = await asyncio.gather(*steps, return_exceptions=True)
        assert [isinstance(result, TimeoutError) for result in results] == [at == place for at in range(3)]
        shown = [(await session.step("add")).observation for session in sessions]
        for session in sessions:
            await session.close()
        actor = pool.actors[0].handle
        assert actor is not None
        return shown, ray.get(actor.__ray_call__.remote(lambda actor: len(actor.playing)))

    wanted = [f"t{number}: {2 if number == place else 3}" for number in range(3)]
    assert asyncio.run(run()) == (wanted, 0), "the cancelled step is no part of the episode, and no copy is left"


def test_a_cancelled_step_on_an_actor_of_its_own_is_no_part_of_the_episode(
    settings: dict[str, str], dedicated_actors: list[PooledActor]
) -> None:
    async def run() -> str:
        pool = EnvPool(fragile_env.NAME, settings)
        session = await pool.open(task(0))
        await session.step("add")
        session.suspected = SUSPECTED
        step = asyncio.create_task(session.step("slow"))
        while not dedicated_actors or session.generation is None:  # not yet replayed there
            await asyncio.sleep(0.05)
        step.cancel()
        with suppress(asyncio.CancelledError):
            await step
        assert [actor.handle for actor in dedicated_actors] == [None], "it has ended"
        return (await session.step("add")).observation

    assert asyncio.run(run()) == "t0: 2"


def test_a_hung_step_is_given_up_after_its_timeout_and_retried(settings: dict[str, str]) -> None:
    async def run() -> tuple[str, str]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=1, step_timeout=3))
        hung, waiting = await pool.open(task(0)), await pool.open(task(1))
        await hung.step("add")
        results = await asyncio.gather(hung.step("hang once"), waiting.step("add"))
        return results[0].observation, results[1].observation

    assert asyncio.run(run()) == ("t0: 1", "t1: 1")


def test_other_episodes_generate_while_an_environment_steps(settings: dict[str, str]) -> None:
    async def run() -> int:
        session = await EnvPool(fragile_env.NAME, settings).open(task(0))
        stepping = asyncio.create_task(session.step("slow"))
        replies = 0
        while not stepping.done():
            await asyncio.sleep(0.1)  # what another episode's reply takes
            replies += 1
        return replies

    assert asyncio.run(run()) > 5


def test_what_an_environment_prepares_is_done_once_and_not_part_of_its_resets(
    settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / fragile_env.SLOW_TO_PREPARE).touch()

    async def run() -> list[str]:
        pools = [EnvPool(fragile_env.NAME, settings, PoolSettings(reset_timeout=5)) for _ in range(3)]
        sessions = await asyncio.gather(*(pool.open(task(0)) for pool in pools))
        return [(await session.step("who")).observation for session in sessions]

    started = time.monotonic()
    assert len(set(asyncio.run(run()))) == 1, "all are in one process, which was not lost"
    assert 6 < time.monotonic() - started < 18


def test_a_step_behind_another_callers_has_all_of_its_time(settings: dict[str, str]) -> None:
    """Processes of one job share the actors; here two pools stand for them."""

    async def run() -> tuple[str, str]:
        slow = await EnvPool(fragile_env.NAME, settings, PoolSettings(step_timeout=30)).open(task(0))
        quick = await EnvPool(fragile_env.NAME, settings, PoolSettings(step_timeout=1)).open(task(1))
        before = (await quick.step("who")).observation
        _, after = await asyncio.gather(slow.step("slow"), quick.step("who"))
        return before, after.observation

    before, after = asyncio.run(run())
    assert before == after, "nobody's process was ended"


def test_a_closed_episode_is_released(settings: dict[str, str], tmp_path: Path) -> None:
    async def run() -> str:
        pool = EnvPool(fragile_env.NAME, settings)
        first = await pool.open(task(0))
        assert not (tmp_path / fragile_env.RELEASED).exists()
        await first.close()
        assert (tmp_path / fragile_env.RELEASED).exists()
        return (await (await pool.open(task(1))).step("add")).observation

    assert asyncio.run(run()) == "t1: 1"


def on_actor(actor: PooledActor, function: Callable[[Any], Any]) -> Any:
    """Call `function` with the object that `actor` is a handle of, in its process."""
    assert actor.handle is not None
    return ray.get(actor.handle.__ray_call__.remote(function))


def test_an_episode_begins_where_there_is_room(settings: dict[str, str]) -> None:
    def refuse(number: int) -> Any:
        raise NoRoom(f"process {number} plays as many as it can")

    async def run() -> tuple[bool, str]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=2))
        first = await pool.open(task(0))
        full, other = sorted(pool.actors, key=lambda actor: actor is not first.actor)
        on_actor(full, lambda actor: setattr(actor, "make", lambda: refuse(0)))
        second = await pool.open(task(0))
        assert (await second.step("add")).observation == (await first.step("add")).observation == "t0: 1"
        on_actor(other, lambda actor: setattr(actor, "make", lambda: refuse(1)))
        with pytest.raises(NoRoom, match="process 1 plays"):
            await pool.open(task(0))
        assert (full.episodes, other.episodes) == (1, 1)
        return second.actor is other, (await first.step("add")).observation

    assert asyncio.run(run()) == (True, "t0: 2")


def test_a_step_for_which_there_is_no_room_is_not_tried_again(settings: dict[str, str]) -> None:
    """The first step finds others in its call, the second is replayed."""

    def spoil(actor: Any) -> None:
        step = fragile_env.FragileEnvironment.step

        def refuse(environment: fragile_env.FragileEnvironment, action: str) -> StepResult:
            if action != "fail":
                return step(environment, action)
            actor.refused = getattr(actor, "refused", 0) + 1
            raise NoRoom("out of memory")

        fragile_env.FragileEnvironment.step = refuse  # type: ignore[method-assign]

    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings)
        sessions = [await pool.open(task(number)) for number in range(3)]
        (actor,) = pool.actors
        on_actor(actor, spoil)
        steps = zip(sessions, ("add", "fail", "add"), strict=True)
        results = await asyncio.gather(*(session.step(action) for session, action in steps), return_exceptions=True)
        assert isinstance(results[1], NoRoom) and on_actor(actor, lambda actor: actor.refused) == 1
        with pytest.raises(NoRoom, match="out of memory"):
            await sessions[1].step("fail")
        assert on_actor(actor, lambda actor: actor.refused) == 2
        return [(await session.step("add")).observation for session in (sessions[0], sessions[2])]

    assert asyncio.run(run()) == ["t0: 2", "t2: 2"]


def test_a_step_that_fails_is_retried_on_a_fresh_environment(settings: dict[str, str]) -> None:
    async def run() -> list[str]:
        session = await EnvPool(fragile_env.NAME, settings).open(task(0))
        await session.step("add")
        shown = [(await session.step(action)).observation for action in ("spoil once", "add")]
        await session.close()
        return shown

    assert asyncio.run(run()) == ["t0: 1", "t0: 2"]


def test_an_environment_that_replays_differently_is_never_stepped_in_that_state(settings: dict[str, str]) -> None:
    async def run() -> None:
        session = await EnvPool(fragile_env.NAME, settings).open(task(0))
        await session.step("wander")
        for action in ("spoil once", "add"):
            with pytest.raises(EnvError, match=r"\['wander'\]"):
                await session.step(action)
        await session.close()

    asyncio.run(run())


def test_a_cancelled_start_leaves_no_environment_behind(settings: dict[str, str]) -> None:
    async def run() -> tuple[int, int]:
        pool = EnvPool(fragile_env.NAME, settings)
        await (await pool.open(task(0))).close()
        cancelled = asyncio.create_task(pool.open(task(1)))
        await asyncio.sleep(0)
        while not pool.actors[0].turn.locked():
            await asyncio.sleep(0)
        cancelled.cancel()
        with suppress(asyncio.CancelledError):
            await cancelled
        actor = pool.actors[0].handle
        assert actor is not None
        return ray.get(actor.__ray_call__.remote(lambda actor: len(actor.playing))), pool.actors[0].episodes

    assert asyncio.run(run()) == (0, 0)


def test_a_replay_may_take_as_long_as_the_steps_in_it(settings: dict[str, str]) -> None:
    async def run() -> str:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(step_timeout=fragile_env.SLOW * 1.6, reset_timeout=4))
        session = await pool.open(task(0))
        for _ in range(4):  # more than both time-outs together
            await session.step("slow")
        pool.actors[0].discard()
        return (await session.step("add")).observation

    assert asyncio.run(run()) == "t0: 5"


def test_an_actor_with_many_more_episodes_than_another_gets_no_more(settings: dict[str, str]) -> None:
    async def run() -> tuple[list[int], list[int]]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=2))
        group = [await pool.open(Task(fragile_env.NAME, "train", "same", "")) for _ in range(30)]
        shared = sorted(actor.episodes for actor in pool.actors)
        for session in group:
            await session.close()
            await session.close()
        return shared, [actor.episodes for actor in pool.actors]

    shared, left = asyncio.run(run())
    assert shared in ([0, 30], [11, 19]) and left == [0, 0]


def test_an_actor_that_has_grown_too_large_is_replaced(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("verl_act.envs.actor_handle.GROWN_AFTER", 1)
    monkeypatch.setattr("verl_act.envs.actor_handle.MEMORY_EVERY", 0)

    async def run() -> tuple[list[float], list[str]]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(max_memory_mb=fragile_env.LEAK_MB))
        going = await pool.open(task(0))
        await going.step("add")
        sessions = [await pool.open(task(1))]
        held, pids = [going.memory_mb], [(await going.step("who")).observation]
        await going.step("leak")
        sessions += [await pool.open(task(2)), await pool.open(task(3))]
        held.append(going.memory_mb)
        pids.append((await sessions[-1].step("who")).observation)
        shown = [(await session.step("add")).observation for session in (going, *sessions)]
        assert shown == ["t0: 2", "t1: 1", "t2: 1", "t3: 1"], "replayed to where they were"
        deadline = time.monotonic() + 20
        while psutil.pid_exists(int(pids[0])) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert not psutil.pid_exists(int(pids[0])), "what it held is free"
        return held, pids

    held, pids = asyncio.run(run())
    assert 0 < held[0] < fragile_env.LEAK_MB and pids[0] != pids[1]
    assert "will be replaced" in caplog.text


def test_a_pool_tells_the_most_memory_that_an_actor_held(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_act.envs.actor_handle.MEMORY_EVERY", 0)

    async def run() -> list[float]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(actors=2))
        told = [pool.memory_mb]
        session = await pool.open(task(0))
        told.append(pool.memory_mb)
        await session.step("leak")
        await session.close()
        told.append(pool.memory_mb)
        session.actor.discard()
        await (await pool.open(task(0))).close()
        return [*told, pool.memory_mb]

    none, begun, leaked, replaced = asyncio.run(run())
    assert none == 0 < begun < fragile_env.LEAK_MB < leaked == replaced


def test_a_limit_below_what_any_process_needs_is_told_and_not_thrashed(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("verl_act.envs.actor_handle.MEMORY_EVERY", 0)

    async def run() -> set[str]:
        pool = EnvPool(fragile_env.NAME, settings, PoolSettings(max_memory_mb=1))
        opened = [await pool.open(task(number)) for number in range(2 * GROWN_AFTER + 2)]
        return {(await session.step("who")).observation for session in opened}

    assert len(asyncio.run(run())) == 1
    assert caplog.text.count("max_memory_mb=1,") == 1
    assert "will be replaced" not in caplog.text


def test_a_time_out_of_the_environments_own_does_not_cost_its_process(settings: dict[str, str]) -> None:
    async def run() -> list[str]:
        pool = EnvPool(fragile_env.NAME, settings)
        failing, other = [await pool.open(task(number)) for number in range(2)]
        before = (await other.step("who")).observation
        with pytest.raises(EnvError, match="TimeoutError: its own server does not answer"):
            await failing.step("time out")
        return [before, (await other.step("who")).observation]

    before, after = asyncio.run(run())
    assert before == after


def test_a_process_that_took_too_much_memory_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's memory monitor kills it, and what its caller then gets is no `RayActorError`."""

    class Killed:
        class process:
            @staticmethod
            async def remote(*arguments: Any) -> tuple[int, str]:
                return 0, "a node"

        prepare = process

        class step:
            @staticmethod
            async def remote(*arguments: Any) -> None:
                raise OutOfMemoryError("killed by the memory monitor")

    monkeypatch.setattr(ray, "kill", lambda actor: None)
    actor = PooledActor(lambda generation: Killed())  # type: ignore[arg-type,return-value]
    with pytest.raises(ActorLost, match="OutOfMemoryError"):
        asyncio.run(actor.call(1.0, "step"))
    assert actor.generation == 1


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.nightly)])
def test_many_kills_in_a_row_leave_no_trace(kills: int, games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the episode is killed before each of its steps, to which it has returned each time."""
    monkeypatch.setattr("verl_act.envs.pool.SUSPECTED", kills)
    settings = {"data": str(games), "max_steps": 120}
    played = get_env("alfworld").tasks("train", **settings)[0]
    environment = AlfworldEnvironment(**settings)
    alone: list[Any] = [environment.reset(played)]
    actions = []
    for number in range(kills):
        offered = alone[-1].admissible_actions
        actions.append(offered[number * 7 % len(offered)])
        alone.append(environment.step(actions[-1]))
        if alone[-1].done:
            break

    async def run() -> list[Any]:
        pool = EnvPool("alfworld", settings, PoolSettings(actors=1))
        session = await pool.open(played)
        shown: list[Any] = [session.first]
        for action in actions:
            await (await pool.open(played)).close()  # starts the process, where the last kill has left none
            actor = session.actor.handle
            assert actor is not None
            pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
            os.kill(pid, signal.SIGKILL)
            shown.append(await session.step(action))
        assert session.suspected == kills
        await session.close()
        return shown

    assert len(actions) == kills, "the episode must last for all kills"
    assert asyncio.run(run()) == alone


def test_errors_of_an_environment_reach_the_caller(settings: dict[str, str], games: Path) -> None:
    async def run() -> None:
        session = await EnvPool(fragile_env.NAME, settings).open(task(0))
        for action, message in (
            ("fail", "RuntimeError: a bug in the environment"),
            ("fail oddly", "OddError: 7: a bug with a class of its own"),
        ):
            with pytest.raises(EnvError, match=message):
                await session.step(action)
        assert (await session.step("add")).observation == "t0: 1"
        with pytest.raises(EnvError, match="nowhere"):
            await EnvPool("alfworld", {"data": str(games)}).open(Task("alfworld", "train", "nowhere", "x"))

    asyncio.run(run())


def test_pools_of_one_job_share_their_actors(settings: dict[str, str]) -> None:
    async def run() -> set[str]:
        sessions = [await EnvPool(fragile_env.NAME, settings).open(task(0)) for _ in range(3)]
        return {(await session.step("who")).observation for session in sessions}

    assert len(asyncio.run(run())) == 1


def test_alfworld_plays_alike_in_the_pool_and_here(games: Path) -> None:
    settings = {"data": str(games)}
    listed = get_env("alfworld").tasks("train", **settings)[:3]

    async def play(pool: EnvPool, task: Task) -> list[object]:
        session = await pool.open(task)
        shown: list[object] = [session.first]
        for action in session.first.admissible_actions:
            shown.append(await session.step(action))
        await session.close()
        return shown

    async def run() -> list[list[object]]:
        pool = EnvPool("alfworld", settings, PoolSettings(actors=1))
        return await asyncio.gather(*(play(pool, task) for task in listed))

    environment = AlfworldEnvironment(**settings)
    for task, shown in zip(listed, asyncio.run(run()), strict=True):
        first = environment.reset(task)
        assert shown == [first, *(environment.step(action) for action in first.admissible_actions)]


def test_hostile_actions_reach_their_own_episode_alone(games: Path) -> None:
    """Texts of 1 MB and of control characters travel through Ray; the other episode of the process does not notice."""
    settings = {"data": str(games)}
    first, second = get_env("alfworld").tasks("train", **settings)[:2]

    async def run() -> list[list[Any]]:
        pool = EnvPool("alfworld", settings, PoolSettings(actors=1))
        hostile, calm = await asyncio.gather(pool.open(first), pool.open(second))
        shown: list[list[Any]] = [[hostile.first], [calm.first]]
        for nonsense, action in zip(NONSENSE, calm.first.admissible_actions, strict=False):
            results = await asyncio.gather(hostile.step(nonsense), calm.step(action))
            for transcript, result in zip(shown, results, strict=True):
                transcript.append(result)
        with pytest.raises(EnvError, match="0-B000"):
            await pool.open(Task("webshop", "test", "0-B000", "x"))
        return shown

    environment = AlfworldEnvironment(**settings)
    shown = asyncio.run(run())
    assert not any(result.admissible for result in shown[0][1:])
    opened = environment.reset(second)
    played = [environment.step(action) for action in opened.admissible_actions[: len(NONSENSE)]]
    assert shown[1] == [opened, *played]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="actors is 0"):
        EnvPool("alfworld", {}, PoolSettings(actors=0))
    with pytest.raises(ConfigError, match="'alfwrold'"):
        EnvPool("alfwrold")


class Adds:
    """Stands where an engine would: the same action for ever."""

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        return ["<action>add</action>"]


def test_an_eval_set_is_played_on_the_callers_ray() -> None:
    policy = PolicyUnderTest(cast(Any, Adds()), get_template("plain"), Sampling(temperature=0))
    settings = EvaluationSettings(model="m", max_turns=hostile_env.STEPS, actors=2)
    played, memory = asyncio.run(rollout_eval_tasks(policy, [task(0), task(1)], settings))
    assert [record["end"] for record in played] == ["step_limit", "step_limit"]
    assert memory > 10, "MB that an actor held"
    assert [record["turns"][-1]["observation"] for record in played] == ["t0: 2", "t1: 2"]
    assert memory > 0 and ray.is_initialized()
