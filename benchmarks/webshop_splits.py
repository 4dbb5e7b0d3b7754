"""How many held-out goals of WebShop are for a product that has train goals too, by both values of `split_by`.

    python benchmarks/webshop_splits.py [--data WEBSHOP_FILES]

Without `--data`, of the embedded catalogue; only that is written to `results/webshop_splits.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.goals import SPLIT_BY, SPLITS, list_goals, split_goals

RESULT = Path(__file__).parent / "results" / "webshop_splits.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    data = parser.parse_args().data
    catalogue = load_catalogue(data)
    goals = list_goals(catalogue)
    result = {}
    for split_by in SPLIT_BY:
        rows = {
            split: [goals[index].row for index in split_goals(catalogue, "human", split, split_by)] for split in SPLITS
        }
        trained = set(rows["train"])
        result[split_by] = {
            "goals": {split: len(rows[split]) for split in SPLITS},
            "products": {split: len(set(rows[split])) for split in SPLITS},
            "share_of_goals_with_a_train_product": {
                split: round(sum(row in trained for row in rows[split]) / len(rows[split]), 4)
                for split in ("dev", "test")
            },
        }
    print(json.dumps(result, indent=2))
    if data is None:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
