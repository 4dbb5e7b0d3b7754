"""Alternatives sampled over one Ray node and over two, each node with a core of its own.

    python benchmarks/cluster_nodes.py [--games 400] [--n 4]

Ray's own utilities start the nodes on this machine; the node's processes stay on its core. Expert states of generated
ALFWorld games are sampled with the embedded model, one engine a node. Engines start within the measured time; they take
longer side by side, since they share disk and memory. Prints seconds and their ratio, checks that both files hold the
same states, and writes `benchmarks/results/cluster_nodes.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.registry import get_env
from verl_act.schema import ALTERNATIVES, read_steps, read_table
from verl_act.settings.data import ExpertSettings, GamesSettings

RESULTS = Path(__file__).parent / "results" / "cluster_nodes.json"
PROGRESS = re.compile(r"\| +(\d+)/\d+ \[")


def start(cores: list[int]) -> Cluster:
    """A node for each core; what a node starts inherits the core."""
    everywhere = os.sched_getaffinity(0)
    nodes = Cluster()
    try:
        for core in cores:
            os.sched_setaffinity(0, {core})
            nodes.add_node(num_cpus=1, include_dashboard=False)
    finally:
        os.sched_setaffinity(0, everywhere)
    nodes.wait_for_nodes()
    return nodes


def sample(out: Path, trajectories: Path, cores: list[int], n: int) -> dict[str, float]:
    """Sample on a node per core; seconds to the first shard of states, and to the end."""
    nodes = start(cores)
    words = [sys.executable, "-m", "verl_act", "data", "alternatives", "--out", str(out), "--n", str(n)]
    words += ["--trajectories", str(trajectories), "--model", str(get_env("alfworld").models["embedded"])]
    words += ["--template", "compact", "--max-tokens", "16", "--max-model-len", "1024"]
    words += ["--workers", str(len(cores)), "--gpus-per-worker", "0"]
    started, first = time.monotonic(), 0.0
    try:
        with subprocess.Popen(
            words, env={**os.environ, "RAY_ADDRESS": nodes.address}, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:  # a carriage return ends a line too
                said.append(line)
                found = PROGRESS.search(line)
                if found and int(found[1]) and not first:
                    first = time.monotonic() - started
        seconds = time.monotonic() - started
        if process.returncode:
            sys.exit("".join(said[-20:]))
    finally:
        nodes.shutdown()
    return {"seconds": round(seconds, 1), "seconds_to_first_states": round(first, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=400)
    parser.add_argument("--n", type=int, default=4)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this machine has one core; the comparison needs two")
    os.environ["OMP_NUM_THREADS"] = "1"  # before Ray starts: its nodes pass it on
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_games(GamesSettings(counts={"train": arguments.games}, size="small", seed=3, workers=0), folder / "games")
        data = {"data": str(folder / "games")}
        collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=data, workers=0), folder / "expert")
        trajectories = folder / "expert" / "trajectories.parquet"
        states = [step.state_id for step in read_steps([trajectories])]
        result: dict = {"states": len(states), "n": arguments.n}
        for count in (1, 2):
            out = folder / f"nodes-{count}"
            result[f"{count} nodes"] = taken = sample(out, trajectories, cores[:count], arguments.n)
            rows = read_table(out / "alternatives.parquet", ALTERNATIVES).to_pylist()
            assert [row["state_id"] for row in rows] == states
            print(
                f"{count} node(s): {taken['seconds']:.1f} s, first states after {taken['seconds_to_first_states']:.1f}"
            )
    one, two = result["1 nodes"], result["2 nodes"]
    after = [taken["seconds"] - taken["seconds_to_first_states"] for taken in (one, two)]
    result["speedup"] = round(one["seconds"] / two["seconds"], 2)
    result["speedup_after_the_first_states"] = round(after[0] / after[1], 2)
    print(
        f"two nodes are {result['speedup']} times as fast, {result['speedup_after_the_first_states']} after the start"
    )
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
