"""What pairs cost as data: ActDataset and the choice reward against verl's RLHFDataset and a constant reward.

    python benchmarks/pair_dataset.py [--rows 10000]

Both sides deliver the same prompts, rendered beforehand for verl's dataset, through a data loader with verl's collate
function, and score one reply a row, in one process and by turns. Prints a table and writes
`benchmarks/results/pair_dataset.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from verl_act.data.dataset import ActDataset
from verl_act.reward_fns.route import compute_score
from verl_act.schema import PAIR, Context, Pair, Turn, pair_id, write_rows

RESULTS = Path(__file__).parent / "results" / "pair_dataset.json"
ROUNDS = 5
RECEPTACLES = [f"{name} {number}" for name in ("cabinet", "drawer", "shelf", "desk") for number in range(1, 6)]


def make_pair(number: int) -> Pair:
    """A state of ALFWorld's size: 20 admissible actions, and 0 to 11 turns of history."""
    actions = tuple(f"go to {name}" for name in RECEPTACLES)
    history = tuple(
        Turn(f"On the {name}, you see a mug {number}, and a pen 2.", f"go to {name}") for name in RECEPTACLES
    )
    context = Context(
        goal=f"put a clean mug {number} in desk 1",
        history=history[: number % 12],
        observation=f"You arrive at cabinet 1. On the cabinet 1, you see a mug {number}.",
        admissible_actions=actions,
    )
    expert, alternative, state = actions[number % 20], actions[(number + 7) % 20], f"game-{number}#1"
    return Pair(
        context=context,
        pair_id=pair_id(state, expert, alternative),
        env="alfworld",
        split="train",
        task_id=f"game-{number}",
        task_type="pick_clean_then_place_in_recep",
        state_id=state,
        step=number % 12,
        expert_action=expert,
        alternative_action=alternative,
        alternative_source="policy",
        alternative_admissible=True,
        model="model",
        sampling="{}",
        margin=1,
        inferable=True,
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def rendered(dataset: ActDataset, path: Path) -> None:
    """The rows of `dataset` as a file of verl's own layout."""
    keys = ("data_source", "reward_model", "extra_info")
    rows = [
        {"prompt": row["raw_prompt"], "ability": "agent", **{key: row[key] for key in keys}}
        for row in (dataset[number] for number in range(len(dataset)))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def seconds(dataset: Dataset, reward: Callable[..., Any]) -> float:
    """Seconds for one pass: load, collate, and score a reply for every row."""
    started = time.perf_counter()
    for batch in DataLoader(dataset, batch_size=64, collate_fn=collate_fn):
        rows = zip(batch["data_source"], batch["reward_model"], batch["extra_info"], strict=True)
        for source, truth, extra in rows:
            reply = f"<think>It is there.</think><action>{truth['ground_truth']}</action>"
            reward(source, reply, truth["ground_truth"], extra)
    return time.perf_counter() - started


def measuring_seconds(pairs: str, tokenizer: PreTrainedTokenizerFast) -> float:
    """Seconds to open the file where the limit is one that every prompt has to be tokenised for, and none exceeds."""
    by_words = OmegaConf.create({"max_prompt_length": 1024, "filter_overlong_prompts": True})
    started = time.perf_counter()
    ActDataset(pairs, tokenizer=tokenizer, config=by_words)
    return time.perf_counter() - started


def constant_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    config = OmegaConf.create({"max_prompt_length": 100_000, "filter_overlong_prompts": False})
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        pairs, prompts = Path(folder) / "pairs.parquet", Path(folder) / "prompts.parquet"
        write_rows(pairs, [make_pair(number).to_row() for number in range(rows)], PAIR)
        started = time.perf_counter()
        ours = ActDataset(str(pairs), tokenizer=tokenizer, config=config)
        opened = time.perf_counter() - started
        measured = measuring_seconds(str(pairs), tokenizer)
        rendered(ours, prompts)
        theirs = RLHFDataset(str(prompts), tokenizer=tokenizer, config=config)
        rounds = [(seconds(ours, compute_score), seconds(theirs, constant_reward)) for _ in range(ROUNDS)]
        sizes = {"pairs": pairs.stat().st_size, "prompts": prompts.stat().st_size}
    act, verl = (median(side) * 1000 / rows for side in zip(*rounds, strict=True))
    print(f"{rows:,} rows, batches of 64, median of {ROUNDS} rounds      seconds per 1,000 rows")
    print(f"ActDataset and choice reward             {act:>20.3f}")
    print(f"RLHFDataset and constant reward          {verl:>20.3f}")
    print(f"ratio                                    {act / verl:>20.2f}")
    print(f"measuring every prompt at opening        {measured * 1000 / rows:>20.3f}")
    print(f"opening the pair file took {opened:.2f} s; pairs {sizes['pairs']:,} B, prompts {sizes['prompts']:,} B")
    result = {"rows": rows, "act": act, "verl": verl, "ratio": act / verl, "open_seconds": opened, "bytes": sizes}
    result["measured_open_seconds"] = measured
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
