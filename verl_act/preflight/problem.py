"""The result of a check, and the devices that checks compare with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

Words = Callable[[str], str]
"""From a word of verl's command line, `KEY=VALUE` or `KEY`, to what the user types for it."""
NO_DEVICE = (
    "nvidia-smi must list the GPUs here: install the driver, start a container with --gpus all, and see that "
    "CUDA_VISIBLE_DEVICES hides none."
)
"""The remedy where no accelerator is visible."""
_WORD = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong and why, and how to fix it. If not `fatal`, the run may succeed.

    In `remedy`, words of verl's command line stand between backticks.
    """

    message: str
    remedy: str
    fatal: bool = True

    def fix(self, words: Words = str) -> str:
        """The remedy in the words that the user types, by default those of verl's command line."""
        return _WORD.sub(lambda found: shlex.quote(words(found[1])), self.remedy)

    def __str__(self) -> str:
        return f"{self.message} {self.fix()}"


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
