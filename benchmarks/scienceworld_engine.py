"""Our ScienceWorld environment against the package's own class: the same tasks, the same random walks, in one run.

    python benchmarks/scienceworld_engine.py [--tasks 6] [--steps 30] [--together 8]

Each walks twice and the second time counts, when Java has compiled what it runs. Observations and scores are compared;
the package's differ from ours, and from its own in another run, where its order of things follows memory addresses.
Prints a table and writes `results/scienceworld_engine.json` beside this file. CPU is that of Python and Java together,
and steadier than the clock where other work runs beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
from scienceworld import ScienceWorldEnv

from verl_act.envs.base import Task
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.envs.scienceworld.server import engine
from verl_act.envs.scienceworld.variations import VARIATIONS, list_tasks, name_and_variation

RESULT = Path(__file__).parent / "results" / "scienceworld_engine.json"
_NAMES = ("boil", "power-component", "find-animal", "grow-plant", "chemistry-mix", "lifespan-longest-lived")

Transcript = list[tuple[str, int]]
"""Observation and score of each step, the reset first."""


@dataclass(slots=True)
class Times:
    """Seconds of single calls, of the start of Java, and of the CPU over the counted walks."""

    start: float = 0.0
    reset: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    cpu: float = 0.0
    memory: float = 0.0
    """Of the virtual machine, in MB, at the end."""

    def forget(self, java: int) -> None:
        """Count from here: what came before was to warm up."""
        self.reset.clear()
        self.step.clear()
        self.cpu = -cpu_of(java)

    def end(self, java: int) -> None:
        """The last walk is done."""
        self.cpu += cpu_of(java)
        self.memory = psutil.Process(java).memory_info().rss / 2**20

    def figures(self) -> dict[str, float]:
        return {
            "start_s": round(self.start, 2),
            "reset_median_ms": round(1000 * statistics.median(self.reset), 1),
            "step_median_ms": round(1000 * statistics.median(self.step), 1),
            "steps_per_second": round(len(self.step) / sum(self.step), 1),
            "cpu_ms_per_step": round(1000 * self.cpu / len(self.step), 1),
            "memory_mb": round(self.memory),
        }


def cpu_of(java: int) -> float:
    """CPU seconds of this process and a virtual machine so far."""
    used = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), java)]
    return sum(one.user + one.system for one in used)


def draw_walks(tasks: Sequence[Task], steps: int) -> dict[Task, list[str]]:
    """A random walk a task over the actions that ours lists; this also warms the engine up."""
    environment = ScienceWorldEnvironment(max_steps=steps + 1)
    walks: dict[Task, list[str]] = {}
    for task in tasks:
        rng, listed = random.Random(task.task_id), environment.reset(task).admissible_actions
        for _ in range(steps):
            # A wrong focus ends an episode, and teleporting keeps walks out of the rooms that are full of things.
            kinds = [action for action in listed if not action.startswith(("focus", "teleport"))]
            walks.setdefault(task, []).append(rng.choice(kinds))
            result = environment.step(walks[task][-1])
            listed = result.admissible_actions
            if result.done:
                break
    return walks


def walk_stock(walks: dict[Task, list[str]], times: Times) -> dict[Task, Transcript]:
    """The walks on the package's class as its documentation uses it: one instance, which loads task after task."""
    started = perf_counter()
    stock = ScienceWorldEnv(envStepLimit=1000)
    times.start = perf_counter() - started
    java = stock._gateway.java_process.pid
    seen: dict[Task, Transcript] = {}
    for _ in range(2):
        times.forget(java)
        for task, actions in walks.items():
            started = perf_counter()
            stock.load(*name_and_variation(task), "easy")
            observation, info = stock.reset()
            times.reset.append(perf_counter() - started)
            seen[task] = [(observation.strip(), info["score"])]
            for action in actions:
                started = perf_counter()
                observation, _, _, info = stock.step(action)
                times.step.append(perf_counter() - started)
                seen[task].append((observation.strip(), info["score"]))
    times.end(java)
    stock.close()
    return seen


def walk_ours(walks: dict[Task, list[str]], times: Times, together: int) -> dict[Task, Transcript]:
    """The walks on ours, `together` episodes at a time in turns, on one new engine; the last copy's transcript."""
    engine().close()
    started = perf_counter()
    java = engine().pid
    times.start = perf_counter() - started
    environments = [ScienceWorldEnvironment(max_steps=1000) for _ in range(together)]
    seen: dict[Task, Transcript] = {}
    for _ in range(2):
        times.forget(java)
        for task, actions in walks.items():
            for environment in environments:
                started = perf_counter()
                first = environment.reset(task)
                times.reset.append(perf_counter() - started)
                seen[task] = [(first.observation, environment.score())]
            for action in actions:
                for environment in environments:
                    started = perf_counter()
                    result = environment.step(action)
                    times.step.append(perf_counter() - started)
                seen[task].append((result.observation, environment.score()))
    times.end(java)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=len(_NAMES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--together", type=int, default=8)
    options = parser.parse_args()
    names = [*_NAMES, *(name for name in VARIATIONS if name not in _NAMES)][: options.tasks]
    tasks = [next(task for task in list_tasks("train") if task.task_type == name) for name in names]
    walks = draw_walks(tasks, options.steps)
    times = {kind: Times() for kind in ("stock", "ours", f"ours, {options.together} at once")}
    stock = walk_stock(walks, times["stock"])
    ours = walk_ours(walks, times["ours"], 1)
    if walk_ours(walks, times[f"ours, {options.together} at once"], options.together) != ours:
        raise SystemExit("Episodes that are played at once differ from the same ones alone.")
    pairs = [pair for task in tasks for pair in zip(stock[task], ours[task], strict=True)]
    same = sum(one == other for one, other in pairs)
    figures: dict[str, dict[str, float]] = {kind: found.figures() for kind, found in times.items()}
    base = figures["stock"]["steps_per_second"]
    for found in figures.values():
        found["speedup"] = round(found["steps_per_second"] / base, 2)
    columns = list(figures["stock"])
    print(f"{'':16}", *(f"{name:>16}" for name in columns))
    for kind, found in figures.items():
        print(f"{kind:16}", *(f"{found[name]:16}" for name in columns))
    print(f"Observation and score are the package's in {same} of {len(pairs)} steps.")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_average": os.getloadavg()[0]}
    result: dict[str, Any] = {
        "machine": machine,
        "tools": {name: version(name) for name in ("scienceworld", "py4j")},
        "tasks": len(tasks),
        "steps": sum(map(len, walks.values())),
        "same_as_stock": [same, len(pairs)],
        "environments": figures,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
