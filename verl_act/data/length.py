"""Counts the tokens of prompts and detects overlong ones.

verl's agent loop truncates overlong prompts on the left, where the goal is, with only a warning. Overlong prompts are
therefore dropped or refused before training starts. Prompts of live episodes are not known by then: our agent loop
measures them, refuses an overlong first prompt, and ends the episode at a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from verl_act.prompts import Message

_BATCH = 512
_BOUNDARY = 32
"""Bytes around each candidate (its label, and what a tokenizer may merge with it) that count as changed."""


@dataclass(frozen=True, slots=True)
class PromptVariants:
    """The prompts of a row: `messages` with the `candidates` in one order, and prompts with all `other_orders`."""

    messages: list[Message]
    candidates: Sequence[str] = ()
    other_orders: Callable[[], list[list[Message]]] = list

    def spread(self) -> int:
        """Upper bound of extra tokens in another order: the bytes of everything that moves."""
        text = "\n".join(message["content"] for message in self.messages)
        return sum(text.count(action) * (len(action.encode()) + _BOUNDARY) for action in self.candidates)


class PromptLimit:
    """The limit `data.max_prompt_length`, in tokens, under one tokenizer and its chat template."""

    def __init__(self, limit: int, tokenizer: Any, chat_template_options: Mapping[str, Any]) -> None:
        self.limit = limit
        self._tokenizer = tokenizer
        own = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": None}
        self._options = {**chat_template_options, **own}
        # Tokens of the chat template. A content of n UTF-8 bytes takes at most n tokens.
        self._overhead = self.count([[{"role": "user", "content": ""}]])[0]

    def count(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of prompts as verl's rollout encodes them: with the chat template and its generation prompt.

        Encoded in one batch, which a fast tokenizer does on all cores.
        """
        if not prompts:
            return []
        encoded = self._tokenizer.apply_chat_template([list(messages) for messages in prompts], **self._options)
        return [len(ids) for ids in encoded["input_ids"]]

    def overlong_token_counts(self, rows: Iterable[PromptVariants]) -> Iterator[int]:
        """For each row, the token count of an overlong prompt, or 0 if all its prompts fit.

        Prompts with few bytes are not tokenised. Of a pair, one order is, unless another might exceed the limit.
        """
        rows = iter(rows)
        while batch := list(islice(rows, _BATCH)):
            yield from self._overlong_token_counts(batch)

    def _overlong_token_counts(self, rows: Sequence[PromptVariants]) -> list[int]:
        overlong = [0] * len(rows)
        unsure = [index for index, row in enumerate(rows) if not self._fits_by_bytes(row.messages)]
        near = []
        for index, tokens in zip(unsure, self.count([rows[index].messages for index in unsure]), strict=True):
            if tokens > self.limit:
                overlong[index] = tokens
            elif rows[index].candidates and tokens + rows[index].spread() > self.limit:
                near.append(index)
        others = [(index, messages) for index in near for messages in rows[index].other_orders()]
        for (index, _), tokens in zip(others, self.count([messages for _, messages in others]), strict=True):
            if tokens > self.limit:
                overlong[index] = max(overlong[index], tokens)
        return overlong

    def _fits_by_bytes(self, messages: Sequence[Message]) -> bool:
        return len(messages) == 1 and self._overhead + len(messages[0]["content"].encode()) <= self.limit
