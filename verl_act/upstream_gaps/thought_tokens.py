"""Gap: verl decodes replies for the reward without the control tokens that mark thoughts in some model families.

The reward of a reply of gpt-oss, Gemma 4 or Magistral would then read the drafts of its thought as answers. Here, in
runs on `ActDataset`, the tokenizer of a reward manager writes such thoughts in `<think>…</think>`
(`prompts.reply_decoder`). Other models and runs are unchanged.

Upstream change it waits for: a reasoning parser in the reward managers (verl/experimental/reward_loop/reward_manager).
"""

from collections.abc import Callable, Sequence
from typing import Any

import wrapt

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.experimental.reward_loop.reward_loop:RewardLoopWorker._init_reward_fn")
def mark_thoughts(wrapped: Callable[[], None], worker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    data = worker.config.data
    if data.get("custom_cls", {}).get("name") != "ActDataset":
        return
    from verl_act.config.settings import ActSettings
    from verl_act.prompts.reply_decoder import ReplyDecoder

    manager = worker.reward_manager
    markers = ActSettings.from_config(data).thought_markers
    decoder = ReplyDecoder(manager.tokenizer, data.get("apply_chat_template_kwargs"), markers)
    if decoder.rewrites:
        manager.tokenizer = _MarksThoughts(manager.tokenizer, decoder)


class _MarksThoughts(wrapt.ObjectProxy):  # type: ignore[type-arg]  # a generic only in its stubs
    """A tokenizer whose `decode` without control tokens marks thoughts."""

    def __init__(self, tokenizer: Any, decoder: Any) -> None:
        super().__init__(tokenizer)
        self._self_decoder = decoder

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        if skip_special_tokens:
            return str(self._self_decoder.text(token_ids))
        return str(self.__wrapped__.decode(token_ids, skip_special_tokens=False, **options))
