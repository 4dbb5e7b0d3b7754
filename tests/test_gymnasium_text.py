"""Gymnasium environments of texts: what the adapter misses is named, and nothing is closed twice."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

from verl_act.envs.base import Task
from verl_act.envs.gymnasium_text import GymnasiumTextEnvironment, InfoKeys
from verl_act.errors import ConfigError, EnvError


class Odd(gymnasium.Env[Any, Any]):
    """Shows, tells and fails as it is told to."""

    def __init__(self, observation: Any = "a room", info: dict[str, Any] | None = None) -> None:
        self.observation = observation
        self.info = {"goal": "win", "admissible_actions": ["win", "crash"]} if info is None else info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation, self.info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == "crash":
            raise ValueError("a bug")
        return self.observation, 1.0, True, False, self.info


TASK = Task("odd", "train", "1", "odd")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Odd(observation=3), r"\bint\b.*`show`"),
        (Odd(info={"goal": "win"}), r"'admissible_actions'.*\bgoal\b"),
        (Odd(info={"admissible_actions": []}), "'goal'"),
    ],
)
def test_what_the_adapter_misses_is_named(environment: Odd, message: str) -> None:
    adapted, as_it_was = GymnasiumTextEnvironment(environment), (environment.observation, environment.info)
    environment.observation, environment.info = "a room", Odd().info
    adapted.reset(TASK)
    environment.observation, environment.info = as_it_was
    with pytest.raises(EnvError, match=message):
        adapted.reset(TASK)
    with pytest.raises(EnvError, match="reset"):
        adapted.step("win")


def test_an_end_without_a_verdict_and_a_crash_are_named() -> None:
    adapted = GymnasiumTextEnvironment(Odd())
    adapted.reset(TASK)
    with pytest.raises(EnvError, match=r"'crash'.*ValueError: a bug"):
        adapted.step("crash")
    with pytest.raises(EnvError, match="'success'"):
        adapted.step("WIN")
    with pytest.raises(EnvError, match="reset"):
        GymnasiumTextEnvironment(Odd(), keys=InfoKeys()).step("win")
    with pytest.raises(ConfigError, match="max_steps is 0"):
        GymnasiumTextEnvironment(Odd(), max_steps=0)


def test_the_environment_is_closed_once_whatever_happened_to_it() -> None:
    class Closing(Odd):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    unused, broken = Closing(), Closing(info={})
    adapted = [GymnasiumTextEnvironment(environment) for environment in (unused, broken)]
    with pytest.raises(EnvError):
        adapted[1].reset(TASK)
    for environment in adapted * 2:
        environment.close()
    assert (unused.closed, broken.closed) == (1, 1)
