"""Gap: verl trains on an accelerator if it finds one, even with `trainer.device=cpu`.

With the settings of `+act/device=cpu`, such a run would fail much later or be slow for no clear reason. It is refused.

Upstream change it waits for: an error in `auto_set_device` (verl/utils/device.py) instead of another device.
"""

from collections.abc import Callable
from typing import Any

from verl_act.errors import ConfigError
from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.utils.device:auto_set_device")
def refuse_another_device(
    wrapped: Callable[..., None], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    from verl.plugin.platform import get_platform

    config = args[0] if args else kwargs["config"]
    requested = getattr(getattr(config, "trainer", None), "device", None)
    device = get_platform().device_name
    if requested == "cpu" and device != "cpu":
        raise ConfigError(
            f"trainer.device=cpu, but verl has found a platform of device {device!r} and would train on that. Leave "
            "out +act/device=cpu, or use the CPU environment (make setup), whose torch and vLLM are built for it."
        )
    wrapped(*args, **kwargs)
