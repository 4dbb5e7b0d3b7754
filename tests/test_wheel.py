"""Cross-cutting: the package as others get it: a wheel in a folder of its own, used from an empty folder, beside verl.

The base interpreter with the wheel first on its path and this environment's packages behind: an editable install of
this checkout, if there is one, is not seen (its `.pth` file counts only where the environment itself is started).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import clean_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
DIFFERENCES = """
import json, os, sys
import verl
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.plugin.platform import get_platform
import verl.experimental.reward_loop, verl.trainer.main_ppo
import verl.trainer.ppo.v1.trainer_base, verl.trainer.ppo.v1.replay_buffer
from verl.utils import distributed, device

def wrapped_by_us():
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "verl"]:
        for name, value in list(vars(module).items()):
            members = vars(value).items() if isinstance(value, type) else ()
            for label, target in [(name, value), *((f"{name}.{member}", one) for member, one in members)]:
                wrapper = type(target).__name__ == "FunctionWrapper" and target._self_wrapper
                if wrapper and wrapper.__module__.startswith("verl_act"):
                    yield label

print(json.dumps({
    "agent loops": sorted(_agent_loop_registry),
    "platform": get_platform().device_name,
    "variables": sorted(name for name in os.environ if name.startswith(("VERL_", "VLLM_", "RAY_", "OMP_"))),
    "wrapped": sorted({*wrapped_by_us()}),
    "device lookup": distributed.get_device_name is device.get_device_name,
}))
"""


WRAPPED = [
    "AgentLoopWorker._run_agent_loop",
    "CheckpointHandler._find_latest_checkpoint",
    "PPOTrainer.__init__",
    "PPOTrainer._add_prompts_to_generate",
    "PPOTrainer._compute_metrics",
    "PPOTrainer._load_checkpoint",
    "PPOTrainer._validate",
    "RewardLoopWorker._init_reward_fn",
    "auto_set_device",
    "load_valuehead_model",
]
"""Of verl, on an accelerator; docs/gaps.md says what each does, and why."""


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel, built in `folder`. Nothing is fetched."""
    build = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(ROOT, folder)
    install = [*PIP, "install", "--no-deps", "--no-index", "--target", str(folder / "installed"), str(wheel)]
    subprocess.run(install, check=True, timeout=600)
    return folder / "installed"


def run(installed: Path, folder: Path, *arguments: str, **environment: str) -> str:
    """What the base interpreter prints for `arguments`, started in `folder`."""
    path = os.pathsep.join((str(installed), sysconfig.get_path("purelib")))
    env = {**clean_environment(), "PYTHONPATH": path, **environment}
    command = [sys._base_executable, *arguments]  # type: ignore[attr-defined]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    code = "import verl_act, verl_act.data_prep, verl_act.recipes as r; print(verl_act.__file__, r.__file__)"
    assert all(path.startswith(str(installed)) for path in run(installed, tmp_path, "-c", code).split())


@pytest.mark.parametrize(
    ("git", "version"),
    [("init tag", "7.1.0"), ("init", "0.1.1.dev1"), ("", "0.1.0")],
    ids=["tag", "no tag", "no git"],
)
def test_the_version_is_that_of_the_tag(git: str, version: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for name in ("verl_act", "hydra_plugins"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    if "init" in git:
        for words in (["init"], ["add", "."], ["commit", "--message", "all"]):
            subprocess.run([*command, *words], cwd=source, check=True, capture_output=True)
    if "tag" in git:
        subprocess.run([*command, "tag", "v7.1.0"], cwd=source, check=True)
    wheel = build_wheel(source, tmp_path / "wheels")
    assert wheel.name.split("-")[1].partition("+")[0] == version


FILES = ("data.train_files=pairs.parquet", "data.val_files=pairs.parquet")


@pytest.mark.parametrize(
    "groups",
    [
        ("+act=action", "+act/env=webshop", "+act/device=cpu"),
        *(pytest.param((f"+act={name}",), marks=pytest.mark.nightly) for name in ("critic", "action_ppo", "mix")),
    ],
    ids="".join,
)
def test_verls_own_command_takes_our_groups(groups: tuple[str, ...], installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "-m", "verl.trainer.main_ppo", *groups, *FILES, "--cfg", "job")
    config = OmegaConf.create(shown)
    stage = groups[0].removeprefix("+act=")
    assert config.trainer.experiment_name == ("gsm8k" if stage == "mix" else stage), "a mixed run stays somebody's own"
    assert config.data.custom_cls.path == "pkg://verl_act.data.dataset"
    assert config.reward.custom_reward_function.path == "pkg://verl_act.reward_fns.route"
    assert config.data.act.episode.max_turns == (15 if "+act/env=webshop" in groups else 50)
    assert config.trainer.device == ("cpu" if "+act/device=cpu" in groups else "cuda")
    assert list(tmp_path.iterdir()) == []


def test_verls_own_sft_command_takes_our_groups(installed: Path, tmp_path: Path) -> None:
    groups = ("+act=sft", "+act/device=cpu_sft")
    shown = run(installed, tmp_path, "-m", "verl.trainer.sft_trainer", *groups, *FILES, "--cfg", "job")
    config = OmegaConf.create(shown)
    assert config.trainer.experiment_name == "sft" and config.data.messages_key == "messages"
    assert list(tmp_path.iterdir()) == []


def test_our_command_knows_its_recipes(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "-m", "verl_act", "--help")
    assert "data" in shown and "doctor" in shown
    chain = ("run", "alfworld/quickstart", "--out", "out", "--check")
    shown = run(installed, tmp_path, "-m", "verl_act", *chain)
    assert "ok    critic configuration" in shown and str(installed / "verl_act/assets/embedded_model") in shown


def test_a_verl_job_that_does_not_ask_for_act_is_unchanged(installed: Path, tmp_path: Path) -> None:
    job = ("-m", "verl.trainer.main_ppo", "--cfg", "job")
    plain = {"VERL_USE_EXTERNAL_PLUGINS": "none"}
    assert run(installed, tmp_path, *job) == run(installed, tmp_path, *job, **plain)
    # On an accelerator, that is: on a CPU build of torch, verl cannot run without our platform.
    without, with_it = (
        json.loads(run(installed, tmp_path, "-c", DIFFERENCES, VERL_PLATFORM="nvidia", **changes).splitlines()[-1])
        for changes in (plain, {})
    )
    assert with_it.pop("agent loops") == sorted([*without.pop("agent loops"), "act_env"])
    assert with_it.pop("wrapped") == WRAPPED
    assert without.pop("wrapped") == []
    assert without.pop("variables") == sorted([*with_it.pop("variables"), "VERL_USE_EXTERNAL_PLUGINS"])
    assert with_it == without
