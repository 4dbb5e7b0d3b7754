"""Gap: TRL 0.27 shards DPO's reference by FSDP1 alone, which refuses the settings of FSDP2.

Upstream change it waits for: verl's value model without TRL, so that a newer release of TRL can be used, whose
`prepare_fsdp` shards by both.
"""

from collections.abc import Callable
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("trl.trainer.dpo_trainer:prepare_fsdp")
def as_the_model(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    model, accelerator = args
    return fsdp2_prepare_model(accelerator, model).eval() if accelerator.is_fsdp2 else wrapped(*args, **kwargs)
