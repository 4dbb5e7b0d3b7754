"""Gap: two runs on one machine, each with its own Ray, send their weights through the same socket.

verl names it after Ray's job id, which is 01000000 in every new Ray, and removes an existing file before it binds: the
other run's engine then waits forever. `act/device=cpu` starts a Ray for each run, so its node's process id is added.

Upstream change it waits for: Ray's session name next to the job id in `ServerAdapter` (vllm_rollout.py) and
`_get_zmq_handle` (utils.py) of verl/workers/rollout/vllm_rollout.
"""

import os
from collections.abc import Callable
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported

NODE = "RAY_RAYLET_PID"
"""A variable that Ray sets in its workers; the engine's processes inherit it."""
_TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"


@wrap_when_imported(f"{_TRANSFER}:BucketedWeightSender.__init__", f"{_TRANSFER}:BucketedWeightReceiver.__init__")
def name_after_node(wrapped: Callable[..., None], end: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    if NODE in os.environ and end.zmq_handle.startswith("ipc://"):
        end.zmq_handle += f".{os.environ[NODE]}"
