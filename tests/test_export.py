"""The exported recipe, used as in a checkout of verl-recipe: from `recipe/act`, with this package not installed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from parsed_command import parsed
from processes import clean_environment
from samples import embedded_models
from small_run import SMALL_RUN

from verl_act.errors import ConfigError
from verl_act.export.recipe import STAGES, VERL, export_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_recipe(tmp_path_factory.mktemp("tree") / "recipe" / "act")


def run(recipe: Path, folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of its scripts in `folder`; the base interpreter sees verl's packages, and no editable install."""
    env = clean_environment(
        PYTHON=sys._base_executable,  # type: ignore[attr-defined]
        PYTHONPATH=sysconfig.get_path("purelib"),
        VERL_USE_EXTERNAL_PLUGINS="none",
    )
    command = [str(recipe / script), *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[] if stage == "critic" else pytest.mark.nightly) for stage in STAGES]
)
def test_its_configurations_compose(stage: str, recipe: Path, tmp_path: Path) -> None:
    shown = run(recipe, tmp_path, f"run_{stage}.sh", "a.parquet", "b.parquet", "/model", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    config = OmegaConf.create(shown.stdout)
    assert config.trainer.experiment_name == stage
    assert config.data.train_files == "a.parquet" and config.actor_rollout_ref.model.path == "/model"
    assert config.reward.custom_reward_function.path == "pkg://verl_act.reward_fns.route"
    assert "not available" not in shown.stderr, "Hydra misses a search path"


def test_a_script_without_arguments_says_what_it_wants(recipe: Path, tmp_path: Path) -> None:
    shown = run(recipe, tmp_path, "run_critic.sh")
    assert shown.returncode == 2 and "TRAIN.parquet VALID.parquet MODEL" in shown.stderr


def test_it_has_what_verl_recipe_asks_for(recipe: Path) -> None:
    required = dict(
        line.split("=", 1) for line in (recipe / "REQUIRED_VERL.txt").read_text().splitlines() if line[0] != "#"
    )
    assert required["MODE"] == "pinned_tag" and required["TAG"] == f"v{VERL}"
    assert required["PIP_INSTALL"].endswith(f"=={VERL}")
    assert "## Required `verl` version" in (recipe / "README.md").read_text()
    ruff = Path(sys.executable).with_name("ruff")
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *check, "--no-cache", str(recipe)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    large = [path for path in recipe.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert not large, "verl-recipe holds no weights"
    assert not [path for path in recipe.rglob("*") if path.is_symlink()]


def test_its_page_names_commands_that_there_are(recipe: Path) -> None:
    lines = (recipe / "README.md").read_text().replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("python -m verl_act ")]
    assert len(commands) == 5
    for command in commands:
        parsed(shlex.split(command)[3:])


def test_only_an_earlier_export_is_replaced(recipe: Path, tmp_path: Path) -> None:
    assert export_recipe(recipe) == recipe
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        export_recipe(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.nightly
def test_the_critic_stage_runs_from_it(recipe: Path, pairs: Path, tmp_path: Path) -> None:
    """One step on a CPU; vLLM finds its CPU patch by the entry point of this environment's installation."""
    done = run(
        recipe,
        tmp_path,
        "run_critic.sh",
        str(pairs),
        str(pairs),
        str(embedded_models()["alfworld"]),
        *SMALL_RUN,
        "trainer.total_training_steps=1",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "step:1 - " in done.stdout
    (model,) = tmp_path.glob("checkpoints/verl_act/critic/global_step_1/actor/huggingface")
    assert (model / "config.json").is_file() and os.listdir(model)
