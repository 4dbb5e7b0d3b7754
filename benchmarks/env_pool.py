"""The environment pool against one Ray actor an environment, on one core and more; snapshots against replay; episodes
against lock-step.

    python benchmarks/env_pool.py [--parts probing lock_step sizes cores] [--environments 16 64 256] [--steps 50]
      [--actors 2]

Each part plays the same actions both ways and fails where what the environments said differs. Writes
`results/env_pool.json` beside this file; parts that are not run keep their figures there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import ray

from verl_act.data_prep.expert.collect_expert import play
from verl_act.data_prep.pairs.margins import ReplayedState
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.base import Environment, Observation, PlanningEnvironment, StepResult, Task
from verl_act.envs.pool import EnvPool
from verl_act.envs.registry import get_env
from verl_act.schema import Step
from verl_act.settings.data import GamesSettings
from verl_act.settings.episodes import PoolSettings

RESULT = Path(__file__).parent / "results" / "env_pool.json"
PARTS = ("probing", "lock_step", "sizes", "cores")
ENV = "alfworld"
ALTERNATIVES = 4
LATENCY = (0.2, 0.6)
"""Seconds: median of the generation times that are slept, and the spread of their logarithm."""
SPARE_GIB = 3
"""Memory that a part must leave to the machine."""

Said = list[Observation | StepResult]


@contextmanager
def started_ray() -> Iterator[None]:
    """A Ray of its own on the cores of this process: no actor of an earlier measurement is at hand."""
    ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@ray.remote(num_cpus=0)
class Alone:
    """One environment in an actor of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._environment = get_env(ENV).make(**settings)

    def reset(self, task: Task) -> Observation:
        return self._environment.reset(task)

    def step(self, action: str) -> StepResult:
        return self._environment.step(action)


def workers() -> set[psutil.Process]:
    """Ray's processes that host actors; one that waits for its first has no part in it, nor have Ray's own agents."""
    found = {process: process.name() for process in psutil.Process().children(recursive=True)}
    others = ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")
    return {process for process, name in found.items() if name.startswith("ray::") and not name.startswith(others)}


def memory_mb(processes: set[psutil.Process]) -> float:
    """What they and what they started hold for themselves; pages shared with others are counted once, in parts."""
    hosts = processes.union(*(process.children(recursive=True) for process in processes))
    return round(sum(process.memory_full_info().pss for process in hosts) / 2**20)


FINAL = ("focus", "teleport")
"""Verbs of ScienceWorld that may fail a task for good: an episode that is over costs its engine nothing."""


def chosen(shown: Observation | StepResult, number: int) -> str:
    """The same action both ways."""
    offered = [action for action in shown.admissible_actions if not action.startswith(FINAL)]
    return offered[number * 7 % len(offered)]


def over(shown: Observation | StepResult) -> bool:
    """Whether the episode has ended: what comes after is no step of an engine."""
    return isinstance(shown, StepResult) and shown.done


async def walk_pool(
    env: str, tasks: Sequence[Task], settings: dict[str, Any], actors: int, steps: int
) -> tuple[dict, list[Said]]:
    started = perf_counter()
    pool = EnvPool(env, settings, PoolSettings(actors=actors, reset_timeout=600))
    sessions = await asyncio.gather(*(pool.open(task) for task in tasks))
    opened = perf_counter()

    async def walk(session: Any) -> Said:
        said: Said = [session.first]
        for number in range(steps):
            if not over(said[-1]):
                said.append(await session.step(chosen(said[-1], number)))
        return said

    said = await asyncio.gather(*(walk(session) for session in sessions))
    figures = _figures(started, opened, said)
    await asyncio.gather(*(session.close() for session in sessions))
    return figures, said


async def walk_alone(tasks: Sequence[Task], settings: dict[str, Any], steps: int) -> tuple[dict, list[Said]]:
    started = perf_counter()
    actors = [Alone.remote(settings) for _ in tasks]
    first = await asyncio.gather(*(actor.reset.remote(task) for actor, task in zip(actors, tasks, strict=True)))
    opened = perf_counter()

    async def walk(actor: Any, shown: Observation) -> Said:
        said: Said = [shown]
        for number in range(steps):
            if not over(said[-1]):
                said.append(await actor.step.remote(chosen(said[-1], number)))
        return said

    said = await asyncio.gather(*(walk(actor, shown) for actor, shown in zip(actors, first, strict=True)))
    figures = _figures(started, opened, said)
    return figures, said


