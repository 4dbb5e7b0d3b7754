"""Gap: verl's replay buffer looks for finished rollouts every 2 seconds, and no setting changes that.

On a GPU this is a small part of a step; a small model on a CPU finishes a whole batch in less. The interval becomes 0.1
seconds.

Upstream change it waits for: `poll_interval` under `trainer.v1.sampler` (verl/trainer/ppo/v1/trainer_base.py).
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported

POLL_SECONDS = 0.1


@wrap_when_imported("verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.__init__")
def with_short_interval(
    wrapped: Callable[..., None], _buffer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    arguments = signature(wrapped).bind_partial(*args, **kwargs).arguments
    wrapped(*args, **kwargs, **({} if "poll_interval" in arguments else {"poll_interval": POLL_SECONDS}))
