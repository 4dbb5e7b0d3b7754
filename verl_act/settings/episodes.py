"""Settings of live episodes, in training (`data.act.episode`) and in evaluations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from verl_act.options import Above0, NotNegative, Positive
from verl_act.settings.base import RUNTIME, Settings


class Mode(StrEnum):
    """How the turns of an episode become training samples, and prompts of an evaluation."""

    CONCAT = "concat"
    """One growing token sequence; the loss covers only the model's tokens."""
    STEPWISE = "stepwise"
    """Each turn is a sample, whose prompt shows the last turns of the history."""


class PoolSettings(Settings):
    """Environment processes (Ray actors), which episodes share."""

    actors: Annotated[Positive, RUNTIME] = 1
    """Number of environment processes."""
    step_timeout: Annotated[Above0, RUNTIME] = 60.0
    """Time limit (s) of one step of an environment."""
    reset_timeout: Annotated[Above0, RUNTIME] = 120.0
    """Time limit (s) of a reset, without the start of a process and its `prepare`."""
    max_memory_mb: Annotated[Above0, RUNTIME] = 8192.0
    """Memory (MB), child processes included, above which an environment process is replaced when the next episode
    begins, unless it used about as much from the start."""
    num_cpus: Annotated[NotNegative, RUNTIME] = 0.0
    """CPUs that Ray reserves for an environment process."""


class EpisodeOptions(PoolSettings):
    mode: Annotated[Mode, Field(strict=False)] = Mode.STEPWISE
    """Format of an episode: a prompt and a sample per turn (`stepwise`), or one growing sequence (`concat`)."""
    max_turns: Positive = 50
    """Most turns of an episode."""
