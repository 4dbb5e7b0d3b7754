"""Gap: vLLM's CPU linear layer packs its weights at load and drops the originals, so they cannot be updated.

RL loads new weights into the engine after every step. The layers keep their weights and compute with
`torch.nn.functional.linear`. Registered as a vLLM general plugin, because it must hold in vLLM's own processes; it acts
only in those that verl started on the CPU platform (they inherit `VERL_PLATFORM=cpu`).

Upstream change it waits for: `weight_loader` support for packed CPU weights in vLLM
(vllm/model_executor/layers/utils.py, `dispatch_cpu_unquantized_gemm`).
"""

import os
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


def register() -> None:
    """The `vllm.general_plugins` entry point."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu":
        return

    @wrap_when_imported("vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm")
    def keep_weights(_wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from torch.nn.functional import linear

        layer = args[0] if args else kwargs["layer"]
        layer.cpu_linear = linear
