"""Gap: verl probes chat templates with conversations that some refuse: a system message, or two user messages in a row.

Gemma's and Mistral's templates require user and assistant to alternate, and some have no system message. With such a
model, verl's SFT dataset cannot open its files (it probes with two user messages), and its token builder cannot append
an observation to an episode (it renders one after a system and a user message).

Upstream change it waits for: a user message rendered after an assistant's in `extract_system_prompt_and_generation`
(verl/utils/tokenizer/chat_template.py) and `ContinuousTokenBuilder._tokenize_single_non_tool`
(verl/utils/tokenizer/continuous_token.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

_USER = {"role": "user", "content": "a question"}
_REPLY = {"role": "assistant", "content": "an answer"}


def system_prompt_and_generation(tokenizer: Any, **options: Any) -> tuple[list[int], list[int]]:
    """As verl's `extract_system_prompt_and_generation`: the token ids before a first user message, and those of
    the generation prompt. `options` are those of the chat template."""

    def tokens(*messages: dict[str, str], add_generation_prompt: bool = False) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False, **options
        )
        return ids

    first = tokens(_USER)
    message = len(tokens(_USER, _REPLY, _USER)) - len(tokens(_USER, _REPLY))
    return first[:-message], tokens(_USER, add_generation_prompt=True)[len(first) :]


@contextmanager
def alternating_probes() -> Iterator[None]:
    """While verl's SFT dataset opens its files, it probes the chat template by `system_prompt_and_generation`."""
    from verl.utils.dataset import multiturn_sft_dataset

    with patch.object(multiturn_sft_dataset, "extract_system_prompt_and_generation", system_prompt_and_generation):
        yield


def close_gap(builder: Any) -> None:
    """Make verl's token builder render messages after a reply, if the template refuses them after a user message."""
    try:
        builder._tokenize_single_non_tool(_USER)
    except Exception:  # templates raise errors of any type
        builder._tokenize_single_non_tool = partial(_after_a_reply, builder)


def _after_a_reply(builder: Any, message: dict[str, Any], **options: Any) -> Any:
    return builder.render_delta_token_id([_USER, _REPLY], [message], **options)
