"""Whether environment processes have capacity for the episodes of a batch."""

from __future__ import annotations

from typing import Any

from verl_act.preflight.problem import Problem


def capacity_problems(config: Any, max_episodes: int | None) -> list[Problem]:
    """Whether the actors of a run with live episodes hold a batch; `max_episodes` is the limit of one process.

    What exceeds it is refused when it begins, and the batch lacks those episodes.
    """
    batch, actors = config.data.train_batch_size * config.actor_rollout_ref.rollout.n, config.data.act.episode.actors
    if max_episodes is None or batch <= actors * max_episodes:
        return []
    return [
        Problem(
            f"a batch has {batch} live episodes (data.train_batch_size x actor_rollout_ref.rollout.n), and "
            f"data.act.episode.actors={actors} holds {actors * max_episodes}.",
            f"Set data.act.episode.actors to at least {-(-batch // max_episodes)}.",
        )
    ]
