"""Why choice prompts list the admissible actions: how the initial model ranks the two actions of held-out pairs.

    python benchmarks/list_of_actions.py runs/quickstart

For each inferable pair of a finished chain, whether the recipe's initial model gives the expert's action a higher
probability than the alternative: asked to act with the whole list of admissible actions, asked to act with a list of
the two candidates alone, and asked to choose. Writes `benchmarks/results/list_of_actions.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_act.chain import load_recipe
from verl_act.prompts import Message
from verl_act.schema import Pair, read_pairs

RESULTS = Path(__file__).parent / "results"
BATCH = 50


def log_probabilities(model: torch.nn.Module, tokenizer, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Of each reply after its prompt, summed over its tokens."""
    texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.no_grad():
        logits = torch.log_softmax(model(**batch).logits[:, :-1], dim=-1)
    of_tokens = logits.gather(-1, batch.input_ids[:, 1:, None])[..., 0] * batch.attention_mask[:, 1:]
    starts = [len(tokenizer(prompt, add_special_tokens=False).input_ids) - 1 for prompt in prompts]
    return [row[start:].sum().item() for row, start in zip(of_tokens, starts, strict=True)]


def ranked_right(
    model: torch.nn.Module, tokenizer, pairs: Sequence[Pair], ask: Callable[[Pair, list[str]], list[Message]]
) -> Iterator[bool]:
    for start in tqdm(range(0, len(pairs), BATCH)):
        prompts, replies = [], []
        for place, pair in enumerate(pairs[start : start + BATCH], start):
            shown = [pair.expert_action, pair.alternative_action][:: 1 if place % 2 else -1]
            prompt = tokenizer.apply_chat_template(ask(pair, shown), add_generation_prompt=True, tokenize=False)
            prompts += [prompt, prompt]
            replies += [f"<action>{action}</action>" for action in (pair.expert_action, pair.alternative_action)]
        found = log_probabilities(model, tokenizer, prompts, replies)
        yield from (expert > other for expert, other in zip(found[::2], found[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", default="alfworld/quickstart")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    template = recipe.make_template()
    tokenizer = AutoTokenizer.from_pretrained(recipe.model_path)
    model = AutoModelForCausalLM.from_pretrained(recipe.model_path, dtype=torch.float32).eval()
    files = [arguments.run / "pairs" / split / "pairs.parquet" for split in recipe.valid_splits]
    pairs = [pair for pair in read_pairs(files) if pair.inferable and pair.alternative_admissible]
    asked = {
        "acting, all admissible actions listed": lambda pair, shown: template.action_messages(pair.context),
        "acting, the two candidates listed": lambda pair, shown: template.action_messages(
            replace(pair.context, admissible_actions=tuple(shown))
        ),
        "choosing": lambda pair, shown: template.choice_messages(pair.context, shown),
    }
    figures: dict[str, float] = {"pairs": len(pairs)}
    for name, ask in asked.items():
        right = list(ranked_right(model, tokenizer, pairs, ask))
        figures[name] = round(sum(right) / len(right), 4)
        print(f"{name:40} {figures[name]:.1%} of {len(right)}")
    (RESULTS / "list_of_actions.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
