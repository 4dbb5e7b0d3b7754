"""Gap: with FSDP2, verl always offloads the reference policy to pinned host memory.

Pinning needs an accelerator ("Cannot access accelerator device when none is available"), and on a CPU there is
nowhere to offload to. The reference policy stays where it is.

Upstream change it waits for: no offload policy on the cpu in `_build_fsdp_module`
(verl/workers/engine/fsdp/transformer_impl.py).
"""

from types import ModuleType
from typing import Any

import wrapt

MODULE = "verl.workers.engine.fsdp.transformer_impl"


def close_gap() -> None:
    """Patch the module when it is imported."""
    wrapt.when_imported(MODULE)(_patch)


def _patch(module: ModuleType) -> None:
    module.CPUOffloadPolicy = _no_offload  # type: ignore[attr-defined]


def _no_offload(**_: Any) -> Any:
    from torch.distributed.fsdp import OffloadPolicy

    return OffloadPolicy()
