"""What verl and vLLM still lack to train on a CPU: one small file per gap.

`activate()` registers the `cpu` platform. It closes the gaps only if that platform is in use, except
`requested_device`, which refuses a run that requests the CPU elsewhere. Each gap's file names the upstream change that
makes it unnecessary; `tests/test_upstream_gaps_cpu.py` fails once upstream has made it.
"""

import os


def activate() -> None:
    """Register the platform; if it is in use, set its environment variables and close the gaps.

    The plugin calls this in every process that imports verl. Variables that the user has set are kept.
    """
    # Imported here: vLLM loads `vllm_linear` from this package, which must not import verl.
    from verl_act.upstream_gaps.cpu import platform, requested_device  # noqa: F401

    if not is_cpu_platform():
        return
    import numpy as np
    import torch

    # Optimizer moments of rare tokens become denormal numbers, which are many times slower on a CPU. Set before torch
    # starts its threads, which inherit it, and after numpy has computed its limits, to avoid its warning.
    for kind in (np.float32, np.float64):
        np.finfo(kind).smallest_subnormal  # noqa: B018
    torch.set_flush_denormal(True)
    # By default Ray gives each worker a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    # By default Ray starts workers at niceness 15. The threads of a step wait for each other, so that another running
    # program makes a step twenty times slower, not twice.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Children (Ray workers, vLLM's engine) inherit these and so reach the same decision without probing again.
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    # Gap: verl registers its FSDP engines for "cuda" and "npu" only; the "cuda" ones run on CPU tensors unchanged.
    # Waits for: `device=["cuda", "npu", "cpu"]` in verl/workers/engine/fsdp/transformer_impl.py.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    from verl_act.upstream_gaps.cpu import (  # noqa: F401
        padded_micro_batches,
        process_group,
        ray_loopback,
        reference_offload,
        sampling_poll,
        shared_memory,
        vllm_distribution,
        weight_socket,
    )


def is_cpu_platform() -> bool:
    """Whether this process uses the CPU platform: by `VERL_PLATFORM`, or because torch is a CPU build."""
    requested = os.environ.get("VERL_PLATFORM", "").strip().lower()
    return requested == "cpu" if requested else torch_is_cpu_build()


def torch_is_cpu_build() -> bool:
    """Whether torch can drive no accelerator, neither by itself nor by an extension."""
    import torch

    backends = (torch.version.cuda, torch.version.hip, getattr(torch.version, "xpu", None))
    # Extensions add other backends (HPU, PrivateUse1), which are not part of the build.
    return not any(backends) and not hasattr(torch, "npu") and not torch.accelerator.is_available()


def usable_cores() -> int:
    """The number of cores that this process may use; taskset, Slurm or a container may restrict it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
