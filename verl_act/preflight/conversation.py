"""Whether verl can turn a conversation of this model into tokens, the same on every day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_act.errors import first_line
from verl_act.preflight.problem import Problem
from verl_act.prompts.rendering import REPLY, STATE, followup, render
from verl_act.prompts.template import Template

_ROOM = 1 << 20
"""Tokens for the follow-up: more than any prompt."""


def conversation_problems(
    tokenizer: Any,
    model_type: str,
    template: Template,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    one_sequence: bool = False,
    processor: Any = None,
) -> list[Problem]:
    """Build the token builder that verl chooses for `model_type`, which every agent loop needs.

    With `one_sequence` (mode `concat`), also append an observation to an episode.
    """
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    from verl_act.rollout.sequence import GrowingSequence

    try:
        builder = create_continuous_token_builder(
            tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=dict(chat_template_kwargs or {}),
            processor=processor,
        )
    except Exception as error:  # builders and chat templates raise errors of any type
        return [
            Problem(
                f"verl's token builder for model type {model_type!r} refuses the tokenizer ({first_line(error)}): no "
                "rollout would start.",
                "Use a model whose tokenizer fits its type (Qwen's needs <|im_end|>), or set model_type in its "
                "config.json to that of the architecture it shares, such as llama.",
            )
        ]
    if not one_sequence:
        return []
    try:
        sequence = GrowingSequence(template.action_messages(STATE), tokenizer, builder)
        reply = tokenizer.encode(REPLY, add_special_tokens=False)
        sequence.reply([*reply, tokenizer.eos_token_id], REPLY)
        sequence.observe(followup(template), _ROOM)
    except Exception as error:
        return [
            Problem(
                f"no observation can be appended to an episode in one sequence ({first_line(error)}).",
                "Set `data.act.episode.mode=stepwise`, or take a chat template with user and assistant in turns.",
            )
        ]
    return []


def date_problems(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[Problem]:
    """Whether the chat template writes today's date into prompts, as Llama's and gpt-oss's do."""
    probe = "a date that no template writes"
    messages = [{"role": "user", "content": "a question"}]
    options = {**(chat_template_kwargs or {}), "strftime_now": lambda _: probe}
    if probe not in render(tokenizer, messages, add_generation_prompt=True, tokenize=False, **options):
        return []
    return [
        Problem(
            "the chat template writes today's date into every prompt: a run of another day has other prompts.",
            "Where the template takes one, as Llama's does, set `++data.apply_chat_template_kwargs={date_string:26 Jul "
            "2024}`. For others, such as gpt-oss, copy the model's folder and write a date into chat_template.jinja.",
            fatal=False,
        )
    ]
