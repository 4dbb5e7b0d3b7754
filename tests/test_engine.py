"""What the engine asks of vLLM: read from vLLM's own configuration, without starting a model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from samples import embedded_models

from verl_act.engine import Engine, start_vllm, vllm_arguments
from verl_act.settings.model import ModelSettings, Sampling

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


class Recorded:
    """Stands where `AsyncLLM` would: remembers the parameters of every request."""

    def __init__(self, v2_runner: bool) -> None:
        parallel, scheduler = SimpleNamespace(data_parallel_size=1), SimpleNamespace(max_num_seqs=4)
        self.vllm_config = SimpleNamespace(
            parallel_config=parallel, scheduler_config=scheduler, use_v2_model_runner=v2_runner
        )
        self.seeds: list[int | None] = []

    async def generate(self, prompt: Any, parameters: Any, request: str) -> AsyncIterator[Any]:
        self.seeds.append(parameters.seed)
        yield SimpleNamespace(outputs=[SimpleNamespace(text="look", token_ids=[1])])

    def shutdown(self) -> None: ...


@pytest.mark.parametrize(
    ("on_cpu", "v2_runner", "options", "seeded"),
    [
        (True, False, {}, True),
        (False, True, {}, True),
        (False, False, {}, False),  # its sampler handles seeded requests one by one
        (False, False, {"seed_requests": True}, True),
        (True, False, {"seed_requests": False}, False),
    ],
)
def test_a_request_has_a_seed_of_its_own_where_that_is_free_or_asked_for(
    on_cpu: bool, v2_runner: bool, options: dict[str, Any], seeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms import current_platform

    vllm = Recorded(v2_runner)
    started: dict[str, Any] = {}
    for name, value in {"is_cpu": on_cpu, "device_count": 1}.items():
        monkeypatch.setattr(type(current_platform), name, lambda *_, value=value: value, raising=False)

    def start(model: str, arguments: dict[str, Any]) -> Recorded:
        started.update(arguments)
        return vllm

    monkeypatch.setattr("verl_act.engine.start_vllm", start)
    with Engine(ModelSettings(model=MODEL, max_model_len=1024, engine_options=options), seed=7) as engine:
        for seed in (11, 12):
            engine.run(engine.reply([{"role": "user", "content": "go"}], Sampling(), seed=seed))
    assert vllm.seeds == ([11, 12] if seeded else [None, None])
    assert started["seed"] == 7 and "seed_requests" not in started
