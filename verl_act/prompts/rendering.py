"""Checks that a tokenizer and its chat template can do what prompts need, before anything is sampled or trained.

Chat templates raise errors of any type, so every error of one becomes a `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from verl_act.errors import ActError, ConfigError
from verl_act.prompts.plain_text import OWN_TAGS, control_tokens
from verl_act.prompts.template import Message, Template
from verl_act.schema import Context, Turn

_OWN_OPTIONS = ("tokenize", "add_generation_prompt", "return_dict", "return_tensors", "tools")
_PROBE = "some text"
STATE = Context("a goal", (Turn("a room", "look"),), "a desk", ("look", "wait"))
REPLY = "<action>look</action>"
"""A state and a reply for trying templates; `followup` is what comes next."""


def followup(template: Template) -> str:
    """The observation after `REPLY`, as the template shows it."""
    return template.followup("a shelf", ["look", "wait"])


def require_usable(tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
    """Raise `ConfigError` if this Hugging Face tokenizer cannot render prompts, or its replies cannot be read.

    `options` are those of the chat template (`data.apply_chat_template_kwargs`).
    """
    name = _name(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{name}: its tokenizer has no chat template, which prompts need. Add chat_template.jinja to the folder: "
            "models that follow instructions have one, most base models do not."
        )
    if special := [tag for tag in OWN_TAGS if tag in control_tokens(tokenizer)]:
        raise ConfigError(
            f"{name}: its tokenizer has {special[0]!r} as a special token, which is removed from replies before they "
            "are parsed, and from training texts. Add it as an ordinary token (special=False in "
            "tokenizer_config.json and tokenizer.json)."
        )
    if not _shows_texts(tokenizer, options or {}):
        raise ConfigError(
            f"{name}: its chat template leaves out a message whose content is text; it may expect a list of parts "
            '({"type": "text", "text": ...}), as templates for images do. Give it a chat_template.jinja that writes '
            "message.content where that is a string."
        )


def render(tokenizer: Any, messages: Sequence[Message], **options: Any) -> Any:
    """The tokenizer's `apply_chat_template`. Raises `ConfigError` if the chat template refuses `messages`."""
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:
        roles = ", ".join(message["role"] for message in messages)
        template_options = {name: value for name, value in options.items() if name not in _OWN_OPTIONS}
        with_options = f" with chat_template_kwargs={template_options}" if template_options else ""
        raise ConfigError(
            f"{_name(tokenizer)}: its chat template refuses a conversation of the roles {roles}{with_options}: {error}."
            " Correct chat_template_kwargs, or use a prompt template or a chat_template.jinja that fits the other."
        ) from error


def require_prompts(
    tokenizer: Any, template: Template, options: Mapping[str, Any] | None = None, *, one_sequence: bool = False
) -> None:
    """Raise `ConfigError` if the chat template refuses a prompt of `template`.

    With `one_sequence`, also if it refuses an episode as one conversation (mode `concat`).
    """
    options = {**(options or {}), "tokenize": False}
    prompt = template.action_messages(STATE)
    render(tokenizer, prompt, add_generation_prompt=True, **options)
    render(tokenizer, template.choice_messages(STATE, ["look", "wait"]), add_generation_prompt=True, **options)
    if one_sequence:
        more = [{"role": "assistant", "content": REPLY}, {"role": "user", "content": followup(template)}]
        render(tokenizer, [*prompt, *more], add_generation_prompt=True, **options)


def _shows_texts(tokenizer: Any, options: Mapping[str, Any]) -> bool:
    user, reply = {"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}
    for messages in ([user], [user, reply, user]):
        try:
            text = render(tokenizer, messages, add_generation_prompt=True, tokenize=False, **options)
        except ActError:
            parts = [{**message, "content": [{"type": "text", "text": _PROBE}]} for message in messages]
            with suppress(ActError):
                render(tokenizer, parts, tokenize=False, **options)  # type: ignore[arg-type]
                return False
            raise
        if _PROBE not in text:
            return False
    return True


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", None) or "the model"
