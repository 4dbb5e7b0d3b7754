"""Gap: verl's weight receiver closes its shared memory while tensors still view it.

Without IPC, weights are sent through shared memory and copied by `tensor.to(device)`. On the CPU that returns the same
tensor, the engine keeps it, and closing the segment raises BufferError. Each weight is cloned instead.

Upstream change it waits for: `tensor.to(self.device, copy=True)` in
verl/workers/rollout/vllm_rollout/bucketed_weight_transfer.py.
"""

from collections.abc import Callable
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer:BucketedWeightReceiver.receive_weights")
def receive_copies(wrapped: Callable[..., Any], _receiver: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def bucket_of(on_bucket_received: Callable[[list[Any], bool], None]) -> Any:
        def deliver(weights: list[Any], is_last: bool) -> None:
            on_bucket_received([(name, weight.clone()) for name, weight in weights], is_last)

        return wrapped(deliver)

    return bucket_of(*args, **kwargs)
