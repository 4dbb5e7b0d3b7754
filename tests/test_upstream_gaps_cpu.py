"""Every file of `verl_act/upstream_gaps/cpu`, and `value_model.py`: it does what it says, and it is still needed.

`gaps.py` tries each gap with the plugin, and in another process without it. A test of the second kind that fails brings
good news: verl or vLLM now do it themselves, and the file can go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import verl
from omegaconf import OmegaConf
from processes import clean_environment
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_cuda import PlatformCUDA

from verl_act.upstream_gaps import cpu as platform
from verl_act.upstream_gaps.cpu import platform as cpu
from verl_act.upstream_gaps.cpu import ray_loopback

GAPS = {
    "cpu_platform": ("cpu/platform.py", "Unknown platform 'cpu'"),
    "process_group": ("cpu/process_group.py", "Duplicate device type cpu"),
    "reference_offload": (
        "cpu/reference_offload.py",
        "Cannot access accelerator device" if platform.torch_is_cpu_build() else "no NVIDIA driver",
    ),
    "engine_device": ("cpu/__init__.py (VERL_ENGINE_DEVICE)", "No engine registered for device='cpu'"),
    "padded_micro_batches": ("cpu/padded_micro_batches.py", "22400 tokens with padding, 12800 without"),
    "sampling_poll": ("cpu/sampling_poll.py", "looks every 2.0 s"),
    "vllm_distribution": ("cpu/vllm_distribution.py", "No package metadata was found for vllm"),
    "shared_memory": ("cpu/shared_memory.py", "exported pointers exist"),
    "weight_socket": ("cpu/weight_socket.py", "both are ipc:"),
    "ray_loopback": ("cpu/ray_loopback.py", "listens at ::"),
    "value_model": ("value_model.py", "FlashAttention2"),
    "requested_device": ("cpu/requested_device.py", "trains on cuda"),
    "vllm_linear": ("cpu/vllm_linear.py", "size of tensor a (0)"),
}
"""Gap -> the file of `verl_act/upstream_gaps` that closes it, and what upstream says while it is open."""


def try_gaps(which: str, folder: Path, *gaps: str, **environment: str) -> dict[str, str]:
    script, outcomes = Path(__file__).with_name("gaps.py"), folder / "outcomes.json"
    run = subprocess.run(
        [sys.executable, str(script), which, str(outcomes), *gaps],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(outcomes.read_text())


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return try_gaps("with", tmp_path_factory.mktemp("with"))


@pytest.fixture(scope="module")
def without_plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("without")
    rays_default = {ray_loopback.VARIABLE: "1"}
    return try_gaps("without", folder, VERL_USE_EXTERNAL_PLUGINS="none", VLLM_PLUGINS="", **rays_default)


@pytest.fixture
def fresh_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Neither variables nor a chosen platform, and both as they were afterwards."""
    for name in ("VERL_PLATFORM", "VERL_ENGINE_DEVICE"):
        monkeypatch.setenv(name, "")  # so that what the test makes of it is undone too
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform_manager, "_current_platform", None)
    for backend in ("cuda", "hip", "xpu"):  # a CPU build, whatever this one is
        monkeypatch.setattr(torch.version, backend, None, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    yield monkeypatch


def test_every_file_is_tried() -> None:
    files = {f"cpu/{path.name}" for path in Path(platform.__file__).parent.glob("*.py")}
    assert files | {"value_model.py"} == {name.split()[0] for name, _ in GAPS.values()}


@pytest.mark.parametrize("gap", GAPS)
def test_the_gap_is_closed(gap: str, with_plugin: dict[str, str]) -> None:
    assert with_plugin[gap] == "works"


@pytest.mark.parametrize("gap", GAPS)
def test_the_gap_is_still_there_upstream(gap: str, without_plugin: dict[str, str]) -> None:
    file, complaint = GAPS[gap]
    outcome = without_plugin[gap]
    assert outcome != "works", f"upstream has closed the gap {gap!r}: verl_act/upstream_gaps/{file} can be removed."
    assert complaint in outcome, f"the gap {gap!r} looks different now ({outcome}): see verl_act/upstream_gaps/{file}."


def test_a_value_model_is_loaded_as_configured_on_every_device(tmp_path: Path) -> None:
    assert try_gaps("with", tmp_path, "value_model", VERL_PLATFORM="nvidia") == {"value_model": "works"}


@pytest.mark.slow
@pytest.mark.nightly
def test_a_build_for_accelerators_passes_these_tests(tmp_path: Path) -> None:
    """Where torch comes from PyPI, it is a CUDA build, on any machine."""
    fake = 'import wrapt\nwrapt.when_imported("torch.version")(lambda module: setattr(module, "cuda", "13.0"))\n'
    (tmp_path / "sitecustomize.py").write_text(fake)
    folder = Path(__file__).resolve().parent
    path = os.pathsep.join((str(tmp_path), str(folder.parent)))
    shown = subprocess.run(
        [sys.executable, "-c", "import torch, sys; sys.exit(torch.version.cuda != '13.0')"],
        env=clean_environment(PYTHONPATH=path),
        check=False,
    )
    assert shown.returncode == 0, "the build is not faked"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow"]
    run = subprocess.run(
        [*command, str(folder / "test_upstream_gaps_cpu.py")],
        env=clean_environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_no_setting_reaches_the_polling_interval() -> None:
    """`sampling_poll` waits for one."""
    generated = Path(verl.__file__).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml"
    assert "poll_interval" not in OmegaConf.load(generated).trainer.v1.sampler, "use it, and remove sampling_poll.py"
    assert "poll_interval" not in generated.read_text()


@pytest.mark.parametrize("accelerator", ["cuda", "hip", "xpu"])
def test_an_accelerator_build_of_torch_is_left_alone(
    accelerator: str, fresh_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert platform.is_cpu_platform()
    fresh_environment.setattr(torch.version, accelerator, "12.8", raising=False)
    assert not platform.is_cpu_platform()
    assert not cpu.PlatformCPU().is_platform_available(use_smi_check=True)
    platform.activate()
    assert "VERL_PLATFORM" not in os.environ
    assert "VERL_ENGINE_DEVICE" not in os.environ


def test_an_accelerator_that_an_extension_brings_is_left_alone(fresh_environment: pytest.MonkeyPatch) -> None:
    """As with Gaudi (HPU), or any backend of torch's PrivateUse1: torch itself is a CPU build there."""
    fresh_environment.setattr(torch.accelerator, "is_available", lambda: True)
    assert not platform.is_cpu_platform()
    platform.activate()
    assert "VERL_PLATFORM" not in os.environ


def test_verl_platform_decides_before_the_build(fresh_environment: pytest.MonkeyPatch) -> None:
    fresh_environment.setenv("VERL_PLATFORM", "nvidia")
    assert not platform.is_cpu_platform()
    platform.activate()
    assert os.environ["VERL_PLATFORM"] == "nvidia"
    assert isinstance(platform_manager.get_platform(), PlatformCUDA)
    fresh_environment.setenv("VERL_PLATFORM", " CPU ")
    fresh_environment.setattr(torch.version, "cuda", "12.8")
    assert platform.is_cpu_platform()


def test_verls_detection_prefers_an_accelerator(fresh_environment: pytest.MonkeyPatch) -> None:
    """Ours is asked last: wherever verl's own platform answers, it is taken."""
    assert platform_manager.PlatformRegistry.registered_names()[-1] == "cpu"
    fresh_environment.setattr(PlatformCUDA, "is_platform_available", lambda self, use_smi_check=False: True)
    assert platform_manager._detect_platform_name() == "nvidia"
    fresh_environment.setattr(PlatformCUDA, "is_platform_available", lambda self, use_smi_check=False: False)
    assert platform_manager._detect_platform_name() == "cpu"


def test_the_users_own_settings_stay(fresh_environment: pytest.MonkeyPatch) -> None:
    fresh_environment.setenv("VERL_ENGINE_DEVICE", "npu")
    fresh_environment.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    platform.activate()
    assert os.environ["VERL_ENGINE_DEVICE"] == "npu"
    assert cpu.PlatformCPU().rollout_env_vars()["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_threads_are_counted_by_the_cores_of_this_process(fresh_environment: pytest.MonkeyPatch) -> None:
    fresh_environment.setattr(os, "cpu_count", lambda: 64)
    fresh_environment.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    fresh_environment.setenv("OMP_NUM_THREADS", "")
    fresh_environment.delenv("OMP_NUM_THREADS")
    fresh_environment.setenv("VERL_PLATFORM", "cpu")
    platform.activate()
    assert os.environ["OMP_NUM_THREADS"] == "3"
