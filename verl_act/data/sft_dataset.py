"""Rows for verl's SFT trainer, encoded as at inference time (verl's `data.custom_cls` seam)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from verl_act.errors import ConfigError
from verl_act.parquet_file import read_parquet_schema
from verl_act.prompts.plain_text import continued, end_of_turn, reply_prefix
from verl_act.prompts.rendering import render, require_usable
from verl_act.schema import SFT, read_table, schema_name
from verl_act.upstream_gaps.alternating_roles import alternating_probes


class ActSFTDataset(MultiTurnSFTDataset):
    """verl's dataset, but the prompt is rendered as a whole, and the reply's tokens follow the generation prompt.

    verl renders every message separately. A chat template that removes thoughts from earlier turns, such as Qwen3's,
    then removes them from the training text; the part of the reply that a generation prompt writes
    (`enable_thinking: false`) is missing; and a template may refuse a lone system message.
    """

    def _download(self) -> None:
        require_usable(self.tokenizer, self.apply_chat_template_kwargs)
        super()._download()  # type: ignore[no-untyped-call]
        for path in self.parquet_files:
            if schema_name(read_parquet_schema(path)) == schema_name(SFT):
                read_table(path, SFT)  # raises `DataError` on damage, which pandas would read as other text

    def _read_files_and_process(self) -> None:
        with alternating_probes():
            super()._read_files_and_process()  # type: ignore[no-untyped-call]

    def _process_single_message(
        self,
        index: int,
        message: dict[str, Any],
        full_message: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Any:
        prompt = list(takewhile(lambda message: message["role"] != "assistant", full_message))
        rendered_at_once = self.processor is None and len(prompt) < len(full_message)
        if rendered_at_once and index < len(prompt):
            options = {**self.apply_chat_template_kwargs, "add_generation_prompt": True, "return_dict": False}
            ids = render(self.tokenizer, prompt, tools=tools, **options) if index == 0 else []
            return _message(ids, learned_from=len(ids))
        if message["role"] != "assistant":
            return super()._process_single_message(index, message, full_message, tools, enable_thinking)
        opening = [] if rendered_at_once and index == len(prompt) else list(self.generation_prompt)
        prefix = reply_prefix(self.tokenizer, self.apply_chat_template_kwargs)
        reply = self.tokenizer.encode(continued(message["content"], prefix), add_special_tokens=False)
        return _message([*opening, *reply, self._end()], learned_from=len(opening))

    def _end(self) -> int:
        for token in (end_of_turn(self.tokenizer), self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ConfigError(f"{self.tokenizer.name_or_path}: the tokenizer has no token that ends a reply (eos_token).")

    def sanity_check(self, *_: Any) -> None:
        """Disabled: verl's compares with the whole conversation as the chat template renders it, which differs here."""


def _message(ids: Sequence[int], learned_from: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """A message as verl expects it: tokens, loss mask, attention mask (each of shape [tokens]), multi-modal inputs."""
    tokens = torch.tensor(ids, dtype=torch.long)
    loss_mask = torch.ones_like(tokens)
    loss_mask[:learned_from] = 0
    return tokens, loss_mask, torch.ones_like(tokens), {}
