"""Gap: verl trains on an accelerator if it finds one, even with `trainer.device=cpu`.

With the settings of `+act/device=cpu`, such a run would fail much later or be slow for no clear reason. It is refused.

Upstream change it waits for: an error in `auto_set_device` (verl/utils/device.py) instead of another device.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

MODULE = "verl.utils.device"


def close_gap() -> None:
    """Patch the module when it is imported."""
    wrapt.when_imported(MODULE)(_patch)


def _patch(module: ModuleType) -> None:
    def unless_cpu_was_requested(
        wrapped: Callable[..., None], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        config = args[0] if args else kwargs["config"]
        requested = getattr(getattr(config, "trainer", None), "device", None)
        device = module.get_platform().device_name
        if requested == "cpu" and device != "cpu":
            from verl_act.errors import ConfigError  # not with every import of verl

            raise ConfigError(
                f"trainer.device=cpu, but verl has found a platform of device {device!r} and would train on that. Set "
                "VERL_PLATFORM=cpu in the environment, or leave out +act/device=cpu."
            )
        wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "auto_set_device", unless_cpu_was_requested)
