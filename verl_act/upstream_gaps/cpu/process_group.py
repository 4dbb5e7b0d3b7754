"""Gap: verl opens its process group with the backend "cpu:gloo,<device>:<backend>".

On the CPU platform that names cpu twice, which torch refuses. The module's lookup of the device name returns "cuda"
instead: torch then opens one gloo group and uses it for both device types, and no cuda tensor ever appears.

Upstream change it waits for: plain "gloo" in verl/utils/distributed.py when the device is the cpu.
"""

from types import ModuleType

import wrapt

MODULE = "verl.utils.distributed"


def close_gap() -> None:
    """Patch the module when it is imported."""
    wrapt.when_imported(MODULE)(_patch)


def _patch(module: ModuleType) -> None:
    module.get_device_name = lambda: "cuda"  # type: ignore[attr-defined]
