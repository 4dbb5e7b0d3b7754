"""What verl trains on: the tokens of a prompt and a reply, or of a whole episode as one growing sequence.

A reply stays as it was sampled, never decoded and encoded again, so that what is trained, and what is asked next, is
exactly what was generated.
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
    """One training sample under construction; the mask is 1 on the model's own tokens."""

    prompt_ids: list[int]
    response_ids: list[int] = field(default_factory=list)
    response_mask: list[int] = field(default_factory=list)
    response_logprobs: list[float] = field(default_factory=list)
    """Empty where the server gives none."""

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_ids + self.response_ids

    def take(self, token_ids: Sequence[int], log_probs: Sequence[float] | None) -> None:
        """Append the model's own tokens."""
        self.response_ids += token_ids
        self.response_mask += [1] * len(token_ids)
        self.response_logprobs += log_probs or []


class GrowingSequence:
    """An episode in mode `concat`: the first prompt, then replies (trained) and observations (masked) in turn.

    `tokenizer` is Hugging Face's, `builder` verl's for the model's family (seam: `verl.utils.tokenizer`).
    """

    def __init__(self, messages: Sequence[Message], tokenizer: Any, builder: ContinuousTokenBuilder) -> None:
        self.tokenizer = tokenizer
        self.builder = builder
        close_gap(builder)
        self.messages = as_plain_text(messages, tokenizer)
        self.sample = Sample(builder.build_initial_tokens(self.messages))

    def reply(self, token_ids: Sequence[int], text: str, log_probs: Sequence[float] | None = None) -> None:
        """Append what the model has written."""
        self.sample.take(token_ids, log_probs)
        self.messages = [*self.messages, {"role": "assistant", "content": text}]

    def observe(self, content: str, limit: int) -> bool:
        """Append the user's message `content`; False, with nothing appended, where then no token of a reply would fit
        in the `limit` of those after the first prompt."""
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
        """What the chat template writes after a reply and neither the model nor verl's builder adds."""
        end = end_of_turn(self.tokenizer)
        closing: list[int] = []
        # A reply that was cut does not end its turn by itself; an open turn would garble all that follows.
        if end is not None and self.sample.response_ids[-1:] not in ([end], [self.tokenizer.eos_token_id]):
            closing.append(end)
        # Only the builders that verl has for certain model families know what stands between their turns.
        if type(self.builder) is ContinuousTokenBuilder:
            closing += turn_separator(self.tokenizer)
        return closing
