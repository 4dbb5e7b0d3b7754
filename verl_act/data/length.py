"""How many tokens a prompt takes, and whether that is too many.

verl's agent loop cuts an overlong prompt from the left with no more than a warning, and the goal stands on the left: so
overlong prompts are filtered, or refused, before training starts. Those of live episodes are not known by then: our
agent loop measures them, refuses a first one and ends the episode at a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_act.prompts import Message

_OWN_OPTIONS = ("tokenize", "add_generation_prompt", "return_dict", "return_tensors")


class PromptLimit:
    """The limit `data.max_prompt_length`, in tokens, under one tokenizer and its chat template."""

    def __init__(self, limit: int, tokenizer: Any, chat_template_options: Mapping[str, Any]) -> None:
        self.limit = limit
        self._tokenizer = tokenizer
        self._options = {
            name: chat_template_options[name] for name in chat_template_options if name not in _OWN_OPTIONS
        }
        # What the chat template adds; a content of n UTF-8 bytes itself takes n tokens at most.
        self._overhead = self.count([{"role": "user", "content": ""}])

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as verl's rollout encodes it: with the chat template and its generation prompt."""
        from verl.utils.tokenizer import normalize_token_ids

        encoded = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, **self._options
        )
        return len(normalize_token_ids(encoded))

    def excess(self, messages: Sequence[Message]) -> int:
        """The prompt's tokens where they are too many, else 0. Prompts that cannot be too long are not tokenised."""
        if len(messages) == 1 and self._overhead + len(messages[0]["content"].encode()) <= self.limit:
            return 0
        tokens = self.count(messages)
        return tokens if tokens > self.limit else 0
