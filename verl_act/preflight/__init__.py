"""What would stop or spoil a training run after hours, found in seconds from its configuration, model and devices.

Each check is a function of the composed verl configuration that returns a list of `Problem`s. None starts an engine or
loads weights.
"""

from __future__ import annotations

from typing import Any

from verl_act.preflight.lengths import length_problems
from verl_act.preflight.memory import disk_problems, memory_problems
from verl_act.preflight.model import ModelShape, model_shape
from verl_act.preflight.problem import Devices, Problem, local_devices
from verl_act.preflight.software import (
    attention_packages,
    attention_problems,
    device_problems,
    engine_problems,
    vllm_is_cpu_build,
)

__all__ = ["Devices", "ModelShape", "Problem", "check_training", "local_devices", "model_shape"]


def check_training(config: Any, model: ModelShape | None, devices: Devices, free: int | None = None) -> list[Problem]:
    """Problems of a stage with this composed configuration on these devices: of verl's RL or SFT trainer, or DPO's
    settings.

    `model` is that of the initial policy, whose size later stages share; without it, memory and disk are not checked.
    `free` are the bytes of disk for checkpoints; None: not checked.
    """
    problems = [
        *device_problems(devices, vllm_is_cpu_build()),
        *attention_problems(config, devices, attention_packages() if devices.kind == "cuda" else {}),
        *engine_problems(config),
        *length_problems(config, model),
    ]
    if model is not None:
        problems += memory_problems(config, model, devices)
        problems += disk_problems(config, model, free) if free is not None else []
    return problems
