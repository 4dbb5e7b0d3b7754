"""Rows for verl's SFT trainer, encoded as the model is asked and answers: verl's `data.custom_cls` seam."""

from __future__ import annotations

from typing import Any

import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from verl_act.errors import ConfigError
from verl_act.prompts.plain_text import continued, end_of_turn, reply_prefix


class ActSFTDataset(MultiTurnSFTDataset):
    """verl's dataset, but for the reply: its text follows the generation prompt token by token.

    verl renders the reply as a message of its own. A chat template that takes the thoughts out of earlier turns, as
    Qwen3's does, then takes them out of what is to be learnt; and what a generation prompt writes of the reply
    (`enable_thinking: false`) is missing before it.
    """

    def _process_single_message(self, index: int, message: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        if message["role"] != "assistant":
            return super()._process_single_message(index, message, *arguments, **options)
        opening = list(self.generation_prompt)
        prefix = reply_prefix(self.tokenizer, self.apply_chat_template_kwargs)
        reply = self.tokenizer.encode(continued(message["content"], prefix), add_special_tokens=False)
        ids = torch.tensor([*opening, *reply, self._end()])
        learnt = torch.ones_like(ids)
        learnt[: len(opening)] = 0
        return ids, learnt, torch.ones_like(ids), {}

    def _end(self) -> int:
        ends = (end_of_turn(self.tokenizer), self.tokenizer.eos_token_id)
        for token in ends:
            if token is not None:
                return token
        raise ConfigError(f"{self.tokenizer.name_or_path}: the tokenizer has no token that ends a reply (eos_token).")

    def sanity_check(self, *_: Any) -> None:
        """verl's compares with the whole conversation as the chat template renders it, which is not what is wanted."""
