"""The settings of live episodes: the block `data.act.episode` of a verl configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from verl_act.errors import ConfigError


class Mode(StrEnum):
    """How the turns of an episode become training samples."""

    CONCAT = "concat"
    """One growing token sequence; the loss covers only the model's tokens."""
    STEPWISE = "stepwise"
    """Each turn is a sample, whose prompt shows the last turns of the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSettings:
    """Limits and reward of an episode, and the size of the environment pool.

    `data.max_response_length` limits a reply in stepwise mode and the whole episode in concat mode, where
    `max_tokens_per_turn` keeps one reply from using all of it; `data.max_prompt_length` limits each prompt. Timeouts
    are in seconds. An actor that exceeds `max_memory_mb` is replaced, and its episodes are replayed. The reward of an
    episode is `success_reward` if the goal was met, plus `score_reward` times the environment's own
    score, the sum of its rewards (partial credit in WebShop and ScienceWorld), plus `inadmissible_penalty` and
    `malformed_penalty` (both usually negative or zero) for each such turn.
    """

    mode: Mode = Mode.STEPWISE
    max_turns: int = 50
    max_tokens_per_turn: int | None = None
    success_reward: float = 1.0
    score_reward: float = 0.0
    inadmissible_penalty: float = 0.0
    malformed_penalty: float = 0.0
    actors: int = 1
    step_timeout: float = 60.0
    reset_timeout: float = 120.0
    max_memory_mb: float = 8192.0
    env_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))
        for name in ("max_turns", "max_tokens_per_turn"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"data.act.episode.{name} is {value}; an episode needs at least 1.")
