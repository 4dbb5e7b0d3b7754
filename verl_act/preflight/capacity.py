"""Whether there are as many devices as a run asks for, and environment processes for the episodes of a batch."""

from __future__ import annotations

from typing import Any

from verl_act.preflight.problem import NO_DEVICE, Devices, Problem


def count_problems(config: Any, devices: Devices) -> list[Problem]:
    """Whether the machine has the devices of a stage, and whether they divide into the engines of its rollout.

    verl itself checks only when the stage starts. The devices of several nodes are unknown here.
    """
    requested, nodes = config.trainer.n_gpus_per_node, config.trainer.nnodes
    if nodes == 1 and requested > devices.count:
        message = f"the stage asks for {requested} devices, and this machine has {devices.count}."
        remedy = f"Set `trainer.n_gpus_per_node={devices.count}`, or name a Ray cluster by $RAY_ADDRESS."
        return [Problem(message, remedy if devices.count else NO_DEVICE)]
    if "actor_rollout_ref" not in config:
        return []
    key = "actor_rollout_ref.rollout.tensor_model_parallel_size"
    engine = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    if requested * nodes % engine == 0:
        return []
    fitting = max(size for size in range(1, engine) if requested * nodes % size == 0)
    message = f"{requested * nodes} devices cannot be divided into engines of {engine} ({key})."
    return [Problem(message, f"Set `{key}={fitting}`, or another number of devices (`trainer.n_gpus_per_node`).")]


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
            f"Set `data.act.episode.actors={-(-batch // max_episodes)}` or more.",
        )
    ]
