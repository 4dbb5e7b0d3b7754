"""What verl and vLLM still lack to train on a CPU: one small file per gap.

`activate()` registers the `cpu` platform and, only where that platform is the one in use, closes the gaps (elsewhere
only `asked_device`: a run that asked for the CPU is refused). Each gap's
file names the upstream change that makes it unnecessary; `tests/test_platform_gaps.py` fails when upstream has made it.
"""

import os


def activate() -> None:
    """Register the platform; where it is in use, set what its processes need and arrange for the patches.

    Called from the plugin in every process that imports verl. Environment variables the user has set are left alone.
    """
    # Imported here: vLLM loads `vllm_linear` from this package by itself, which must not import verl.
    from verl_act.upstream_gaps.cpu import asked_device
    from verl_act.upstream_gaps.cpu.platform import is_cpu_platform, register_cpu_platform

    register_cpu_platform()
    asked_device.close_gap()
    if not is_cpu_platform():
        return
    import numpy as np
    import torch

    from verl_act.upstream_gaps.cpu import (
        process_group,
        ray_loopback,
        reference_offload,
        sampling_poll,
        shared_memory,
        value_model,
        vllm_distribution,
        weight_socket,
    )

    # Optimizer moments of rare words become denormal numbers, which a CPU handles many times slower. Set before torch
    # starts its threads, which inherit it, and after numpy has worked out its limits, which it would else warn about.
    for kind in (np.float32, np.float64):
        np.finfo(kind).smallest_subnormal  # noqa: B018
    torch.set_flush_denormal(True)
    # Ray would give each of its workers a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    # Ray starts its workers at niceness 15. The threads of a step wait for each other, so that one program beside them
    # makes a step take not twice but twenty times as long.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Children (Ray workers, vLLM's engine) inherit these and so reach the same decision without probing again.
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    # Gap: verl registers its FSDP engines for "cuda" and "npu" only; the "cuda" ones run on CPU tensors unchanged.
    # Waits for: `device=["cuda", "npu", "cpu"]` in verl/workers/engine/fsdp/transformer_impl.py.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    gaps = (process_group, ray_loopback, reference_offload, sampling_poll, shared_memory, value_model)
    for gap in (*gaps, vllm_distribution, weight_socket):
        gap.close_gap()


def usable_cores() -> int:
    """The cores that this process may run on; under taskset, Slurm or a container's cpuset fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
