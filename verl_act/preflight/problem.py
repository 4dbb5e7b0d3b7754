"""The result of a check, and the devices that checks compare with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong and why, and how to fix it. If not `fatal`, the run may succeed."""

    message: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of one node. `kind` is verl's name: cuda, npu or cpu; `memory` is of one device, in bytes."""

    kind: str
    count: int
    memory: int


def local_devices() -> Devices:
    """The devices that verl would train on here; for the CPU, one with the memory of the machine.

    None (a count of 0) if verl chose a platform without a device.
    """
    import torch
    from verl.plugin.platform import get_platform

    platform = get_platform()
    if platform.device_name != "cpu" and not torch.accelerator.is_available():
        return Devices(platform.device_name, 0, 0)
    _, total = platform.device_module.mem_get_info()
    return Devices(platform.device_name, platform.device_module.device_count(), total)
