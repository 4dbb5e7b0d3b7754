"""Direct preference optimization as a training stage: TRL's trainer on the embedded model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from samples import make_pair

from verl_act.chain.check import compose
from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import embedded_models, load_recipe
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


@pytest.mark.slow
def test_it_learns_to_prefer_the_experts_actions(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    write_rows(tmp_path / "pairs.parquet", [make_pair(number).to_row() for number in range(8)], PAIR)
    model = str(embedded_models()["alfworld"])
    options: dict[str, Any] = {"template": "compact", "model": model, "pairs": [tmp_path / "pairs.parquet"]}
    manifest = make_sft(SftSettings(kind="dpo", **options), tmp_path / "rows-dpo")
    assert manifest.counts["rows"] == read_table(tmp_path / "rows-dpo" / "dpo.parquet", DPO).num_rows >= 8
    stage = dpo_stage(tmp_path, "training.dpo.overrides.trainer.total_training_steps=6", f"model={model}")
    train(stage)
    lines = [json.loads(line) for line in (tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line["data"]] == [1, 2, 3, 4, 5, 6]
    losses = [line["data"]["train/loss"] for line in lines]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), "the model begins as its reference"
    assert losses[-1] < losses[0]
    assert (stage.folder.model / "model.safetensors").is_file() and (stage.folder.model / "tokenizer.json").is_file()
