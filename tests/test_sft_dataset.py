"""Rows for imitation, encoded as the model will be asked, with chat templates that treat thoughts apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from samples import embedded_models, make_step
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template

from verl_act.data.sft_dataset import ActSFTDataset
from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.errors import DataError
from verl_act.run_folder import SFT_ROWS as FILE_NAME
from verl_act.schema import TRAJECTORY, write_rows
from verl_act.settings.data import SftSettings

THOUGHT, ACTION = "the desk is near", "go to desk 1"
OPENS_THOUGHT = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content.split('</think>')[-1] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
<think>
{% endif -%}"""
"""Takes the thoughts out of every turn, and opens the one of the reply."""


@pytest.mark.parametrize("thought", [THOUGHT, None])
@pytest.mark.parametrize(
    ("template", "options", "replies"),
    [
        (qwen3_chat_template, {}, (f"<think>{THOUGHT}</think><action>{ACTION}</action>", f"<action>{ACTION}</action>")),
        (
            qwen3_chat_template,
            {"enable_thinking": False},
            (f"<think>{THOUGHT}</think><action>{ACTION}</action>", f"<action>{ACTION}</action>"),
        ),
        (OPENS_THOUGHT, {}, (f"{THOUGHT}</think><action>{ACTION}</action>", f"</think><action>{ACTION}</action>")),
    ],
    ids=["qwen3", "qwen3-not-thinking", "opens-the-thought"],
)
def test_a_row_is_the_prompt_as_it_is_asked_and_then_the_reply(
    template: str, options: dict[str, Any], replies: tuple[str, str], thought: str | None, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_models()["alfworld"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    shutil.copy(embedded_models()["alfworld"] / "config.json", tmp_path / "model")
    step = make_step(0, action=ACTION, thought=thought)
    write_rows(tmp_path / "steps.parquet", [step.to_row()], TRAJECTORY)
    make_sft(SftSettings(trajectories=[tmp_path / "steps.parquet"], model=str(tmp_path / "model")), tmp_path / "sft")
    file = tmp_path / "sft" / FILE_NAME
    overrides = ["+act=sft", "data.max_length=4096", "data.pad_mode=no_padding"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("sft_trainer_engine", overrides=overrides).data
    config.apply_chat_template_kwargs = options
    dataset = ActSFTDataset(str(file), tokenizer, config)
    row = dataset[0]

    reply = tokenizer.encode(replies[thought is None], add_special_tokens=False)
    wanted = [*reply, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids, learnt = row["input_ids"].tolist(), row["loss_mask"].tolist()
    assert ids[-len(wanted) :] == wanted
    assert learnt == [0] * (len(ids) - len(wanted)) + [1] * len(wanted)
    prompt = dataset.messages[0][:-1]
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **options)
    assert ids[: -len(wanted)] == asked


def test_damaged_rows_are_refused_before_verl_reads_them(tmp_path: Path) -> None:
    """pandas would read other text without a word."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_models()["alfworld"])
    write_rows(tmp_path / "steps.parquet", [make_step(number).to_row() for number in range(20)], TRAJECTORY)
    make_sft(
        SftSettings(trajectories=[tmp_path / "steps.parquet"], model=str(embedded_models()["alfworld"])),
        tmp_path / "sft",
    )
    file = tmp_path / "sft" / FILE_NAME
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("sft_trainer_engine", overrides=["+act=sft"]).data
    with pytest.raises(DataError, match=r"sft.parquet"):
        ActSFTDataset(str(file), tokenizer, config)
