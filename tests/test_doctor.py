"""The doctor on this installation as it is, and on the same with faults planted in it, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import clean_environment
from ray.cluster_utils import Cluster

from verl_act.doctor import engine_start as doctor_engine
from verl_act.doctor import installed as doctor_installed
from verl_act.doctor import registered as doctor_registered
from verl_act.doctor.installed import tested_versions
from verl_act.doctor.registered import in_ray_workers, is_on
from verl_act.envs.alfworld.game_index import check_games
from verl_act.errors import InstallationError, NotInstalledError
from verl_act.preflight.problem import Devices

OK, ABSENT, WARN, WRONG = "ok", "absent", "warn", "wrong"


def run_doctor(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verl_act", "doctor", *options]
    env = {**clean_environment(), "HOME": str(folder), **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500, check=False)


def examined(folder: Path, status: int, *options: str, **environment: str) -> dict[str, dict[str, Any]]:
    run = run_doctor(folder, "--json", *options, **environment)
    assert run.returncode == status, run.stdout + run.stderr
    return {finding["name"]: finding for finding in json.loads(run.stdout)}


def fake_distribution(folder: Path, name: str, version: str) -> None:
    """What importlib.metadata takes for an installed distribution, where it stands first on the path."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def first_on_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


@pytest.mark.slow
def test_a_sound_installation(tmp_path: Path) -> None:
    found = examined(tmp_path, 0)
    optional = {"environment alfworld", "environment scienceworld", "environment webshop"}
    assert {name for name, finding in found.items() if finding["state"] != OK} <= optional
    assert found["environment alfworld"]["state"] == ABSENT
    assert "alfworld-download" in found["environment alfworld"]["remedy"]
    assert found["registered in the driver"]["detail"] == "agent loop act_env, training metrics, platform cpu"
    assert found["platform"]["detail"].startswith("cpu, because torch")
    assert found["registered in Ray workers"]["detail"].startswith("1 node: agent loop act_env")
    assert "started in" in found["vLLM engine"]["detail"]
    assert not list(tmp_path.glob("*.parquet")), "a check writes nothing"


def test_every_planted_fault_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "bin").mkdir()
    fake_distribution(tmp_path / "old", "verl", "0.8.0")
    fake_distribution(tmp_path / "old", "ray", "2.41.0")
    run = run_doctor(
        tmp_path,
        "--no-engine",
        PYTHONPATH=first_on_path(tmp_path / "old"),
        PATH=str(tmp_path / "bin"),  # without Java
        JAVA_HOME="",
        ALFWORLD_DATA=str(tmp_path / "data"),
        VERL_USE_EXTERNAL_PLUGINS="other",
        VERL_PLATFORM="nvidia",
    )
    assert run.returncode == 1, run.stderr
    assert "vLLM engine" not in run.stdout, "asked for without engines"
    # name of the check -> what its two lines must say: the fault, the remedy
    wanted = {
        "requirements": ("verl 0.8.0 (needed: <0.10,>=0.9.1)", "pip install 'verl<0.10,>=0.9.1'"),
        "registered in the driver": ("VERL_USE_EXTERNAL_PLUGINS=other", "add verl_act to it"),
        "platform": ("cuda (by VERL_PLATFORM=nvidia)", "Unset VERL_PLATFORM"),
        "vLLM build": ("built for CPUs", "make setup-gpu"),
        "environment alfworld": (f"{tmp_path}/data: holds no ALFWorld games", "Run alfworld-download again"),
        "environment scienceworld": ("Java", "Install Java 8 or newer"),
    }
    shown = run.stdout.splitlines()
    for name, (fault, remedy) in wanted.items():
        state = WARN if name.startswith("environment") else WRONG
        (at,) = (number for number, line in enumerate(shown) if line.startswith(f"{state:<6} {name}: "))
        assert fault in shown[at] and remedy in shown[at + 1], shown[at : at + 2]
    assert sum(line.startswith((WARN, WRONG)) for line in shown) == len(wanted), run.stdout
    assert any(line.startswith("ok     tested versions") and "ray 2.41.0 (tested: " in line for line in shown)


def test_an_environment_out_of_order_is_no_fault_of_the_installation(tmp_path: Path) -> None:
    """ScienceWorld's Java is missed only by those who use it."""
    (tmp_path / "bin").mkdir()
    found = examined(tmp_path, 0, "--no-engine", PATH=str(tmp_path / "bin"), JAVA_HOME="")
    assert found["environment scienceworld"]["state"] == WARN
    assert "Install Java" in found["environment scienceworld"]["remedy"]


def test_a_package_beside_torch_that_breaks_transformers(tmp_path: Path) -> None:
    """torchvision's CUDA build beside a CPU torch fails when transformers imports it."""
    fake_distribution(tmp_path / "beside", "torchvision", "0.28.0")
    (tmp_path / "beside" / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "beside" / "torchvision" / "__init__.py").write_text(broken)
    found = examined(tmp_path, 1, "--no-engine", PYTHONPATH=first_on_path(tmp_path / "beside"))
    assert found["model libraries"]["state"] == WRONG
    assert "torchvision::nms" in found["model libraries"]["detail"]
    assert "pip uninstall torchvision" in found["model libraries"]["remedy"]


