"""A model behind an OpenAI-compatible server, in place of a local engine.

The server renders the chat template. `$OPENAI_API_KEY` holds the key, if the server wants one. What a local engine's
tokens are needed for (episodes as one sequence, rationales, counts of tokens) is not available, except the counts if
the model's name is a folder here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from verl_act.engine import Reply, RunningModel, finite, usable_tokenizer
from verl_act.errors import ConfigError, EngineError, OptionError
from verl_act.extras import needs_extra
from verl_act.prompts import Message
from verl_act.prompts.plain_text import as_plain_text, reply_prefix
from verl_act.settings.episodes import Mode
from verl_act.settings.evaluation import EvaluationSettings
from verl_act.settings.model import ModelSettings, Sampling

logger = logging.getLogger(__name__)

_KEY_VARIABLE = "OPENAI_API_KEY"
_NO_ROOM = re.compile(r"context[ _](?:length|size|window)", re.IGNORECASE)
_OPTIONAL = ("logprobs", "seed")
"""Parameters that some servers refuse, and without which the metrics are the same at temperature 0."""


def check_endpoint(endpoint: str, settings: EvaluationSettings) -> None:
    """Raise `OptionError` if `endpoint` is not a URL of a server, or for a setting that needs a local engine."""
    try:
        url = urlsplit(endpoint)
    except ValueError:
        url = urlsplit("")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise OptionError("endpoint", f"is {endpoint!r}, not a URL such as http://localhost:8000/v1.")
    if url.username or url.password:
        raise OptionError("endpoint", f"holds a user or password, which the manifest would show; use ${_KEY_VARIABLE}.")
    if settings.mode is not Mode.STEPWISE:
        raise OptionError("mode", "is concat, which needs the model's tokens; with an endpoint, use stepwise.")
    if set(settings.rationale) - {"free"}:
        raise OptionError("rationale", "opens replies, which an endpoint does not do; evaluate the model itself.")
    if others := sorted(settings.engine_options.keys() - {"chat_template_kwargs", "trust_remote_code"}):
        raise OptionError("engine_options", f"has a key {others[0]!r}, which is for a local engine, not an endpoint.")


class Endpoint(RunningModel):
    """The model `settings.model` of the server at `url` (`.../v1`), with the methods of `engine.Engine` for prompts.

    `without_room` counts the prompts that the server refused as too long. The server's own defaults apply to sampling
    parameters that `Sampling` does not have. A busy or failing server is asked again `retries` times, after growing
    delays of half a minute in all. Raises `ConfigError` if the server refuses the key or the model, and
    `EngineError` if it still fails or does not answer.
    """

    max_num_seqs = 64
    """Requests at once."""

    def __init__(self, url: str, settings: ModelSettings, retries: int = 8) -> None:
        with needs_extra("endpoint"):
            from openai import AsyncOpenAI
        super().__init__(settings)
        self.url = url
        self.tokenizer = usable_tokenizer(settings) if Path(settings.model).is_dir() else None
        self.reply_prefix = reply_prefix(self.tokenizer, self.chat_template_kwargs) if self.tokenizer else ""
        # The client demands some key; servers without keys ignore it.
        key = os.environ.get(_KEY_VARIABLE) or "none"
        self._client = AsyncOpenAI(base_url=url, api_key=key, max_retries=retries)
        self._refused: set[str] = set()

    def close(self) -> None:
        """Close the connections."""
        self.run(self._client.close())
        super().close()

    async def reply(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None, opening: str = ""
    ) -> list[str]:
        """As `Engine.reply`, without an opening. A thought that the server returns apart from the reply is put back
        before it."""
        if opening:
            raise ConfigError(f"{self.url}: an endpoint cannot continue a reply; evaluate the model itself.")
        choices = await self._complete(messages, sampling, seed)
        return [self._text(choice) for choice in choices] or [""] * sampling.n

    async def scored_reply(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None
    ) -> list[Reply]:
        """As `Engine.scored_reply`; the log-probability is None where the server gives none."""
        choices = await self._complete(messages, sampling, seed, logprobs=True)
        replies = [Reply(self._text(one), _log_probability(one), one.finish_reason == "length") for one in choices]
        return replies or [Reply("", None, cut=True)] * sampling.n

    def _text(self, choice: Any) -> str:
        content = choice.message.content or ""
        thought = getattr(choice.message, "reasoning", None) or getattr(choice.message, "reasoning_content", None)
        if thought:
            return f"<think>{thought}</think>{content}" if content else f"<think>{thought}"
        opened = self.reply_prefix or ("<think>" if "<think>" not in content and "</think>" in content else "")
        return content if content.startswith(opened) else opened + content

    async def _complete(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None, **options: Any
    ) -> list[Any]:
        """The server's choices; none if the prompt leaves no room, which is counted."""
        plain = as_plain_text(messages, self.tokenizer) if self.tokenizer else list(messages)
        extra: dict[str, Any] = {"top_k": sampling.top_k} if sampling.top_k > 0 else {}
        if self.chat_template_kwargs:
            extra["chat_template_kwargs"] = self.chat_template_kwargs
        request = {
            "model": self.settings.model,
            "messages": plain,
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "extra_body": extra,
            **({} if seed is None else {"seed": seed}),
            **options,
        }
        choices = await self._request(request)
        self.without_room += not choices
        return choices

    async def _request(self, request: dict[str, Any]) -> list[Any]:
        import openai

        sent = {name: value for name, value in request.items() if name not in self._refused}
        try:
            completion = await self._client.chat.completions.create(**sent)
        except openai.BadRequestError as error:
            if refused := next((name for name in _OPTIONAL if name in sent and name in str(error)), None):
                logger.warning("%s refuses the parameter %s, which is left out from now on.", self.url, refused)
                self._refused.add(refused)
                return await self._request(request)
            if not _NO_ROOM.search(str(error)):
                raise self._failed(error) from error
            if "max_tokens" not in sent:
                return []
            # Without a limit a server fills the context, which is the local engine's limit in this case.
            return await self._request({name: value for name, value in request.items() if name != "max_tokens"})
        except openai.OpenAIError as error:
            raise self._failed(error) from error
        return list(completion.choices)

    def _failed(self, error: Exception) -> ConfigError | EngineError:
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return ConfigError(f"{self.url} refuses the key in ${_KEY_VARIABLE}: {error}.")
        if isinstance(error, openai.NotFoundError):
            return ConfigError(
                f"{self.url} has no model {self.settings.model!r} or no chat completions: {error}. Give the URL up to "
                "its /v1, and as model a name that its /v1/models lists."
            )
        if isinstance(error, openai.APIConnectionError):
            return EngineError(f"{self.url} does not answer ({error}). Start the server, or correct the URL.")
        return EngineError(f"{self.url} failed: {error}")


def _log_probability(choice: Any) -> float | None:
    tokens = choice.logprobs.content if choice.logprobs else None
    return finite(sum(token.logprob for token in tokens)) if tokens else None