def _figures(started: float, opened: float, said: Sequence[Said]) -> dict[str, float]:
    taken, hosts = perf_counter() - opened, workers()
    steps = sum(len(episode) - 1 for episode in said)
    return {
        "processes": len(hosts),
        "start_up_s": round(opened - started, 2),
        "steps_per_second": round(steps / taken, 1),
        "memory_mb": memory_mb(hosts),
    }


def compare_sizes(
    tasks: Sequence[Task], settings: dict[str, Any], sizes: Sequence[int], actors: int, steps: int
) -> dict[str, Any]:
    """Pool and lone actors at each number of environments; lone actors only where memory allows them."""
    found: dict[str, Any] = {}
    a_process = 0.0
    for size in sizes:
        played = [tasks[number % len(tasks)] for number in range(size)]
        with started_ray():
            pooled, said = asyncio.run(walk_pool(ENV, played, settings, actors, steps))
        found[str(size)] = {"pool": pooled, "actor an environment": None}
        free = psutil.virtual_memory().available / 2**20 - SPARE_GIB * 1024
        if a_process * size > free:
            found[str(size)]["left out"] = f"{size} actors of {a_process:.0f} MB do not fit into {free:.0f} MB"
            print(
                f"{size:4} environments  pool {pooled}\n                   lone {found[str(size)]['left out']}",
                flush=True,
            )
            continue
        with started_ray():
            lone, said_alone = asyncio.run(walk_alone(played, settings, steps))
        if said != said_alone:
            raise SystemExit(f"{size} environments: the pool and the lone actors say different things.")
        a_process = lone["memory_mb"] / size
        found[str(size)]["actor an environment"] = lone
        print(f"{size:4} environments  pool {pooled}\n                   lone {lone}", flush=True)
    return found


def compare_cores(env: str, tasks: Sequence[Task], settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """The pool on one core and on all: an actor a core, and the caller on the same cores."""
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, Any] = {}
    said: list[Said] = []
    try:
        for used in (cores[:1], cores):
            os.sched_setaffinity(0, used)
            with started_ray():
                figures, now = asyncio.run(walk_pool(env, tasks, settings, len(used), steps))
            if said and said != now:
                raise SystemExit(f"{len(used)} cores: the environments say different things than on one.")
            found[f"{len(used)} cores"], said = figures, now
    finally:
        os.sched_setaffinity(0, cores)
    first, last = (found[f"{number} cores"]["steps_per_second"] for number in (1, len(cores)))
    return {**found, "all cores against one": round(last / first, 2)}


class Plain:
    """An environment without its planner, counting steps; with `snapshots`, also with those of the engine."""

    def __init__(self, environment: Any, snapshots: bool) -> None:
        self._environment = environment
        self.steps = 0
        if snapshots:
            self.snapshot, self.restore = environment.snapshot, environment.restore

    def reset(self, task: Task) -> Observation:
        return self._environment.reset(task)

    def step(self, action: str) -> StepResult:
        self.steps += 1
        return self._environment.step(action)

    def close(self) -> None:
        self._environment.close()


