"""Dress rehearsal of memory: what a run needs on each device and on disk, by arithmetic.

Counted are FSDP's stages, whose shards are even: verl's RL and SFT trainers, and TRL's for DPO. Parameters, gradients,
Adam's moments and vLLM's share are exact; activations are a lower bound, so that a run that fits here may still not
fit. The reference policy of RL is in the host's memory, where verl keeps every model that is `forward_only`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from verl_act.preflight.lengths import longest_sample, sequence_parallel
from verl_act.preflight.model import ModelShape
from verl_act.preflight.problem import Devices, Problem

_GRADIENT_BYTES = 4
_ADAM_BYTES = 8
"""Two moments in 32 bits."""
CONTENT_BYTES = {"model": 4, "optimizer": _ADAM_BYTES, "hf_model": 4}
"""Content of a checkpoint -> bytes a parameter: weights, Adam's moments and the exported model, all in 32 bits."""
_SERVED_BYTES = 2
_RUNTIME_BYTES = 2e9
"""CUDA contexts of trainer and engine, and NCCL's buffers: an estimate, about 1 GB a process."""
_DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
_UTILIZATION = "actor_rollout_ref.rollout.gpu_memory_utilization"
_PARALLEL = "actor_rollout_ref.rollout.tensor_model_parallel_size"
_ACTOR_FSDP = "actor_rollout_ref.actor.fsdp_config"
_RL_BUDGET, _SFT_BUDGET = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", "data.max_token_len_per_gpu"


