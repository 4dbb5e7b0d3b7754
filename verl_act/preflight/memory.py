"""Dress rehearsal of memory: what a run needs on each device and on disk, by arithmetic.

Only FSDP is counted, whose shards are even. Parameters, gradients, Adam's moments and vLLM's share are exact;
activations are a lower bound, so that a run that fits here may still not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl_act.preflight.lengths import sequence_parallel
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


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on one device, by what they hold. A part that is offloaded or absent is 0."""

    parameters: float = 0
    adam: float = 0
    gradients: float = 0
    reference: float = 0
    value_model: float = 0
    activations: float = 0
    engine: float = 0

    @property
    def generating(self) -> float:
        """While the engine samples: the trainer keeps its shards, but no gradients."""
        return self.parameters + self.adam + self.reference + self.value_model + self.engine

    @property
    def training(self) -> float:
        """While the policy is updated, with the engine asleep."""
        kept = self.parameters + self.adam + self.reference + self.value_model
        return kept + self.gradients + self.activations

    def listing(self, *, training: bool) -> str:
        """The parts that are not 0, as text."""
        names = ["parameters", "adam", "reference", "value_model"]
        names += ["gradients", "activations"] if training else ["engine"]
        parts = {name: getattr(self, name) for name in names}
        return ", ".join(f"{name.replace('_', ' ')} {_gb(size)}" for name, size in parts.items() if size)


def device_memory(config: Any, model: ModelShape, devices: Devices) -> DeviceMemory | None:
    """The bytes that an RL run needs on each device; None where they are not counted.

    That is with Megatron, in SFT, on the CPU, and where there is no device.
    """
    if "actor_rollout_ref" not in config or devices.kind == "cpu" or not devices.count:
        return None
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if not str(actor.strategy).startswith("fsdp"):
        return None
    world = config.trainer.n_gpus_per_node * config.trainer.nnodes
    fsdp = actor.fsdp_config
    shards = _shards(fsdp, world)
    share = model.parameters / shards
    trained = 0 if _lora(config) else share
    # A budget is for each device, whereas the devices of a sequence share a padded batch.
    tokens = actor.ppo_max_token_len_per_gpu if actor.use_dynamic_bsz else _padded_tokens(config)
    return DeviceMemory(
        parameters=0 if fsdp.param_offload or fsdp.offload_policy else share * _DTYPE_BYTES[str(fsdp.model_dtype)],
        adam=0 if fsdp.optimizer_offload or fsdp.offload_policy else trained * _ADAM_BYTES,
        gradients=0 if fsdp.offload_policy else trained * _GRADIENT_BYTES,
        reference=_reference(config, model, world),
        value_model=_value_model(config, model, world),
        activations=_activations(model, tokens or 0),
        engine=rollout.gpu_memory_utilization * devices.memory,
    )


def memory_problems(config: Any, model: ModelShape, devices: Devices) -> list[Problem]:
    """Whether each device holds what the run needs while it samples and while it trains."""
    memory = device_memory(config, model, devices)
    if memory is None:
        return []
    problems = []
    for training, needed in ((False, memory.generating), (True, memory.training)):
        if needed + _RUNTIME_BYTES > devices.memory:
            phase = "training" if training else "sampling"
            problems.append(
                Problem(
                    f"{phase} needs {_gb(needed)} of each device's {_gb(devices.memory)} "
                    f"({memory.listing(training=training)}), and some {_gb(_RUNTIME_BYTES)} for CUDA and NCCL.",
                    _remedy(memory, training=training),
                    fatal=needed > devices.memory,
                )
            )
    return problems + _engine_problems(config, model, devices)


def _engine_problems(config: Any, model: ModelShape, devices: Devices) -> list[Problem]:
    """Whether the engine's share holds its weights and the cache of one sequence."""
    rollout = config.actor_rollout_ref.rollout
    parallel = rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size
    length = rollout.max_model_len or config.data.max_prompt_length + config.data.max_response_length
    needed = _SERVED_BYTES * (model.parameters + model.kv_values * length) / parallel
    share = rollout.gpu_memory_utilization * devices.memory
    if needed <= share:
        return []
    return [
        Problem(
            f"the engine's share of each device is {_gb(share)}, and the model with one sequence of {length} tokens "
            f"takes {_gb(needed)}.",
            "Raise actor_rollout_ref.rollout.gpu_memory_utilization or .tensor_model_parallel_size.",
        )
    ]


