"""Make rows for verl's SFT trainer, or for TRL's `DPOTrainer`: prompts and the replies to imitate or to prefer.

Self-reflection is that of arXiv 2510.08558.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from verl_act.data_prep.sft.rows import Row, choice, imitation, preference, reflection, rejection
from verl_act.engine import load_tokenizer
from verl_act.errors import DataError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.progress import phase
from verl_act.prompts import Message
from verl_act.prompts.plain_text import as_plain_text, continued, reply_prefix
from verl_act.prompts.rendering import render, require_prompts, require_usable
from verl_act.run_folder import DPO_ROWS, SFT_ROWS
from verl_act.schema import (
    DPO,
    SFT,
    read_alternatives,
    read_pairs,
    read_reflections,
    read_steps,
    steps_to_learn,
    write_rows,
)
from verl_act.settings.data import SftSettings


@writes_folder("make_sft")
def make_sft(settings: SftSettings, out: str | PathLike[str]) -> Manifest:
    """Write `out/sft.parquet` (schema SFT, the columns that verl's `MultiTurnSFTDataset` reads), or `out/dpo.parquet`
    (schema DPO), and its manifest.

    The model gives the tokenizer, whose control tokens are removed from the text. Rows of more than `max_length`
    tokens, encoded with `chat_template_kwargs`, are dropped and counted: verl's SFT trainer stops at the first such
    row. Rows are shuffled with the seed; the trainer itself uses a fixed seed, so only this makes two runs differ.

    Raises `DataError` if there are no rows, or the files do not belong together.
    """
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    kwargs, max_length = settings.chat_template_kwargs, settings.max_length
    require_usable(tokenizer, kwargs)
    require_prompts(tokenizer, settings.make_template(), kwargs)
    counts: Counter[str] = Counter()
    rows = list(_rows(settings, counts))
    if not rows:
        raise DataError(
            f"{', '.join(map(str, settings.inputs()))}: no rows of kind {settings.kind} can be made of these."
        )
    for row in phase("cleaning rows", total := len(rows), "row", rows):
        _clean(row, tokenizer)
    if max_length is not None:
        counted = phase("counting tokens", total, "row", rows)
        rows = [row for row in counted if _tokens(row, tokenizer, kwargs) <= max_length]
        if not rows:
            raise DataError(
                f"none of {total} rows has at most {max_length} tokens. Raise --max-length (in recipes max_model_len)."
            )
    random.Random(settings.seed).shuffle(rows)
    counts.update({"rows": len(rows), "too_long": total - len(rows)})
    counts.update(row["source"] for row in rows if "source" in row)
    manifest = make_manifest(
        "make_sft", settings=settings.recorded(), inputs=settings.inputs(), counts=counts, seed=settings.seed
    )
    with atomic_folder(out) as folder:
        name, schema = (DPO_ROWS, DPO) if settings.kind == "dpo" else (SFT_ROWS, SFT)
        write_rows(folder / name, rows, schema)
        write_manifest(folder, manifest)
    return manifest


def _rows(settings: SftSettings, counts: Counter[str]) -> Iterator[Row]:
    template = settings.make_template()
    if settings.kind == "choice":
        yield from choice(read_pairs(settings.pairs), template, settings.seed)
    elif settings.kind == "dpo":
        yield from preference(read_pairs(settings.pairs), template)
    else:
        steps = {step.state_id: step for step in read_steps(settings.trajectories)}
        learnable = steps_to_learn(steps.values())
        counts["states_expert_inadmissible"] = len(steps) - len(learnable)
        if settings.kind == "rejection":
            yield from rejection(learnable, read_alternatives(settings.alternatives), template)
        else:
            yield from imitation(learnable, template)
            yield from reflection(learnable, read_reflections(settings.reflections, steps), template)


def check_settings(settings: SftSettings) -> None:
    """Raise `ConfigError` for an invalid setting."""
    settings.make_template()


def _replies(row: Row) -> list[list[Message]]:
    """The conversations of a row: prompt and reply."""
    if "messages" in row:
        return [row["messages"]]
    return [[*row["prompt"], *row[reply]] for reply in ("chosen", "rejected")]


def _clean(row: Row, tokenizer: Any) -> None:
    """Remove the tokenizer's control tokens from the text of the row."""
    for name in ("messages", "prompt", "chosen", "rejected"):
        if name in row:
            row[name] = as_plain_text(row[name], tokenizer)


def _tokens(row: Row, tokenizer: Any, chat_template_kwargs: Mapping[str, Any]) -> int:
    """The number of tokens of the row's longest conversation, as the trainers encode it."""
    texts = (prompt_and_reply(messages, tokenizer, chat_template_kwargs) for messages in _replies(row))
    return max(len(tokenizer.encode("".join(text), add_special_tokens=False)) + 1 for text in texts)  # end of the reply


def prompt_and_reply(
    messages: Sequence[Message], tokenizer: Any, chat_template_kwargs: Mapping[str, Any]
) -> tuple[str, str]:
    """The text of a conversation up to its last reply, and that reply as the model writes it."""
    prompt = render(tokenizer, messages[:-1], add_generation_prompt=True, tokenize=False, **chat_template_kwargs)
    return prompt, continued(messages[-1]["content"], reply_prefix(tokenizer, chat_template_kwargs))
