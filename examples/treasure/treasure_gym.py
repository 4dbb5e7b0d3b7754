"""The same game as somebody else's Gymnasium environment, adapted in a few lines: `make` and `SPEC`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
from treasure import TASKS, TreasureEnvironment, TreasureExpert, list_tasks

from verl_act.envs.base import EnvSpec, Task
from verl_act.envs.gymnasium_text import GymnasiumTextEnvironment, InfoKeys

NAME = "treasure_gym"


class TreasureGym(gymnasium.Env[str, str]):
    """Texts in, texts out; `info` has the mission, the valid actions and whether the game was won."""

    observation_space = gymnasium.spaces.Text(1000)
    action_space = gymnasium.spaces.Text(100)

    def __init__(self) -> None:
        self._game = TreasureEnvironment()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        task = Task("treasure", "train", (options or {})["task_id"], "boxes", seed or 0)
        first = self._game.reset(task)
        return first.observation, {"mission": first.goal, "valid": first.admissible_actions, "won": False}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        result = self._game.step(action)
        info = {"valid": result.admissible_actions, "won": result.success}
        return result.observation, result.reward, result.done, False, info


gymnasium.register("Treasure-v0", TreasureGym)


def make(max_steps: int = 12) -> GymnasiumTextEnvironment:
    """What the registry calls: any registered environment, and where its `info` says what."""
    keys = InfoKeys(goal="mission", admissible="valid", success="won")
    # Gymnasium's own checker warns of texts that its spaces cannot hold; the contract is checked by verl_act.
    made = gymnasium.make("Treasure-v0", disable_env_checker=True)
    return GymnasiumTextEnvironment(made, max_steps=max_steps, keys=keys)


def _tasks(split: str, **settings: Any) -> list[Task]:
    return [replace(task, env=NAME) for task in list_tasks(split)]


SPEC = EnvSpec(name=NAME, make=make, tasks=_tasks, experts={"careful": TreasureExpert}, splits=tuple(TASKS))