@dataclass(frozen=True, slots=True)
class Phase:
    """What is on one device at the same time: part -> bytes. A part that is offloaded or absent is 0."""

    name: str
    parts: Mapping[str, float]
    at_most: float = 0
    """Those bytes that the longest samples take, and others do not."""

    @property
    def needed(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {_gb(size)}" for name, size in self.parts.items() if size)


def device_memory(config: Any, model: ModelShape, devices: Devices) -> list[Phase]:
    """What the stage needs on each device in every phase.

    Nothing is counted with other backends than FSDP, on the CPU, and where there is no device.
    """
    if devices.kind == "cpu" or not devices.count:
        return []
    world = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if "actor_rollout_ref" in config:
        return _of_rl(config, model, devices, world)
    return _of_sft(config, model, world) if "engine" in config else _of_dpo(config, model, world)


def _of_rl(config: Any, model: ModelShape, devices: Devices, world: int) -> list[Phase]:
    """While the engine samples, and while the policy is updated with the engine asleep."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if not str(actor.strategy).startswith("fsdp"):
        return []

    def policy(*, in_use: bool) -> dict[str, float]:
        return _trained(actor.fsdp_config, actor.strategy, model, world, lora=_lora(config), in_use=in_use)

    value: dict[str, float] = {}
    if config.algorithm.adv_estimator == "gae":  # as large as the policy, from which it begins
        critic = config.critic
        value = {"value model": sum(_trained(critic.fsdp, critic.strategy, model, world, in_use=False).values())}
    # A budget is for each device, whereas the devices of a sequence share a padded batch.
    padded = longest_sample(config) * (actor.ppo_micro_batch_size_per_gpu or 1) / sequence_parallel(actor)
    tokens = actor.ppo_max_token_len_per_gpu if actor.use_dynamic_bsz else padded
    return [
        Phase("sampling", {**policy(in_use=False), **value, "engine": rollout.gpu_memory_utilization * devices.memory}),
        Phase("training", {**policy(in_use=True), **value, "activations": _activations(model, tokens or 0)}),
    ]


def _of_sft(config: Any, model: ModelShape, world: int) -> list[Phase]:
    if not str(config.engine.get("strategy")).startswith("fsdp"):
        return []
    data, engine = config.data, config.engine
    tokens = data.max_token_len_per_gpu if data.use_dynamic_bsz else data.micro_batch_size_per_gpu * data.max_length
    trained = _trained(engine, engine.strategy, model, world, lora=_lora(config), in_use=True)
    return [Phase("training", {**trained, "activations": _activations(model, tokens)})]


def _of_dpo(config: Any, model: ModelShape, world: int) -> list[Phase]:
    """Two replies a pair, which are padded to the longest of their micro-batch."""
    share = model.parameters / world
    trained = {"parameters": 4 * share, "adam": _ADAM_BYTES * share, "gradients": _GRADIENT_BYTES * share}
    activations = _activations(model, 2 * config.data.micro_batch_size_per_gpu * config.data.max_length)
    return [Phase("training", {**trained, "reference": 4 * share, "activations": activations}, activations)]


def _trained(
    fsdp: Any, strategy: str, model: ModelShape, world: int, *, lora: bool = False, in_use: bool
) -> dict[str, float]:
    """A model with its optimizer. verl brings what it has offloaded back to the device to use it, but for FSDP2's
    `offload_policy`."""
    if strategy == "fsdp2" and fsdp.offload_policy:
        return {}
    shards = fsdp.fsdp_size if 0 < fsdp.fsdp_size < world else world
    share = model.parameters / shards
    updated = 0 if lora else share
    return {
        "parameters": share * _DTYPE_BYTES[str(fsdp.model_dtype)] if in_use or not fsdp.param_offload else 0,
        "adam": updated * _ADAM_BYTES if in_use or not fsdp.optimizer_offload else 0,
        "gradients": updated * _GRADIENT_BYTES if in_use else 0,
    }


def memory_problems(config: Any, model: ModelShape, devices: Devices) -> list[Problem]:
    """Whether each device holds what the run needs, phase by phase, and the engine's share one sequence."""
    problems = []
    for phase in _too_large(config, model, devices):
        message = (
            f"{phase.name} needs {_gb(phase.needed)} of each device's {_gb(devices.memory)} ({phase}), and some "
            f"{_gb(_RUNTIME_BYTES)} for CUDA and NCCL."
        )
        changes = list(_smaller(config, model, devices, phase))
        fatal = phase.needed - phase.at_most > devices.memory
        problems.append(Problem(message, _remedy(changes, phase.name, config, model, devices), fatal))
    needed, share = _engine_bytes(config, model, devices)
    if needed > share:
        message = (
            f"the engine's share of each device is {_gb(share)}, and the model with one sequence takes {_gb(needed)}."
        )
        changes = [(_UTILIZATION, math.ceil(100 * needed / devices.memory) / 100)]
        parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
        changes += [(_PARALLEL, size) for size in _doubled(parallel, config.trainer.n_gpus_per_node)]
        problems.append(Problem(message, _remedy(changes, "engine", config, model, devices)))
    return problems


def _too_large(config: Any, model: ModelShape, devices: Devices) -> list[Phase]:
    phases = device_memory(config, model, devices)
    return [phase for phase in phases if phase.needed + _RUNTIME_BYTES > devices.memory]


def _engine_bytes(config: Any, model: ModelShape, devices: Devices) -> tuple[float, float]:
    """What the engine needs on each device, its weights and the cache of one sequence; and its share."""
    if "actor_rollout_ref" not in config or devices.kind == "cpu" or not devices.count:
        return 0, 0
    rollout = config.actor_rollout_ref.rollout
    parallel = rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size
    length = rollout.max_model_len or longest_sample(config)
    needed = _SERVED_BYTES * (model.parameters + model.kv_values * length) / parallel
    return needed, rollout.gpu_memory_utilization * devices.memory


def _faults(config: Any, model: ModelShape, devices: Devices) -> set[str]:
    needed, share = _engine_bytes(config, model, devices)
    return {phase.name for phase in _too_large(config, model, devices)} | ({"engine"} if needed > share else set())


def _remedy(changes: Sequence[tuple[str, Any]], fault: str, config: Any, model: ModelShape, devices: Devices) -> str:
    """The changes of which each alone mends the fault and makes no other; or else all of them together, if they do."""
    before = _faults(config, model, devices)

    def mends(chosen: Mapping[str, Any]) -> bool:
        changed = deepcopy(config)
        for key, value in chosen.items():
            OmegaConf.update(changed, key, value)
        return _faults(changed, model, devices) <= before - {fault}

    alone: dict[str, Any] = {}
    for key, value in changes:
        if key not in alone and mends({key: value}):
            alone[key] = value
    if not alone and (not changes or not mends(dict(changes))):
        return "Use more or larger devices, or a smaller model."
    words = [f"`{key}={str(value).lower()}`" for key, value in (alone or dict(changes)).items()]
    return f"Set {(', or ' if alone else ' and ').join(words)}."


def _smaller(config: Any, model: ModelShape, devices: Devices, phase: Phase) -> Iterator[tuple[str, Any]]:
    """Settings that may make the phase smaller."""
    room = devices.memory - _RUNTIME_BYTES - phase.needed
    if phase.name == "sampling":
        yield _UTILIZATION, int(100 * max(0, room + phase.parts["engine"]) / devices.memory) / 100
        yield f"{_ACTOR_FSDP}.optimizer_offload", True
        yield f"{_ACTOR_FSDP}.param_offload", True
    elif (key := _token_budget(config)) is not None:
        tokens = int((room + phase.parts["activations"]) / _activations(model, 1) / 1024) * 1024
        if tokens >= longest_sample(config):
            yield key, tokens
    elif "reference" in phase.parts:
        yield "data.micro_batch_size_per_gpu", 1
    for count in _doubled(config.trainer.n_gpus_per_node, devices.count):
        yield "trainer.n_gpus_per_node", count


def _doubled(count: int, most: int) -> Iterator[int]:
    while (count := 2 * count) <= most:
        yield count


def _token_budget(config: Any) -> str | None:
    """The key of the tokens in a micro-batch; None where micro-batches are made of rows."""
    if "actor_rollout_ref" in config:
        return _RL_BUDGET if config.actor_rollout_ref.actor.use_dynamic_bsz else None
    return _SFT_BUDGET if config.data.get("use_dynamic_bsz") else None


def checkpoint_bytes(config: Any, model: ModelShape) -> tuple[float, int | None]:
    """Bytes of one checkpoint, and the most that are on disk at once; None if the configuration sets no bound.

    Counts what `checkpoint.save_contents` lists (`CONTENT_BYTES`). For DPO, TRL keeps one.
    """
    reinforced = "actor_rollout_ref" in config
    if not reinforced and "engine" not in config:
        return float((4 + _ADAM_BYTES) * model.parameters), 2
    contents = (config.actor_rollout_ref.actor if reinforced else config).checkpoint.save_contents
    sizes = {**CONTENT_BYTES, "optimizer": 0} if _lora(config) else CONTENT_BYTES
    size = float(sum(sizes.get(name, 0) for name in contents) * model.parameters)
    if reinforced and config.algorithm.adv_estimator == "gae":
        size += 12 * model.parameters
    kept = config.trainer.max_actor_ckpt_to_keep if reinforced else config.trainer.max_ckpt_to_keep
    # A new one is written before the oldest goes.
    return size, None if kept is None else kept + 1


def disk_problems(config: Any, model: ModelShape, free: int) -> list[Problem]:
    """Whether the checkpoints of the run fit into `free` bytes."""
    size, most = checkpoint_bytes(config, model)
    key = f"trainer.max_{'actor_' if 'actor_rollout_ref' in config else ''}ckpt_to_keep"
    steps, every = config.trainer.get("total_training_steps"), config.trainer.save_freq
    if most is None and steps and isinstance(every, int) and every > 0:
        most = -(-steps // every)
    if most is None:
        critic = config.get("algorithm", {}).get("adv_estimator") == "gae"
        return [
            Problem(
                f"every checkpoint takes {_gb(size)}, and nothing bounds how many are kept.",
                f"Set `{key}=2`{' and `trainer.max_critic_ckpt_to_keep=2`' if critic else ''}.",
                fatal=False,
            )
        ]
    if size * most <= free:
        return []
    fewer = f", lower `{key}`" if most > 2 else ""
    return [
        Problem(
            f"checkpoints take {_gb(size * most)} ({most} of {_gb(size)}, one of them while the next is written), and "
            f"{_gb(free)} are free.",
            f"Free space{fewer}, or choose another folder (`trainer.default_local_dir`).",
        )
    ]


def _lora(config: Any) -> bool:
    model = config.actor_rollout_ref.model if "actor_rollout_ref" in config else config.model
    nested = model.get("lora") or {}
    return (model.get("lora_rank") or 0) > 0 or (nested.get("rank") or 0) > 0


def _activations(model: ModelShape, tokens: float) -> float:
    """Lower bound of one micro-batch: logits and their gradient, and the inputs of all layers, in 16 bits.

    Without gradient checkpointing, layers keep many times as much; that is not counted.
    """
    return tokens * 2.0 * (2 * model.vocabulary + model.layers * model.hidden_size)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
