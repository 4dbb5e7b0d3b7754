"""Decodes replies so that the thoughts of every model family read `<think>…</think>`.

Some families mark a thought by control tokens, which `decode(skip_special_tokens=True)` leaves out: a draft in the
thought would count as a second answer, and a thought that was cut short as the answer. They are found on token ids, so
that a model cannot fake them by spelling them as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from verl_act.errors import ConfigError
from verl_act.parse import END_OF_THINK, THINK, THOUGHT_MARKERS
from verl_act.prompts.plain_text import control_tokens, reply_prefix

_SUSPICIOUS = re.compile(r"[<\[◁].*(?:think|thought|reason|channel|analysis).*[>\]▷]", re.IGNORECASE)


class ReplyDecoder:
    """Decodes the token ids of replies of one Hugging Face tokenizer.

    `markers` are the texts that begin and end a thought, such as `("[THINK]", "[/THINK]")`; `()` if the model marks
    none, or as ordinary text. By default the tokenizer's control tokens tell the family (`parse.THOUGHT_MARKERS`).
    `options` are those of the chat template.

    `prefix` is the part of a reply that the generation prompt already wrote, as `reply_prefix` returns it.

    Raises `ConfigError` if the tokenizer has a control token that may mark thoughts, of a family that is not known.
    """

    def __init__(
        self, tokenizer: Any, options: Mapping[str, Any] | None = None, markers: Sequence[str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._tags = _family_tags(tokenizer) if markers is None else _given_tags(markers)
        self._markers: dict[int, list[tuple[list[int], str]]] = {}
        for marker in sorted(self._tags, key=len, reverse=True):
            ids = tokenizer.encode(marker, add_special_tokens=False)
            self._markers.setdefault(ids[0], []).append((ids, self._tags[marker]))
        self.prefix = reply_prefix(tokenizer, options, self._tags)

    @property
    def rewrites(self) -> bool:
        """Whether replies are decoded in another way than by the tokenizer alone."""
        return bool(self._markers)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of a reply without control tokens, its thoughts in `<think>…</think>`; without `prefix`."""
        ids = [int(token) for token in token_ids]
        parts: list[str] = []
        start = position = 0
        while position < len(ids):
            for marker, tag in self._markers.get(ids[position], ()):
                if ids[position : position + len(marker)] == marker:
                    parts += [self._decode(ids[start:position]), tag]
                    start = position = position + len(marker)
                    break
            else:
                position += 1
        return "".join([*parts, self._decode(ids[start:])])

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        return text


def _given_tags(markers: Sequence[str]) -> dict[str, str]:
    if len(markers) not in (0, 2) or not all(isinstance(marker, str) and marker for marker in markers):
        raise ConfigError(
            f"thought_markers is {markers!r}; give the two texts that begin and end a thought, such as "
            '["[THINK]", "[/THINK]"], or [] if the model marks none by control tokens.'
        )
    return dict(zip(markers, (THINK, END_OF_THINK), strict=False))


@lru_cache(maxsize=8)  # agent loops make a decoder for every rollout
def _family_tags(tokenizer: Any) -> Mapping[str, str]:
    """The markers of the family whose tokens the tokenizer has, and their tags; none if it marks thoughts as text."""
    added = tuple(token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values())
    for tags in THOUGHT_MARKERS.values():
        if added and all(marker.startswith(added) for marker in tags):
            return tags
    if suspicious := sorted(token for token in control_tokens(tokenizer) if _SUSPICIOUS.fullmatch(token)):
        name = getattr(tokenizer, "name_or_path", None) or "the model"
        raise ConfigError(
            f"{name}: its tokenizer has the control tokens {', '.join(suspicious)}, which decoding strips. If they "
            "mark thoughts, drafts in a thought would count as answers: set thought_markers to the two that begin and "
            "end a thought, or to [] if none does (for verl data.act.thought_markers, for commands and recipes in "
            "engine_options)."
        )
    return {}
