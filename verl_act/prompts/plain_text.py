"""Keeps a tokenizer's control tokens out of text that comes from an environment.

A chat template is rendered to text before it is encoded, so `<|im_end|>` in an observation would end the turn, and the
text after it could pose as another role. So could the tags of templates that write roles as ordinary text (`<|user|>`,
`[INST]`). A space after the first character makes the same letters ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from verl_act.parse import END_OF_THINK, THINK
from verl_act.prompts.template import Message

OWN_TAGS = ("<action>", "</action>", THINK, END_OF_THINK)
"""Tags of this package's prompts and replies, which must be ordinary text for every tokenizer."""

_EMPTY_THOUGHT = re.compile(rf"{THINK}\s*{END_OF_THINK}\s*\Z")
_PROBE = "some text"
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def as_plain_text(messages: Sequence[Message], tokenizer: Any) -> list[Message]:
    """`messages` with all control tokens and turn markers in their contents broken up (Hugging Face tokenizer)."""
    pattern = _pattern(tokenizer)
    return [{**message, "content": pattern.sub(r"\g<0> ", message["content"])} for message in messages]


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens, which `decode(skip_special_tokens=True)` leaves out.

    Added tokens such as `<think>`, which are not special, belong to prompts and replies.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return frozenset(tokenizer.all_special_tokens) | {token.content for token in added if token.special}


def turn_markers(tokenizer: Any) -> frozenset[str]:
    """The tags that the chat template writes between messages of any role, control tokens or not."""
    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    tags = set(_TAG.findall(_rendered(tokenizer, "user", "assistant", "user")))
    for roles in (("system", "user"), ("user", "assistant", "tool")):
        # A template without the role raises an error of any type; it then writes no tag for that role either.
        with suppress(Exception):
            tags.update(_TAG.findall(_rendered(tokenizer, *roles)))
    return frozenset(tags) - set(OWN_TAGS)


def reply_prefix(
    tokenizer: Any, options: Mapping[str, Any] | None = None, thought_tags: Mapping[str, str] | None = None
) -> str:
    """The part of a reply that the generation prompt already wrote: `<think>` if it opens the thought, else empty.

    A reply must be parsed together with it, or a truncated thought would pass for an answer. `options` are those of
    the chat template (`data.apply_chat_template_kwargs`), `thought_tags` the tags for the markers of thoughts that the
    model has (`parse.THOUGHT_MARKERS`).
    """
    rendered = _rendered(tokenizer, "user", **(options or {}))
    opening = rendered[rendered.rindex(_PROBE) + len(_PROBE) :]
    for marker, tag in (thought_tags or {}).items():
        opening = opening.replace(marker, tag)
    return THINK if opening.rfind(THINK) > opening.rfind(END_OF_THINK) else ""


def continued(reply: str, prefix: str) -> str:
    """The continuation of `prefix` (`reply_prefix`) for a reply that was written without it.

    If `reply` does not start with the prefix, the thought that the prefix opened is closed first.
    """
    return reply.removeprefix(prefix) if reply.startswith(prefix) else f"{END_OF_THINK}{reply}"


def with_opening(prompt: str, opening: str, prefix: str) -> str:
    """The rendered `prompt` followed by `opening`, the beginning of a reply, which starts with `<think>`.

    If the prompt opens the thought itself (`prefix`, as `reply_prefix` returns it) or ends with an empty one, as with
    thoughts switched off in the chat template, that is not repeated.
    """
    prompt = _EMPTY_THOUGHT.sub("", prompt)
    opening = continued(opening, prefix)
    return prompt + (opening.removeprefix("\n") if prefix and prompt.endswith("\n") else opening)


def end_of_turn(tokenizer: Any) -> int | None:
    """The id of the control token with which the chat template ends a reply; None if it writes none."""
    return next(iter(_turn_ending(tokenizer)), None)


def turn_separator(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the chat template writes between that token and the next message: usually a newline, or none.

    verl's `initialize_turn_separator` derives them from a user message. If no control token ends that (as in Llama 2's
    template), it returns the rest of `[/INST]`.
    """
    return _turn_ending(tokenizer)[1:]


@lru_cache(maxsize=8)
def _turn_ending(tokenizer: Any) -> tuple[int, ...]:
    """The token ids after the text of a reply, from the first control token on."""
    rendered = _rendered(tokenizer, "user", "assistant", add_generation_prompt=False)
    after = tokenizer.encode(rendered[rendered.rindex(_PROBE) + len(_PROBE) :], add_special_tokens=False)
    control = control_tokens(tokenizer)
    ends = (index for index, token in enumerate(after) if tokenizer.convert_ids_to_tokens(token) in control)
    return tuple(after[next(ends, len(after)) :])


def _rendered(tokenizer: Any, *roles: str, add_generation_prompt: bool = True, **options: Any) -> str:
    """A conversation of these roles, each saying `_PROBE`."""
    conversation = [{"role": role, "content": _PROBE} for role in roles]
    options = {**options, "add_generation_prompt": add_generation_prompt, "tokenize": False}
    text: str = tokenizer.apply_chat_template(conversation, **options)
    return text


@lru_cache(maxsize=8)
def _pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the first character of each control token or turn marker, so that overlapping ones are found too.

    Cached per tokenizer: collecting its tokens takes longer than breaking up a prompt.
    """
    names = sorted(name for name in control_tokens(tokenizer) | turn_markers(tokenizer) if name)
    return re.compile(rf"(?=(?:{'|'.join(map(re.escape, names))})).", re.DOTALL) if names else re.compile(r"(?!)")
