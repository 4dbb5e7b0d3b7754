"""What the engine asks of vLLM: read from vLLM's own configuration, without starting a model."""

from __future__ import annotations

from typing import Any

import pytest

from verl_act.chain.recipe import embedded_models
from verl_act.engine import start_vllm, vllm_arguments
from verl_act.settings.model import ModelSettings

MODEL = str(embedded_models()["alfworld"])
GIB = 2**30


@pytest.fixture
def h100s(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM sees eight H100s."""
    from vllm.platforms import current_platform

    for name, value in {
        "is_cpu": False,
        "get_device_total_memory": 80 * GIB,
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "device_count": 8,
    }.items():
        monkeypatch.setattr(type(current_platform), name, lambda *_, value=value, **__: value, raising=False)


def config_of(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> Any:
    """The configuration with which `AsyncLLM` would start."""
    from vllm.v1.engine.async_llm import AsyncLLM

    started: dict[str, Any] = {}
    monkeypatch.setattr(AsyncLLM, "__init__", lambda self, **options: started.update(options))
    monkeypatch.setattr(AsyncLLM, "shutdown", lambda self: None)
    settings = ModelSettings(model=MODEL, max_model_len=1024, engine_options=extra)
    start_vllm(MODEL, vllm_arguments(settings))
    return started["vllm_config"]


@pytest.mark.usefixtures("h100s")
def test_a_gpu_gets_the_batch_of_vllms_offline_class(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = config_of(monkeypatch, data_parallel_size=1).scheduler_config
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (1024, 16384)


@pytest.mark.usefixtures("h100s")
@pytest.mark.parametrize(
    ("extra", "replicas"),
    [
        ({}, 8),
        ({"tensor_parallel_size": 2}, 4),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 2),
        ({"tensor_parallel_size": 3}, 2),
        ({"tensor_parallel_size": 16}, 1),
        ({"data_parallel_size": 2}, 2),
    ],
)
def test_every_gpu_runs_a_replica_or_a_share_of_one(extra: dict[str, Any], replicas: int) -> None:
    arguments = vllm_arguments(ModelSettings(model=MODEL, engine_options=extra))
    assert arguments["data_parallel_size"] == replicas


def test_a_cpu_runs_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(monkeypatch)
    assert config.parallel_config.data_parallel_size == 1
    assert config.scheduler_config.max_num_batched_tokens == 8192
    assert config.scheduler_config.max_num_seqs == 256
