"""Detects runs without a learning signal: all advantages are zero if all replies of each group earn the same reward."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from verl_act.errors import DataError

logger = logging.getLogger(__name__)

STEPS = 5
"""A run stops if none of its first `STEPS` steps has a group with two different rewards."""
SWITCH = "allow_degenerate"
"""The setting that lets a run, or the sampling of alternatives, continue: the same name in `data.act`, in recipes and
in the options of commands."""


def equal_groups(keys: Sequence[str], rewards: Sequence[float]) -> tuple[int, int]:
    """(groups with equal rewards, all groups); `keys` are `<prompt>_<session>_<output>`.

    If every prompt has one reply, as with PPO, the whole batch is one group: its rows differ for the value model.
    """
    groups: dict[str, list[float]] = {}
    for key, reward in zip(keys, rewards, strict=True):
        groups.setdefault(key.rsplit("_", 2)[0], []).append(reward)
    if max(map(len, groups.values()), default=0) < 2:
        return (int(len(set(rewards)) == 1), 1) if rewards else (0, 0)
    # A prompt with only one remaining reply says nothing.
    several = [set(group) for group in groups.values() if len(group) > 1]
    return sum(len(group) == 1 for group in several), len(several)


class LearningSignal:
    """Watches the steps of one run."""

    def __init__(self, allow_degenerate: bool = False) -> None:
        self._allowed = allow_degenerate
        self._steps = 0
        self._rewards = Counter[float]()
        self._seen = False

    def after_step(self, step: int, keys: Sequence[str], rewards: Sequence[float]) -> float | None:
        """The share of groups with equal rewards in this step; None without groups.

        Raises `DataError` if the first `STEPS` steps of the run had no difference, unless that is allowed. For a run
        that was resumed, or that had a difference before, it logs a warning instead.
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
    "(data.max_response_length) and the temperature (actor_rollout_ref.rollout.temperature). To train anyway, "
    f"set data.act.{SWITCH}=true, or {SWITCH}: true in a recipe."
)
