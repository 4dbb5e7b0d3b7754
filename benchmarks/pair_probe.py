"""How often shallow features tell the expert's action: the probe of `data audit` on the pairs of the quickstarts.

    python benchmarks/pair_probe.py runs/pair_probe [--envs alfworld webshop scienceworld]

Makes the data of each quickstart (games, expert, alternatives; finished stages are kept), builds its pairs in several
ways, trains the probe on the training pairs and asks it about the held-out ones. `seconds` are those of the probe.
Prints a line each and writes `benchmarks/results/pair_probe.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_act import __version__
from verl_act.chain import load_recipe
from verl_act.chain.plan import data_stages
from verl_act.chain.run_stages import run_stages
from verl_act.chain.stages import CommandStage
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.pairs.giveaways import matched
from verl_act.data_prep.pairs.probe import probe_pairs
from verl_act.run_folder import PAIRS, RunFolder
from verl_act.schema import Pair, read_pairs
from verl_act.settings.data import PairsSettings

RESULTS = Path(__file__).parent / "results" / "pair_probe.json"
ENVS = ("alfworld", "webshop", "scienceworld")
BUILDS: dict[str, dict[str, Any]] = {
    "any order": {"matched_first": False},
    "matched first": {"matched_first": True},
    "one a state, any order": {"matched_first": False, "max_alternatives_per_state": 1},
    "one a state, matched first": {"matched_first": True, "max_alternatives_per_state": 1},
    "random admissible, any order": {"matched_first": False, "source": "admissible"},
    "random admissible, matched first": {"matched_first": True, "source": "admissible"},
}
"""Settings of pairs, over those of the quickstarts."""


def built_pairs(stages: Sequence[PairsSettings], changes: Mapping[str, Any], folder: Path) -> list[list[Pair]]:
    """The pairs of each split, the training split first."""
    splits = []
    for index, settings in enumerate(stages):
        out = folder / str(index)
        build_pairs(settings.model_copy(update=dict(changes)), out)
        splits.append(read_pairs([out / PAIRS]))
    return splits


def measured(train: Sequence[Pair], held_out: Sequence[Pair]) -> dict[str, Any]:
    started = time.perf_counter()
    result = probe_pairs(train, held_out)
    seconds = time.perf_counter() - started
    if result is None:
        raise SystemExit(f"{len(train)} training pairs are too few for the probe.")
    return {
        "train_pairs": len(train),
        "held_out_pairs": len(held_out),
        "matched_pairs": sum(map(matched, held_out)),
        "hard_pairs": int(result.hard.sum()),
        "accuracy": round(result.accuracy, 4),
        "hard_accuracy": None if result.hard_accuracy is None else round(result.hard_accuracy, 4),
        "importance": {name: round(lost, 4) for name, lost in list(result.importance.items())[:4]},
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--envs", nargs="+", default=ENVS, choices=ENVS)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"version": __version__, "envs": {}}
    for env in arguments.envs:
        recipe, folder = load_recipe(f"{env}/quickstart"), RunFolder(arguments.out / env)
        planned = data_stages(recipe, folder)
        run_stages(planned, folder)
        commands = [stage.settings for stage in planned if isinstance(stage, CommandStage)]
        stages = [settings for settings in commands if isinstance(settings, PairsSettings)]
        for name, changes in BUILDS.items():
            train, *held_out = built_pairs(stages, changes, arguments.out / "pairs" / env / name.replace(" ", "-"))
            row = measured(train, [pair for split in held_out for pair in split])
            results["envs"].setdefault(env, {})[name] = row
            hard = "-" if row["hard_accuracy"] is None else f"{row['hard_accuracy']:.1%}"
            print(
                f"{env:12} {name:33} all {row['accuracy']:.1%} of {row['held_out_pairs']}, "
                f"hard {hard} of {row['hard_pairs']}",
                flush=True,
            )
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
