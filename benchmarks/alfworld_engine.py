"""Our ALFWorld engine against the stock one: the same games, the same random walks, in one process.

    python benchmarks/alfworld_engine.py [--games 12] [--steps 30]

Transcripts must be identical, or it fails. Prints a table and writes `results/alfworld_engine.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import fast_downward
import fast_downward.interface
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs import PddlEnv

from verl_act.envs.alfworld.engine import AlfworldEngine
from verl_act.envs.alfworld.game import compile_game, read_game
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.alfworld.planner_library import load_library
from verl_act.settings.data import GamesSettings

RESULT = Path(__file__).parent / "results" / "alfworld_engine.json"

Transcript = list[tuple[str, tuple[str, ...], bool]]


@dataclass(slots=True)
class Times:
    """Seconds of single calls."""

    load: list[float] = field(default_factory=list)
    reset: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "load_ms": round(1000 * statistics.mean(self.load), 2),
            "reset_ms": round(1000 * statistics.mean(self.reset), 3),
            "step_median_ms": round(1000 * statistics.median(self.step), 4),
            "steps_per_second": round(len(self.step) / sum(self.step), 1),
        }


def timed(kept: list[float], call: Callable[[], Any]) -> Any:
    """The result of `call`, its seconds appended to `kept`."""
    started = perf_counter()
    result = call()
    kept.append(perf_counter() - started)
    return result


def walk_stock(stock: AlfredDemangler, path: Path, steps: int, times: Times) -> tuple[list[str], Transcript]:
    """A random walk on the stock engine; its commands and all it said."""
    timed(times.load, lambda: stock.load(str(path)))
    state = timed(times.reset, stock.reset)
    rng, commands = random.Random(path.parent.name), []
    transcript = [(state["feedback"], tuple(state["admissible_commands"]), state["won"])]
    for _ in range(steps):
        commands.append(rng.choice(state["admissible_commands"]))
        state, _, _ = timed(times.step, lambda: stock.step(commands[-1]))
        transcript.append((state["feedback"], tuple(state["admissible_commands"]), state["won"]))
    return commands, transcript


def walk_ours(engine: AlfworldEngine, path: Path, commands: list[str], times: Times) -> Transcript:
    """The same walk on ours."""
    timed(times.load, lambda: engine.load(read_game(path)))
    transcript: Transcript = [timed(times.reset, engine.reset)]
    transcript += [timed(times.step, partial(engine.step, command)) for command in commands]
    return transcript


def compare(games: list[Path], steps: int) -> dict[str, Any]:
    """Times of both engines on `games`; `again` is our second walk, as when a group plays one task several times."""
    stock = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)
    engine, times = AlfworldEngine(), {"stock": Times(), "ours": Times(), "ours, again": Times()}
    walks = [walk_stock(stock, path, steps, times["stock"]) for path in games]
    compile_game.cache_clear()  # the games were verified in this process
    for kind in ("ours", "ours, again"):
        for path, (commands, transcript) in zip(games, walks, strict=True):
            if walk_ours(engine, path, commands, times[kind]) != transcript:
                raise SystemExit(f"{path}: the transcripts differ.")
    figures = {kind: found.figures() for kind, found in times.items()}
    base = figures["stock"]["steps_per_second"]
    speedup = {kind: round(found["steps_per_second"] / base, 1) for kind, found in figures.items()}
    return {"games": len(games), "steps": sum(map(len, (w[0] for w in walks))), "engines": figures, "speedup": speedup}


def planner_copies(rounds: int = 10) -> dict[str, float]:
    """One more engine: milliseconds to load its planner, and megabytes that it copies; stock and ours in turns."""
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    whole = fast_downward.interface.DOWNWARD_LIB_PATH
    for _ in range(rounds):
        fast_downward.interface.DOWNWARD_LIB_PATH = whole
        timed(seconds["stock"], fast_downward.load_lib)
        timed(seconds["ours"], load_library)
    copied = {"stock": os.path.getsize(whole), "ours": os.path.getsize(fast_downward.interface.DOWNWARD_LIB_PATH)}
    return {
        **{f"{kind}_ms": round(1000 * statistics.median(found), 2) for kind, found in seconds.items()},
        **{f"{kind}_mb": round(size / 1e6, 1) for kind, size in copied.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--games", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    planner = planner_copies()  # before an engine has put another library in its place
    with tempfile.TemporaryDirectory() as folder:
        for size in ("small", "full"):
            made = Path(folder) / size
            make_games(GamesSettings(counts={"train": options.games}, size=size, seed=1, workers=0), made)
            results[size] = compare(sorted(made.rglob("game.tw-pddl")), options.steps)
    print(f"{'rooms':6} {'engine':12} {'load ms':>9} {'reset ms':>9} {'steps/s':>9} {'speed-up':>9}")
    for size, result in results.items():
        for kind, found in result["engines"].items():
            times = f"{found['load_ms']:9.1f} {found['reset_ms']:9.2f} {found['steps_per_second']:9.0f}"
            print(f"{size:6} {kind:12} {times} {result['speedup'][kind]:8.0f}x")
    print("Transcripts are identical.")
    print(f"One more engine: {planner}")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_average": os.getloadavg()[0]}
    tools = {name: version(name) for name in ("alfworld", "textworld")}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"machine": machine, "tools": tools, "planner": planner, "sizes": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
