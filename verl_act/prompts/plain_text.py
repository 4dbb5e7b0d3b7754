"""Keeps a tokenizer's control tokens out of text that comes from an environment.

A chat template is rendered to text before it is encoded, so `<|im_end|>` in an observation would end the turn, and the
text after it could pose as another role. So could the tags of templates that write roles as ordinary text (`<|user|>`,
`[INST]`). A space after the first character makes the same letters ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from verl_act.prompts.template import Message

OWN_TAGS = ("<action>", "</action>", "<think>", "</think>")
"""Tags that belong to prompts and replies of this package: ordinary text under every tokenizer."""

_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def as_plain_text(messages: Sequence[Message], tokenizer: Any) -> list[Message]:
    """`messages` with every control token and turn marker in their contents broken up (Hugging Face tokenizer)."""
    pattern = _pattern(tokenizer)
    return [{**message, "content": pattern.sub(r"\g<0> ", message["content"])} for message in messages]


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens, which `decode(skip_special_tokens=True)` leaves out.

    Added tokens such as `<think>`, which are not special, belong to prompts and replies.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return frozenset(tokenizer.all_special_tokens) | {token.content for token in added if token.special}


def turn_markers(tokenizer: Any) -> frozenset[str]:
    """The tags that the chat template writes between messages, control tokens or not."""
    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    conversation = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]
    rendered = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    return frozenset(_TAG.findall(rendered)) - set(OWN_TAGS)


@lru_cache(maxsize=8)
def end_of_turn(tokenizer: Any) -> int | None:
    """The id of the control token with which the chat template ends a reply; None where it writes none."""
    text = "a reply"
    conversation = [{"role": "user", "content": "text"}, {"role": "assistant", "content": text}]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    after = tokenizer.encode(rendered[rendered.rindex(text) + len(text) :], add_special_tokens=False)
    control = control_tokens(tokenizer)
    return next((token for token in after if tokenizer.convert_ids_to_tokens(token) in control), None)


@lru_cache(maxsize=8)
def _pattern(tokenizer: Any) -> re.Pattern[str]:
    """Each character at which one of them begins, so that none is missed where two of them overlap.

    Kept for each tokenizer: gathering its tokens takes longer than breaking up a prompt.
    """
    names = sorted(name for name in control_tokens(tokenizer) | turn_markers(tokenizer) if name)
    return re.compile(rf"(?=(?:{'|'.join(map(re.escape, names))})).", re.DOTALL) if names else re.compile(r"(?!)")
