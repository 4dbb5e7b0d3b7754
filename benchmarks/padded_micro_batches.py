"""The arithmetic of a training step on a CPU: rows of like length in a micro-batch, against rows as they come.

    python benchmarks/padded_micro_batches.py runs/quickstart
    python benchmarks/padded_micro_batches.py runs/official --recipe alfworld/official

Takes batches of 32 pairs of a finished run, each four times as in a GRPO step, and times forward and backward of the
recipe's model on them: in micro-batches of 32 rows in the batch's order, as verl cuts them without `use_dynamic_bsz`;
and with it, to several `ppo_max_token_len_per_gpu`, by verl and by our `upstream_gaps/cpu/padded_micro_batches.py`. All
ways in turn, batch by batch; seconds are medians. Writes `benchmarks/results/padded_micro_batches.json`, by
recipe.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import verl  # noqa: F401  (loads the plugin, which wraps the next import)
import verl.utils.seqlen_balancing as balancing
from tensordict import TensorDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_act.chain import load_recipe
from verl_act.manifest import process_versions
from verl_act.schema import Pair, read_pairs

RESULT = Path(__file__).parent / "results" / "padded_micro_batches.json"
PAIRS, REPLIES, ROWS = 32, 4, 32
LIMITS = (2048, 4096, 8192)

Parts = list[list[int]]
"""The rows of each micro-batch."""


def as_they_come(rows: Sequence[torch.Tensor]) -> Parts:
    return [list(range(start, start + ROWS)) for start in range(0, len(rows), ROWS)]


def by_tokens(limit: int, ours: bool) -> Callable[[Sequence[torch.Tensor]], Parts]:
    def parts(rows: Sequence[torch.Tensor]) -> Parts:
        batch = TensorDict({"input_ids": torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)}, len(rows))
        wrapper = balancing.get_seqlen_balanced_partitions
        try:
            if not ours:
                balancing.get_seqlen_balanced_partitions = wrapper.__wrapped__
            indices: Parts = balancing.rearrange_micro_batches(batch, limit)[1]
            return indices
        finally:
            balancing.get_seqlen_balanced_partitions = wrapper

    return parts


def train(model: torch.nn.Module, rows: Sequence[torch.Tensor], parts: Parts) -> None:
    model.zero_grad()
    for part in parts:
        taken = [rows[index] for index in part]
        ids = torch.nn.utils.rnn.pad_sequence(taken, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in taken], batch_first=True)
        log_probs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1], dim=-1)
        (log_probs.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum().backward()


def batches_of(run: Path, recipe: Any, count: int) -> list[list[torch.Tensor]]:
    template, tokenizer = recipe.make_template(), AutoTokenizer.from_pretrained(recipe.model_path)

    def row(pair: Pair) -> torch.Tensor:
        messages = template.choice_messages(pair.context, [pair.expert_action, pair.alternative_action])
        return torch.tensor(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    pairs = read_pairs([run / "pairs" / "train" / "pairs.parquet"])[: PAIRS * count]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [row(pairs[index]) for index in order]
    return [
        [row for row in rows[start : start + PAIRS] for _ in range(REPLIES)] for start in range(0, len(rows), PAIRS)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", default="alfworld/quickstart")
    parser.add_argument("--batches", type=int, default=8)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    model = AutoModelForCausalLM.from_pretrained(recipe.model_path, dtype=torch.float32, attn_implementation="sdpa")
    ways: dict[str, Callable[[Sequence[torch.Tensor]], Parts]] = {f"{ROWS} rows as they come": as_they_come}
    for limit in LIMITS:
        ways[f"{limit} tokens, verl's parts"] = by_tokens(limit, ours=False)
        ways[f"{limit} tokens, by length"] = by_tokens(limit, ours=True)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    padded = dict.fromkeys(ways, 0)
    batches = batches_of(arguments.run, recipe, arguments.batches)
    train(model, batches[0], as_they_come(batches[0]))  # the first call sets things up
    for batch in batches:
        for way, cut in ways.items():
            start = time.perf_counter()
            parts = cut(batch)
            train(model, batch, parts)
            seconds[way].append(time.perf_counter() - start)
            padded[way] += sum(len(part) * max(len(batch[index]) for index in part) for part in parts)
    tokens = sum(len(row) for batch in batches for row in batch)
    result: dict[str, Any] = {
        "tokens_per_batch": tokens // len(batches),
        "threads": torch.get_num_threads(),
        "ways": {},
    }
    first = f"{ROWS} rows as they come"
    for way, times in seconds.items():
        ratio = median(base / own for base, own in zip(seconds[first], times, strict=True))
        result["ways"][way] = {
            "seconds": round(median(times), 3),
            "times_as_fast": round(ratio, 2),
            "computed_per_token": round(padded[way] / tokens, 2),
        }
        print(f"{way:28} {median(times):6.2f} s  {ratio:5.2f} times as fast  {padded[way] / tokens:.2f} tokens a token")
    result["versions"] = dict(process_versions())
    others = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps({**others, arguments.recipe: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
