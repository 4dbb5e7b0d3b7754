"""The export of a LoRA run becomes the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from verl_act.errors import DataError
from verl_act.merge_lora import merge_lora


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


def test_what_is_no_lora_checkpoint_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hf_model"):
        merge_lora(tmp_path)
    checkpoint(tmp_path, tied=False)
    (tmp_path / "lora_train_meta.json").unlink()
    before = (tmp_path / "huggingface" / "model.safetensors").read_bytes()
    assert not merge_lora(tmp_path)
    assert (tmp_path / "huggingface" / "model.safetensors").read_bytes() == before