def test_an_empty_folder_of_alfworld_is_no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package makes it on its import."""
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(NotInstalledError):
        check_games()


def test_the_attention_of_a_gpu_is_named_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_installed, "local_devices", lambda: Devices("cuda", 1, 80 * 10**9))
    monkeypatch.setattr(doctor_installed, "attention_packages", lambda: {"kernels": "", "flash_attn": ""})
    assert doctor_installed.attention() == "flash_attn, kernels"
    monkeypatch.setattr(doctor_installed, "attention_packages", dict)
    with pytest.raises(NotInstalledError) as missing:
        doctor_installed.attention()
    assert "flash_attention_2" in missing.value.detail and "+act/device=gpu_sdpa" in missing.value.remedy
    error = "ImportError: flash_attn_2_cuda.so: undefined symbol"
    monkeypatch.setattr(doctor_installed, "attention_packages", lambda: {"flash_attn": error})
    with pytest.raises(InstallationError) as broken:
        doctor_installed.attention()
    assert type(broken.value) is InstallationError and error in broken.value.detail
    monkeypatch.setattr(doctor_installed, "local_devices", lambda: Devices("cpu", 0, 0))
    assert "sdpa" in doctor_installed.attention()


@pytest.mark.parametrize(("cpu_build", "offered"), [(True, True), (False, False), (None, False)])
def test_the_cpu_is_a_remedy_only_where_vllm_is_built_for_it(
    cpu_build: bool | None, offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.plugin.platform import platform_cuda, platform_manager

    monkeypatch.setattr(platform_manager, "_current_platform", platform_cuda.PlatformCUDA())
    monkeypatch.setattr(doctor_registered, "vllm_is_cpu_build", lambda: cpu_build)
    with pytest.raises(InstallationError) as unseen:
        doctor_registered.platform()
    assert ("cpu" in unseen.value.remedy) is offered and ("nvidia-smi" in unseen.value.remedy) is not offered


@pytest.mark.parametrize("cpu_build", [True, False])
def test_an_engine_that_does_not_start_is_told_in_words_of_its_device(
    cpu_build: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_engine, "vllm_is_cpu_build", lambda: cpu_build)
    monkeypatch.setattr(doctor_engine.sys, "executable", "/bin/false")
    with pytest.raises(InstallationError) as ended:
        doctor_engine.engine_start(1)
    assert ("VLLM_CPU_KVCACHE_SPACE" in ended.value.remedy) is cpu_build
    assert ("nvidia-smi" in ended.value.remedy) is not cpu_build


def test_one_small_engine_is_started_on_a_machine_of_many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's own configuration has it, with eight GPUs that are not there."""
    started: dict[str, Any] = {}

    def start(model: str, arguments: dict[str, Any]) -> None:
        started.update(arguments)
        raise RuntimeError("enough")

    from vllm.platforms import current_platform

    for name, value in {"is_cpu": False, "device_count": 8}.items():
        monkeypatch.setattr(type(current_platform), name, lambda *_, value=value: value, raising=False)
    monkeypatch.setattr(doctor_engine, "vllm_is_cpu_build", lambda: False)
    monkeypatch.setattr("verl_act.engine.start_vllm", start)
    doctor_engine.report_start(1)
    assert started["data_parallel_size"] == 1 and started["enforce_eager"] and started["gpu_memory_utilization"] < 0.5


@pytest.mark.parametrize(
    ("switch", "on"), [("auto", True), ("other, verl_act", True), ("VERL_ACT", True), ("none", False), ("other", False)]
)
def test_the_plugins_switch_is_a_list(switch: str, on: bool) -> None:
    assert is_on(switch) == on


def test_damaged_official_data(tmp_path: Path, games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(games, tmp_path / "data")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "data"))
    assert "train 12, valid_seen 6, valid_unseen 6; not the official games (train 3,553" in check_games()
    damaged = next((tmp_path / "data").rglob("valid_seen/**/traj_data.json"))
    damaged.write_text(damaged.read_text()[:50])
    with pytest.raises(InstallationError) as fault:
        check_games()
    assert str(damaged) in fault.value.detail and "alfworld-download" in fault.value.remedy
    assert "1 of valid_seen" in fault.value.detail


@pytest.mark.slow
def test_a_cluster_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is sound; the cluster was started in an environment that is not."""
    with monkeypatch.context() as unsound:
        unsound.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with pytest.raises(InstallationError, match=r"VERL_USE_EXTERNAL_PLUGINS=none.*verl_act"):
            in_ray_workers()
    finally:
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.nightly
def test_an_engine_without_memory(tmp_path: Path) -> None:
    code = "from verl_act.doctor.engine_start import engine_start; engine_start(60)"
    env = clean_environment(VLLM_CPU_KVCACHE_SPACE="100000")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=400, check=False
    )
    # Whichever comes of vLLM's race at the end of a failed start.
    faults = re.findall(r".*InstallationError: vLLM (?:did not start with model|has not started within).*", done.stderr)
    assert faults and "lower VLLM_CPU_KVCACHE_SPACE" in faults[0], done.stderr


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InstallationError, match=r"RAY_ADDRESS=127\.0\.0\.1:1\b"):
        in_ray_workers()


@pytest.mark.parametrize(
    ("version", "said"),
    [("0.28.0", "vllm 0.28.0,"), ("0.24.0", "(trained only; tested"), ("0.19.0", "(tested: ==0.28.*)")],
)
def test_versions_are_reported_with_what_was_done_with_them(
    version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_distribution(tmp_path, "vllm", version)
    monkeypatch.syspath_prepend(tmp_path)
    assert said in tested_versions()
