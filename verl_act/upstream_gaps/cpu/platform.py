"""A `cpu` platform for verl's registry.

Upstream change it waits for: a `PlatformCPU` in verl/plugin/platform. It is used only if torch itself cannot drive an
accelerator (a CPU build), or with `VERL_PLATFORM=cpu`, so it never takes over a machine with a GPU.

Devices are *logical*: Ray is given a number of "GPU" resources (`ray_kwargs.ray_init.num_gpus`), because verl's
resource check counts only GPU and NPU resources; a process group of n such devices is n processes on the CPU.
"""

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from verl_act.upstream_gaps.cpu import torch_is_cpu_build


def _resident_bytes(*_: Any) -> int:
    return psutil.Process().memory_info().rss


def _free_and_total_bytes(*_: Any) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _nothing(*_: Any, **__: Any) -> None:
    """Streams, caches and device selection do not exist on a CPU."""


class _CpuModule(types.ModuleType):
    """`torch.cpu`, and the functions that verl calls on a device module and `torch.cpu` lacks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name)


def _device_module() -> types.ModuleType:
    module = _CpuModule(
        "verl_act.upstream_gaps.cpu.platform.device_module", "torch.cpu with the calls verl makes on torch.cuda"
    )
    vars(module).update(
        # verl takes "available" to mean that the device has its own memory.
        is_available=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_name=lambda *_: "CPU",
        memory_allocated=_resident_bytes,
        memory_reserved=_resident_bytes,
        max_memory_allocated=_resident_bytes,
        max_memory_reserved=_resident_bytes,
        mem_get_info=_free_and_total_bytes,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
    )
    for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device", "synchronize"):
        setattr(module, name, _nothing)
    return module


@PlatformRegistry.register(platform="cpu")  # the last, so that verl's detection prefers any accelerator
class PlatformCPU(PlatformBase):
    """verl's platform interface on the CPU: gloo between processes, shared memory for weights, nothing to profile."""

    device_name = "cpu"
    vendor_name = "generic"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return torch_is_cpu_build()

    def current_device(self) -> torch.device:  # type: ignore[override]
        """`torch.device("cpu")`: verl passes the answer to `Tensor.to`, where an index would mean an accelerator."""
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        _nothing()

    def synchronize(self, device_index: int | None = None) -> None:
        _nothing()

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        _nothing()

    def empty_cache(self) -> None:
        _nothing()

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        _nothing()

    def profiler_stop(self) -> None:
        _nothing()

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None

    def rollout_env_vars(self) -> dict[str, str]:
        """For vLLM's servers: 1 GiB of KV cache, and no core binding (trainer and engine share the cores)."""
        defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return {name: os.environ.get(name, value) for name, value in defaults.items()}
