"""Direct preference optimization as a training stage: TRL's trainer on the embedded model."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import clean_environment
from safetensors.torch import load_file
from samples import embedded_models, make_pair

from verl_act.chain.check import compose
from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import load_recipe
from verl_act.chain.stages import TrainingStage
from verl_act.chain.train import train
from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.dpo import DpoSettings
from verl_act.errors import OptionError
from verl_act.run_folder import RunFolder
from verl_act.schema import DPO, PAIR, read_table, write_rows
from verl_act.settings.data import SftSettings

STAGE = "training.dpo={data: dpo, overrides: {data.train_batch_size: 4, optim.lr: 1.0e-3, trainer.save_freq: 1}}"


def dpo_stage(folder: Path, *changes: str) -> TrainingStage:
    recipe = load_recipe("alfworld/quickstart", [STAGE, "stages=[dpo]", *changes])
    (stage,) = (stage for stage in run_plan(recipe, RunFolder(folder)) if isinstance(stage, TrainingStage))
    return stage


def test_a_recipe_may_have_dpo_as_a_stage(tmp_path: Path) -> None:
    stage = dpo_stage(tmp_path)
    assert (stage.trainer, stage.name, list(stage.config)) == ("dpo", "dpo", [])
    assert stage.inputs[0] == tmp_path / "rows-dpo" / "dpo.parquet"
    assert compose(stage).endswith("overrides")
    with pytest.raises(OptionError, match="train_batchsize"):
        compose(dpo_stage(tmp_path, "training.dpo.overrides.data.train_batchsize=3"))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["trainer.nnodes=2"], "trainer.nnodes"),
        (["data.train_batch_size=12"], "data.train_batch_size"),  # 8 at once: the rest would be left out
        (["data.train_batch_size=3", "trainer.n_gpus_per_node=2"], "data.train_batch_size"),
        (["data.train_batch_size=2", "trainer.n_gpus_per_node=4"], "data.train_batch_size"),
    ],
)
def test_a_batch_is_trained_whole(words: list[str], option: str) -> None:
    with pytest.raises(OptionError) as refused:
        DpoSettings.parse(["data.train_files=[a]", "model.path=m", "trainer.default_local_dir=x", *words])
    assert refused.value.option == option


def test_micro_batches_make_up_a_batch() -> None:
    words = ["data.train_files=[a]", "model.path=m", "trainer.default_local_dir=x", "trainer.n_gpus_per_node=2"]
    assert DpoSettings.parse([*words, "data.train_batch_size=32"]).micro_batch_size == 8
    assert DpoSettings.parse([*words, "data.train_batch_size=6"]).micro_batch_size == 3


@pytest.mark.parametrize("word", ["data.train_batch_size=0", "beta=-1", "trainer.total_epochs=many", "optim=3"])
def test_a_wrong_setting_is_refused(word: str) -> None:
    words = ["data.train_files=[a]", "model.path=m", "trainer.default_local_dir=x", word]
    with pytest.raises(OptionError) as refused:
        DpoSettings.parse(words)
    assert refused.value.option == word.partition("=")[0]


MODEL = str(embedded_models()["alfworld"])


def make_rows(folder: Path) -> Path:
    write_rows(folder / "pairs.parquet", [make_pair(number).to_row() for number in range(8)], PAIR)
    options: dict[str, Any] = {"template": "compact", "model": MODEL, "pairs": [folder / "pairs.parquet"]}
    manifest = make_sft(SftSettings(kind="dpo", **options), folder / "rows-dpo")
    rows = folder / "rows-dpo" / "dpo.parquet"
    assert manifest.counts["rows"] == read_table(rows, DPO).num_rows >= 8
    return rows


def losses(folder: Path, rows: Path, steps: int, program: list[str]) -> list[float]:
    """Train in two processes; the loss of each step."""
    metrics = folder.with_suffix(".jsonl")
    settings = {
        **{"data.train_files": f"[{rows}]", "model.path": MODEL, "trainer.default_local_dir": folder},
        **{"data.train_batch_size": 8, "data.micro_batch_size_per_gpu": 2, "data.max_length": 1024},
        **{"trainer.n_gpus_per_node": 2, "trainer.total_training_steps": steps, "trainer.save_freq": 2},
        **{"optim.lr": 1e-3, "optim.lr_scheduler_type": "constant"},
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
    command = [*launcher, *(f"{key}={value}" for key, value in settings.items())]
    env = clean_environment(VERL_FILE_LOGGER_PATH=str(metrics), OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line)["data"]["train/loss"] for line in metrics.read_text().splitlines()]


def exported(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"global_step_{steps}" / "huggingface" / "model.safetensors")


def test_trl_still_shards_its_reference_by_fsdp1_alone() -> None:
    utils = pytest.importorskip("trl.models.utils")
    assert "import fully_shard" not in inspect.getsource(utils.prepare_fsdp), "trl_sharded_reference.py can go"


@pytest.mark.slow
def test_a_sharded_run_learns_what_a_whole_one_does_and_resumes(tmp_path: Path) -> None:
    """Two processes that take themselves for GPUs, and share model, optimizer and reference."""
    pytest.importorskip("trl")
    rows = make_rows(tmp_path)
    whole = losses(tmp_path / "whole", rows, 4, ["-m", "verl_act.dpo"])
    as_gpus = [os.path.join(os.path.dirname(__file__), "dpo_on_cpu_as_gpus.py")]
    sharded = losses(tmp_path / "sharded", rows, 4, as_gpus)
    assert sharded[0] == pytest.approx(math.log(2), abs=1e-6), "the model begins as its reference"
    assert sharded == pytest.approx(whole, rel=0.05), "by products in 16 bits"
    first, second, before = (
        exported(tmp_path / "whole", 4),
        exported(tmp_path / "sharded", 4),
        load_file(f"{MODEL}/model.safetensors"),
    )
    assert first.keys() == second.keys() and {weight.dtype for weight in second.values()} == {torch.float32}
    moved = sum(((first[name] - before[name].float()) ** 2).sum() for name in first)
    apart = sum(((first[name] - second[name]) ** 2).sum() for name in first)
    assert apart < 0.05 * moved
    at_once = losses(tmp_path / "at-once", rows, 6, as_gpus)
    assert losses(tmp_path / "sharded", rows, 6, as_gpus) == pytest.approx(at_once, rel=1e-3), "its steps 5 and 6 too"


@pytest.mark.slow
def test_it_learns_to_prefer_the_experts_actions(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    make_rows(tmp_path)
    stage = dpo_stage(tmp_path, "training.dpo.overrides.trainer.total_training_steps=6", f"model={MODEL}")
    train(stage)
    lines = [json.loads(line) for line in (tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line["data"]] == [1, 2, 3, 4, 5, 6]
    first, *_, last = [line["data"]["train/loss"] for line in lines]
    assert first == pytest.approx(math.log(2), abs=1e-3), "the model begins as its reference"
    assert last < first
    assert (stage.folder.model / "model.safetensors").is_file() and (stage.folder.model / "tokenizer.json").is_file()
