"""The export of a LoRA run becomes the model that was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from verl_act.chain.recipe import RECIPES
from verl_act.errors import DataError
from verl_act.upstream_gaps.damaged_checkpoints import TRACKER
from verl_act.upstream_gaps.merge_lora import merge_lora


def checkpoint(folder: Path, tied: bool) -> torch.nn.Module:
    """What verl's checkpoint manager leaves of a PEFT model; returns the model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=32, tie_word_embeddings=tied, **sizes, **heads)
    model = get_peft_model(Qwen3ForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first: nothing would be merged
            torch.nn.init.normal_(weight)
    export = folder / "huggingface"
    export.mkdir(parents=True)
    config.save_pretrained(export)
    (export / "tokenizer.json").write_text("{}")
    (export / "additional_chat_templates").mkdir()
    (export / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    (folder / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_the_merged_model_computes_what_the_trained_one_did(tmp_path: Path, tied: bool) -> None:
    trained = checkpoint(tmp_path, tied).eval()
    tokens = torch.arange(10)[None]
    export = tmp_path / "huggingface"
    with torch.no_grad():
        expected = trained(tokens).logits
        as_exported = AutoModelForCausalLM.from_pretrained(export)(tokens).logits
        assert not torch.allclose(as_exported, expected, atol=1e-2), "the gap is closed upstream"
        assert merge_lora(tmp_path)
        merged = AutoModelForCausalLM.from_pretrained(export)(tokens).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    assert (export / "tokenizer.json").read_text() == "{}"
    assert (export / "additional_chat_templates" / "tools.jinja").read_text() == "{{ messages }}"
    assert not merge_lora(tmp_path), "it is merged already"
    export.rename(tmp_path / ".huggingface.partial")
    (tmp_path / ".huggingface.old").mkdir()
    assert not merge_lora(tmp_path), "killed just before its new name, it is found again"
    assert (export / "model.safetensors").is_file()


def test_a_model_without_adapters_is_left_alone(tmp_path: Path) -> None:
    checkpoint(tmp_path, tied=False)
    export = tmp_path / "huggingface" / "model.safetensors"
    save_file({"model.norm.weight": torch.ones(2)}, export)
    (tmp_path / "lora_train_meta.json").unlink()
    before = export.read_bytes()
    assert not merge_lora(tmp_path)
    assert export.read_bytes() == before


def _is(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "lora_train_meta.json").write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no-meta": (lambda folder: (folder / "lora_train_meta.json").unlink(), r'lora_train_meta.json.*"r": 4'),
    "meta-cut": (_is('{"r": 4, "lora_al'), "lora_train_meta.json"),
    "meta-no-text": (
        lambda folder: (folder / "lora_train_meta.json").write_bytes(b"\xff\xfe"),
        "lora_train_meta.json",
    ),
    "meta-a-list": (_is("[4, 8]"), r"lora_train_meta.json.*'r'"),
    "no-alpha": (_is('{"r": 4}'), r"lora_train_meta.json.*'lora_alpha'"),
    "text-as-alpha": (_is('{"r": 4, "lora_alpha": "8"}'), r"lora_train_meta.json.*'lora_alpha'.*'8'"),
    "other-rank": (_is('{"r": 8, "lora_alpha": 8}'), r"'r' is 8.*\b4\b"),
    "weights-cut": (
        lambda folder: os.truncate(folder / "huggingface" / "model.safetensors", 999),
        "model.safetensors",
    ),
    "config-cut": (
        lambda folder: (folder / "huggingface" / "config.json").write_text("{"),
        "config.json",
    ),
    "config-of-another-model": (
        lambda folder: Qwen3Config(hidden_size=8, num_hidden_layers=2).save_pretrained(folder / "huggingface"),
        "config.json",
    ),
    "no-weights": (
        lambda folder: (folder / "huggingface" / "model.safetensors").unlink(),
        r"huggingface.*\.safetensors",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_adapters_that_cannot_be_merged_are_named(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, tied=False)
    damage(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message):
        merge_lora(tmp_path)
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_another_folder_than_the_checkpoints_is_told_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hf_model"):
        merge_lora(tmp_path)
    actor = tmp_path / "global_step_2" / "actor"
    checkpoint(actor, tied=False)
    for folder in (actor / "huggingface", actor.parent, tmp_path):
        with pytest.raises(DataError, match=str(actor)):
            merge_lora(folder)
    with pytest.raises(DataError, match="nowhere"):
        merge_lora(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_export_of_megatron_is_found(tmp_path: Path) -> None:
    checkpoint(tmp_path / "actor" / "model", tied=False)
    assert merge_lora(tmp_path / "actor")
    assert not merge_lora(tmp_path / "actor"), "merged already"


@pytest.mark.parametrize("export", ["huggingface", "model/huggingface"], ids=["FSDP", "Megatron"])
def test_a_warm_up_gives_its_merged_export_to_the_next_run(export: str, tmp_path: Path) -> None:
    """`recipes/mix/run_warm_up.sh`, after a training that left adapters."""
    checkpoints = tmp_path / "checkpoints"
    model = checkpoints / "global_step_7" / "actor" / export
    checkpoint(model.parent, tied=False)
    (checkpoints / TRACKER).write_text("7")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *main_ppo*) ;; *) exec {sys.executable} "$@" ;; esac\n')
    python.chmod(0o755)
    variables = {"PYTHON": str(python), "OUT": str(tmp_path), "MODEL": "m", "PAIRS": "p", "PAIRS_VAL": "v"}
    command = [str(RECIPES / "mix" / "run_warm_up.sh"), "--", "echo", "theirs"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"theirs actor_rollout_ref.model.path={model}"
    AutoModelForCausalLM.from_pretrained(model)
    assert not merge_lora(checkpoints / "global_step_7" / "actor"), "merged already"
