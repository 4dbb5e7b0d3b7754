"""Training samples for verl: the tokens of a prompt and a reply, or of a whole episode as one growing sequence.

Replies keep their sampled tokens and are never re-encoded, so that training and later prompts use exactly what was
generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

from verl_act.prompts import Message
from verl_act.prompts.plain_text import as_plain_text, end_of_turn, turn_separator
from verl_act.upstream_gaps.alternating_roles import close_gap


@dataclass
class Sample:
    """One training sample under construction; the mask is 1 on the model's tokens."""

    prompt_ids: list[int]
    response_ids: list[int] = field(default_factory=list)
    response_mask: list[int] = field(default_factory=list)
    response_logprobs: list[float] = field(default_factory=list)
    """Empty if the server returns none."""

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_ids + self.response_ids

    def take(self, token_ids: Sequence[int], log_probs: Sequence[float] | None) -> None:
        """Append tokens that the model generated."""
        self.response_ids += token_ids
        self.response_mask += [1] * len(token_ids)
        self.response_logprobs += log_probs or []


class GrowingSequence:
    """An episode in mode `concat`: the first prompt, then replies (trained) and observations (masked) in turn.

    `tokenizer` is Hugging Face's, `builder` verl's for the model's family (seam: `verl.utils.tokenizer`).
    """

    replica: int | None = None
    """The replica of an engine whose prefix cache has the sequence so far; None: any."""

    def __init__(self, messages: Sequence[Message], tokenizer: Any, builder: ContinuousTokenBuilder) -> None:
        self.tokenizer = tokenizer
        self.builder = builder
        close_gap(builder)
        self.messages = as_plain_text(messages, tokenizer)
        self.sample = Sample(builder.build_initial_tokens(self.messages))

    def reply(self, token_ids: Sequence[int], text: str, log_probs: Sequence[float] | None = None) -> None:
        """Append a reply of the model."""
        self.sample.take(token_ids, log_probs)
        self.messages = [*self.messages, {"role": "assistant", "content": text}]

    def observe(self, content: str, limit: int) -> bool:
        """Append the user message `content`.

        Returns False, and appends nothing, if no token of a reply would then fit in the `limit` of tokens after the
        first prompt.
        """
        sample = self.sample
        messages = [*self.messages, *as_plain_text([{"role": "user", "content": content}], self.tokenizer)]
        closing = self._closing()
        merged = self.builder.merge_context_tokens(self.messages, messages, sample.token_ids + closing)
        response_ids = merged.token_ids[len(sample.prompt_ids) :]
        if len(response_ids) >= limit:
            return False
        mask, log_probs = self.builder.align_response_metadata(
            merged,
            sample.response_mask + [0] * len(closing),
            sample.response_logprobs + [0.0] * len(closing) if sample.response_logprobs else None,
        )
        sample.response_ids, sample.response_mask, sample.response_logprobs = response_ids, mask, log_probs or []
        self.messages = messages
        return True

    def _closing(self) -> list[int]:
        """Tokens that the chat template writes after a reply, and neither the model nor verl's builder adds."""
        end = end_of_turn(self.tokenizer)
        closing: list[int] = []
        # A truncated reply does not end its turn; an open turn would garble everything after it.
        if end is not None and self.sample.response_ids[-1:] not in ([end], [self.tokenizer.eos_token_id]):
            closing.append(end)
        # Only verl's builders for certain model families add the separator between turns.
        if type(self.builder) is ContinuousTokenBuilder:
            closing += turn_separator(self.tokenizer)
        return closing
