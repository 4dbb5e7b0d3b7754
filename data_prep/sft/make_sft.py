"""Make rows for verl's SFT trainer: the action prompt of an expert state, and the reply to imitate.

Imitation learning uses the expert's actions. Self-reflection (arXiv 2510.08558) adds a row for every state with a
reflection; its reply has the reflection before the action.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from verl_act.data_prep.sft.rows import imitation, reflection
from verl_act.engine import load_tokenizer
from verl_act.errors import DataError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.prompts import Message
from verl_act.prompts.plain_text import as_plain_text, continued, reply_prefix
from verl_act.prompts.rendering import render, require_prompts, require_usable
from verl_act.schema import REFLECTION, SFT, Step, read_steps, read_table, steps_to_learn, write_rows
from verl_act.settings.data import SftSettings

FILE_NAME = "sft.parquet"


@writes_folder("make_sft")
def make_sft(settings: SftSettings, out: str | PathLike[str]) -> Manifest:
    """Write `out/sft.parquet` (schema SFT, the columns that verl's `MultiTurnSFTDataset` reads) and its manifest.

    The model gives the tokenizer, whose control tokens are removed from the text. Rows of more than `max_length`
    tokens, encoded with `chat_template_kwargs`, are dropped and counted: verl's SFT trainer stops at the first such
    row. Rows are shuffled with the seed; the trainer itself uses a fixed seed, so only this makes two runs differ.

    Raises `DataError` if there are no rows, or a reflection belongs to a state that is not in the trajectories.
    """
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    prompts, kwargs, max_length = settings.make_template(), settings.chat_template_kwargs, settings.max_length
    require_usable(tokenizer, kwargs)
    require_prompts(tokenizer, prompts, kwargs)
    steps = {step.state_id: step for step in read_steps(settings.trajectories)}
    expert_steps = steps_to_learn(steps.values())
    texts = _read_reflections(settings.reflections, steps)
    rows = [*imitation(expert_steps, prompts), *reflection(expert_steps, texts, prompts)]
    if not rows:
        raise DataError(
            f"{', '.join(map(str, settings.trajectories))}: no expert states to imitate; collect trajectories first."
        )
    for row in rows:
        row["messages"] = as_plain_text(row["messages"], tokenizer)
    total = len(rows)
    if max_length is not None:
        rows = [row for row in rows if _tokens(row["messages"], tokenizer, kwargs) <= max_length]
        if not rows:
            raise DataError(f"none of {total} rows has at most {max_length} tokens. Raise --max-length.")
    random.Random(settings.seed).shuffle(rows)
    with atomic_folder(out) as folder:
        write_rows(folder / FILE_NAME, rows, SFT)
        manifest = make_manifest(
            "make_sft",
            settings=settings.recorded(),
            inputs=settings.inputs(),
            counts={
                "rows": len(rows),
                "too_long": total - len(rows),
                "states_expert_inadmissible": len(steps) - len(expert_steps),
                **Counter(row["source"] for row in rows),
            },
            seed=settings.seed,
        )
        write_manifest(folder, manifest)
    return manifest


def check_settings(settings: SftSettings) -> None:
    """Raise `ConfigError` for an invalid setting."""
    settings.make_template()


def _tokens(messages: Sequence[Message], tokenizer: Any, chat_template_kwargs: Mapping[str, Any]) -> int:
    """The number of tokens of a row, as `verl_act.data.sft_dataset` encodes it."""
    prompt = render(tokenizer, messages[:-1], add_generation_prompt=True, tokenize=False, **chat_template_kwargs)
    reply = continued(messages[-1]["content"], reply_prefix(tokenizer, chat_template_kwargs))
    return len(tokenizer.encode(prompt + reply, add_special_tokens=False)) + 1  # end of the reply


def _read_reflections(paths: Sequence[str | PathLike[str]], steps: Mapping[str, Step]) -> dict[str, str]:
    """State id -> reflection. Raises `DataError` for a state that is not in `steps`."""
    reflections: dict[str, str] = {}
    for path in paths:
        for row in read_table(path, REFLECTION).to_pylist():
            if row["state_id"] not in steps:
                raise DataError(
                    f"{path}: state {row['state_id']} is not in the trajectories; pass those that `reflect` has used."
                )
            reflections[row["state_id"]] = row["reflection"]
    return reflections
