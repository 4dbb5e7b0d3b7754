"""Gap: with FSDP2, verl always offloads the reference policy to pinned host memory.

Pinning needs an accelerator ("Cannot access accelerator device when none is available"), and on a CPU there is
nowhere to offload to. The reference policy stays where it is.

Upstream change it waits for: no offload policy on the cpu in `_build_fsdp_module`
(verl/workers/engine/fsdp/transformer_impl.py).
"""

from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.workers.engine.fsdp.transformer_impl:CPUOffloadPolicy")
def no_offload(*_: Any) -> Any:
    from torch.distributed.fsdp import OffloadPolicy

    return OffloadPolicy()
