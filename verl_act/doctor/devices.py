"""Checks that the packages fit the device: vLLM's build, and the attention that verl asks for."""

from __future__ import annotations

from verl_act.errors import InstallationError, NotInstalledError
from verl_act.preflight.problem import local_devices
from verl_act.preflight.software import attention_packages, device_problems, missing_attention, vllm_is_cpu_build


def engine_build() -> str:
    """Check that vLLM is built for the device that verl trains on."""
    devices, cpu_build = local_devices(), vllm_is_cpu_build()
    for problem in device_problems(devices, cpu_build):
        raise InstallationError(problem.message, problem.fix())
    return "no vLLM" if cpu_build is None else f"for {'CPUs' if cpu_build else 'accelerators'}, as {devices.kind} needs"


def attention() -> str:
    """Check the packages of FlashAttention, which verl asks for by default on a GPU."""
    if local_devices().kind != "cuda":
        return "FlashAttention is for NVIDIA GPUs; +act/device=cpu asks for torch's own (sdpa)"
    packages = attention_packages()
    for problem in missing_attention(packages):
        error = InstallationError if packages else NotInstalledError
        raise error(f"verl asks for flash_attention_2 by default, and {problem.message}", problem.fix())
    return ", ".join(sorted(packages))