def cpu() -> float:
    """Seconds of processor time of this process and those it has started (Java), which other work does not lengthen."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for process in processes for times in (process.cpu_times(),))


def probe(environment: Environment, task: Task, steps: Sequence[Step]) -> list[bool]:
    """Try `ALTERNATIVES` actions at every state of a trajectory; whether each is admissible."""
    environment.reset(task)
    judged = []
    for step in steps:
        state = ReplayedState(environment, task, step)
        offered = step.context.admissible_actions
        judged += [state.judge(offered[at % len(offered)]).admissible for at in range(ALTERNATIVES)]
        state.leave()
        environment.step(step.action)
    return judged


def compare_probing(env: str, tasks: Sequence[Task], settings: dict[str, Any]) -> dict[str, Any]:
    """Expert and probing cost a trajectory, and what snapshots save."""
    spec = get_env(env)
    environment, expert = spec.make(**settings), next(iter(spec.experts.values()))()
    started = cpu()
    trajectories = [(task, play(environment, expert, task, source="expert")) for task in tasks]
    expert_s = (cpu() - started) / len(tasks)
    found: dict[str, Any] = {
        "trajectories": len(tasks),
        "mean_steps": round(statistics.mean(len(steps) for _, steps in trajectories), 1),
        "alternatives": ALTERNATIVES,
        "expert_cpu_ms_a_trajectory": round(1000 * expert_s, 2),
    }
    judged = {}
    for name, snapshots in (("snapshots", True), ("replay", False)):
        plain = Plain(spec.make(**settings), snapshots)
        started = cpu()
        judged[name] = [probe(plain, task, steps) for task, steps in trajectories]
        seconds = cpu() - started
        found[name] = {
            "engine_steps_a_trajectory": round(plain.steps / len(tasks), 1),
            "cpu_ms_a_trajectory": round(1000 * seconds / len(tasks), 2),
        }
    if judged["snapshots"] != judged["replay"]:
        raise SystemExit("probing by snapshots and by replay judge differently.")
    if isinstance(environment, PlanningEnvironment):
        started = cpu()
        for task, steps in trajectories:
            probe(environment, task, steps)
        found["with_margins_cpu_ms_a_trajectory"] = round(1000 * (cpu() - started) / len(tasks), 2)
    return found


async def compare_lock_step(tasks: Sequence[Task], settings: dict[str, Any], actors: int) -> dict[str, Any]:
    """The expert's episodes, a drawn time slept before each action in place of generation."""
    spec = get_env(ENV)
    environment, expert = spec.make(**settings), next(iter(spec.experts.values()))()
    actions = [[step.action for step in play(environment, expert, task, source="x")] for task in tasks]
    rng = random.Random(0)
    waits = [[LATENCY[0] * rng.lognormvariate(0, LATENCY[1]) for _ in played] for played in actions]
    pool = EnvPool(ENV, settings, PoolSettings(actors=actors))

    async def take(session: Any, action: str, seconds: float) -> StepResult:
        await asyncio.sleep(seconds)
        return await session.step(action)

    async def free(number: int, session: Any) -> list[StepResult]:
        return [await take(session, *turn) for turn in zip(actions[number], waits[number], strict=True)]

    generating = sum(map(sum, waits))
    found: dict[str, Any] = {
        "episodes": len(tasks),
        "turns": sum(map(len, actions)),
        # What a loop of fixed width generates, in which episodes that are over wait along for the longest.
        "turns_of_a_fixed_width_loop": len(tasks) * max(map(len, actions)),
        "generating_s": round(generating, 2),
    }
    results: dict[str, list[list[StepResult]]] = {}
    for name in ("pool", "lock-step"):
        sessions = await asyncio.gather(*(pool.open(task) for task in tasks))
        started = perf_counter()
        if name == "pool":
            results[name] = await asyncio.gather(*(free(number, session) for number, session in enumerate(sessions)))
        else:
            results[name] = [[] for _ in tasks]
            for turn in range(max(map(len, actions))):
                going = [number for number, played in enumerate(actions) if turn < len(played)]
                # All replies first, then all environments: the next batch waits for the slowest of both.
                await asyncio.gather(*(asyncio.sleep(waits[number][turn]) for number in going))
                answers = await asyncio.gather(*(sessions[number].step(actions[number][turn]) for number in going))
                for number, answer in zip(going, answers, strict=True):
                    results[name][number].append(answer)
        wall = perf_counter() - started
        found[name] = {"wall_s": round(wall, 2), "slots_idle_share": round(1 - generating / (wall * len(tasks)), 3)}
        await asyncio.gather(*(session.close() for session in sessions))
    if results["pool"] != results["lock-step"]:
        raise SystemExit("episodes in the pool and in lock-step differ.")
    found["lock-step against pool"] = round(found["lock-step"]["wall_s"] / found["pool"]["wall_s"], 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--environments", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        make_games(GamesSettings(counts={"train": 32}, size="small", seed=1, workers=0), Path(folder))
        settings = {"data": folder}
        tasks = get_env(ENV).tasks("train", **settings)
        if "probing" in options.parts:
            shop = get_env("webshop").tasks("train")[: len(tasks)]
            short = {"tasks": ["lifespan-longest-lived", "find-plant"]}
            listed = get_env("scienceworld").tasks("train", **short)
            science = [*listed[:2], *listed[-2:]]
            results["probing"] = {
                ENV: compare_probing(ENV, tasks, settings),
                "webshop": compare_probing("webshop", shop, {}),
                "scienceworld": compare_probing("scienceworld", science, short),
            }
        if "lock_step" in options.parts:
            with started_ray():
                results["lock_step"] = asyncio.run(compare_lock_step(tasks, settings, options.actors))
        if "sizes" in options.parts:
            results["sizes"] = compare_sizes(tasks, settings, options.environments, options.actors, options.steps)
        if "cores" in options.parts:
            two_rooms = {"tasks": ["find-plant", "boil"]}
            listed = get_env("scienceworld").tasks("train", **two_rooms)
            results["cores"] = {
                ENV: compare_cores(ENV, [*tasks, *tasks], {**settings, "max_steps": 1000}, 4 * options.steps),
                "scienceworld": compare_cores("scienceworld", [*listed[:8], *listed[-8:]], two_rooms, options.steps),
            }
    machine = {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0]}
    for part in options.parts:
        results[part] = {**results[part], "machine": machine, "actors": options.actors}
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
