"""The plugin as verl meets it: found by its entry point, in every process, light, and never broken in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import ray
from processes import clean_environment

LOOK = """
import json, os, sys
import verl
modules = sorted(sys.modules)
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.plugin.platform import get_platform
import torch
print(json.dumps({
    "modules": modules,
    "loops": _agent_loop_registry,
    "platform": get_platform().device_name,
    "variables": {name: os.environ.get(name) for name in ("VERL_PLATFORM", "VERL_ENGINE_DEVICE")},
}))
"""


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    env = clean_environment(**environment)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)


WITHOUT = {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_PLATFORM": "nvidia"}


def look(folder: Path, **environment: str) -> dict[str, Any]:
    shown = run_python(LOOK, folder, **environment)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout.splitlines()[-1])


def test_it_is_found_by_its_entry_point() -> None:
    (point,) = (point for point in entry_points(group="verl.plugins") if point.name == "verl_act")
    assert point.load().register is not None
    (point,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "verl_act")
    assert callable(point.load())


def test_importing_verl_registers_everything_at_little_cost(tmp_path: Path) -> None:
    """In any folder; and what it imports beyond verl itself is this package's few small files and wrapt.

    `benchmarks/import_time.py` measures the seconds.
    """
    without, with_it = (look(tmp_path, **environment) for environment in (WITHOUT, {}))
    assert with_it["loops"]["act_env"] == {"_target_": "verl_act.rollout.agent_loop.ActEnvAgentLoop"}
    assert "act_env" not in without["loops"]
    assert with_it["platform"] == "cpu"
    assert with_it["variables"] == {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}

    added = set(with_it["modules"]) - set(without["modules"])
    assert {name.split(".")[0] for name in added} == {"verl_act", "wrapt"}
    ours = {name for name in added if name.startswith("verl_act")}
    assert {name for name in ours if not name.startswith("verl_act.upstream_gaps")} == {
        "verl_act",
        "verl_act.errors",
        "verl_act.learning_signal",
        "verl_act.plugin",
    }
    assert "vllm" not in with_it["modules"]


@pytest.mark.parametrize(
    "sabotage",
    ["import wrapt; del wrapt.when_imported", "import sys; sys.modules['verl_act.upstream_gaps.cpu.platform'] = None"],
)
def test_a_broken_plugin_is_loud(sabotage: str, tmp_path: Path) -> None:
    """verl itself would go on without a word."""
    shown = run_python(f"{sabotage}\nimport verl\nprint('went on')", tmp_path)
    assert shown.stdout.strip() == "went on"
    assert "verl_act could not register with verl" in shown.stderr
    assert "Traceback" in shown.stderr


FIRST = """
import os
import ray, torch, transformers  # what takes the time, once
for first in ("verl_act.plugin", "verl_act.rollout.agent_loop", "verl_act.data.dataset",
              "verl_act.upstream_gaps.cpu", "verl_act.upstream_gaps.cpu.platform"):
    if not os.fork():
        __import__(first)
        from verl.experimental.agent_loop import agent_loop
        from verl.plugin.platform import get_platform
        loops = sorted(name for name in agent_loop._agent_loop_registry if name.startswith("act"))
        print(first, loops, get_platform().device_name, flush=True)
        os._exit(0)
    os.wait()
"""


def test_everything_is_registered_in_whatever_order_modules_are_imported(tmp_path: Path) -> None:
    shown = run_python(FIRST, tmp_path)
    assert [line.partition(" ")[2] for line in shown.stdout.splitlines()] == ["['act_env'] cpu"] * 5, shown.stderr
    assert "could not register" not in shown.stderr


@pytest.mark.slow
@pytest.mark.nightly
def test_it_is_registered_in_a_ray_worker(tmp_path: Path) -> None:
    """Workers are started by Ray's own processes, not by our import: they find the entry point themselves."""

    def in_worker() -> dict[str, Any]:
        from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
        from verl.plugin.platform import get_platform

        found = {"platform": get_platform().device_name, "process": os.getpid()}
        return {**found, "loop": _agent_loop_registry.get("act_env", {}).get("_target_")}

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        found = ray.get(ray.remote(in_worker).remote())
    finally:
        ray.shutdown()
    assert found["process"] != os.getpid()
    assert found["loop"] == "verl_act.rollout.agent_loop.ActEnvAgentLoop"
    assert found["platform"] == "cpu"
