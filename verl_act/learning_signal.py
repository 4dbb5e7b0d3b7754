"""Does a run have anything to learn from? Where every group of replies earns one reward, all advantages are zero, and
training moves nothing however long it lasts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from verl_act.errors import DataError

logger = logging.getLogger(__name__)

STEPS = 5
"""A run stops after so many steps, from its first on, in which no group had two different rewards."""
SWITCH = "allow_degenerate"
"""The switch that lets a run, or the sampling of alternatives, continue: the same name in `data.act`, in a recipe, and
as an option of our commands."""


def equal_groups(keys: Sequence[str], rewards: Sequence[float]) -> tuple[int, int]:
    """How many groups have one reward only, and how many there are; `keys` are `<prompt>_<session>_<output>`.

    Where every prompt has one reply, as with PPO, the whole batch is the group: a value model tells its rows apart.
    """
    groups: dict[str, set[float]] = {}
    sizes = Counter[str]()
    for key, reward in zip(keys, rewards, strict=True):
        prompt = key.rsplit("_", 2)[0]
        groups.setdefault(prompt, set()).add(reward)
        sizes[prompt] += 1
    if max(sizes.values(), default=0) < 2:
        return (int(len(set(rewards)) == 1), 1) if rewards else (0, 0)
    # A prompt of which only one reply is left says nothing.
    several = [prompt for prompt, size in sizes.items() if size > 1]
    return sum(len(groups[prompt]) == 1 for prompt in several), len(several)


class LearningSignal:
    """Watches the steps of one run."""

    def __init__(self, allow_degenerate: bool = False) -> None:
        self._allowed = allow_degenerate
        self._steps = 0
        self._rewards = Counter[float]()
        self._seen = False

    def after_step(self, step: int, keys: Sequence[str], rewards: Sequence[float]) -> float | None:
        """The share of groups with equal rewards in this step; None where there is no group.

        Raises `DataError` after `STEPS` steps from the run's first on without any difference, unless that is allowed.
        A run that was resumed, or that has had a difference before, is only warned of once.
        """
        equal, groups = equal_groups(keys, rewards)
        if equal < groups or not groups:
            self._seen = self._seen or equal < groups
            self._steps = 0
            self._rewards.clear()
            return equal / groups if groups else None
        self._steps += 1
        self._rewards.update(rewards)
        if self._steps == STEPS:
            if step == STEPS and not self._seen and not self._allowed:
                raise DataError(f"{self._text()} {_REMEDY}")
            logger.warning("%s", self._text())
        return 1.0

    def _text(self) -> str:
        total = self._rewards.total()
        shares = ", ".join(f"{reward:g} in {count / total:.0%}" for reward, count in self._rewards.most_common(3))
        return (
            f"{self._steps} steps in a row had no learning signal: in every group all replies earned the same reward "
            f"({shares} of {total} replies), so every advantage is zero."
        )


_REMEDY = (
    "Read some replies (trainer.rollout_data_dir), then check the template (data.act.template), the length of replies "
    "(data.max_response_length) and the temperature (actor_rollout_ref.rollout.temperature). To train all the same, "
    f"set data.act.{SWITCH}=true, or {SWITCH}: true in a recipe."
)