def checkpoint_bytes(config: Any, model: ModelShape) -> tuple[float, int | None]:
    """Bytes of one checkpoint, and the most that are on disk at once; None if the configuration sets no bound.

    Counts what `checkpoint.save_contents` lists (`CONTENT_BYTES`).
    """
    reinforced = "actor_rollout_ref" in config
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
    reinforced = "actor_rollout_ref" in config
    key = f"trainer.max_{'actor_' if reinforced else ''}ckpt_to_keep"
    steps, every = config.trainer.get("total_training_steps"), config.trainer.save_freq
    if most is None and steps and isinstance(every, int) and every > 0:
        most = -(-steps // every)
    if most is None:
        return [
            Problem(
                f"every checkpoint takes {_gb(size)}, and nothing bounds how many are kept.",
                f"Set {key}=2 (and trainer.max_critic_ckpt_to_keep=2 with a value model).",
                fatal=False,
            )
        ]
    if size * most <= free:
        return []
    return [
        Problem(
            f"checkpoints take {_gb(size * most)} ({most} of {_gb(size)}, one of them while the next is written), and "
            f"{_gb(free)} are free.",
            f"Free space, lower {key}, or choose another folder (trainer.default_local_dir).",
        )
    ]


def _lora(config: Any) -> bool:
    model = config.actor_rollout_ref.model if "actor_rollout_ref" in config else config.model
    nested = model.get("lora") or {}
    return (model.get("lora_rank") or 0) > 0 or (nested.get("rank") or 0) > 0


def _shards(fsdp: Any, world: int) -> int:
    """Devices over which FSDP shards a model."""
    size: int = fsdp.fsdp_size
    return size if 0 < size < world else world


def _reference(config: Any, model: ModelShape, world: int) -> float:
    """Shard of the reference policy. With LoRA, the policy without its adapters is the reference."""
    needed = config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    fsdp = config.actor_rollout_ref.ref.fsdp_config
    if not needed or _lora(config) or fsdp.param_offload or fsdp.offload_policy:
        return 0
    shards = _shards(fsdp, world)
    return model.parameters / shards * _DTYPE_BYTES[str(fsdp.model_dtype)]


def _value_model(config: Any, model: ModelShape, world: int) -> float:
    """Shard of PPO's value model with its optimizer, counted as large as the policy, from which it begins."""
    if config.algorithm.adv_estimator != "gae":
        return 0
    fsdp = config.critic.fsdp
    if fsdp.offload_policy:
        return 0
    shards = _shards(fsdp, world)
    size = 0 if fsdp.param_offload else _DTYPE_BYTES[str(fsdp.model_dtype)]
    return model.parameters / shards * (size + (0 if fsdp.optimizer_offload else _ADAM_BYTES))


def _activations(model: ModelShape, tokens: float) -> float:
    """Lower bound of one micro-batch: logits and their gradient, and the inputs of all layers, in 16 bits.

    Without gradient checkpointing, layers keep many times as much; that is not counted.
    """
    return tokens * 2.0 * (2 * model.vocabulary + model.layers * model.hidden_size)


def _padded_tokens(config: Any) -> float:
    actor, length = config.actor_rollout_ref.actor, config.data.max_prompt_length + config.data.max_response_length
    return float(length * (actor.ppo_micro_batch_size_per_gpu or 1) / sequence_parallel(actor))


def _remedy(memory: DeviceMemory, *, training: bool) -> str:
    options = []
    if memory.reference:
        options.append("offload the reference (actor_rollout_ref.ref.fsdp_config.param_offload=true)")
    if not training:
        options.append("lower actor_rollout_ref.rollout.gpu_memory_utilization")
    elif memory.activations > memory.gradients:
        options.append("lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu")
    if memory.adam:
        options.append("offload Adam (actor_rollout_ref.actor.fsdp_config.optimizer_offload=true)")
    options.append("use more devices (trainer.n_gpus_per_node)")
    text = ", or ".join(options)
    return f"{text[0].upper()}{text[1:]}."


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
