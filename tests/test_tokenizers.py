"""Cross-cutting: tokenizers that cannot work are refused by every command that reads one, at its start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import data_config, embedded_models, make_pair, make_step, make_tokenizer
from transformers import AutoTokenizer

from verl_act.data.dataset import ActDataset
from verl_act.data_prep.alternatives.sample_alternatives import sample_alternatives
from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.data_prep.sft.reflect import reflect
from verl_act.engine import Engine, load_tokenizer
from verl_act.errors import ConfigError
from verl_act.schema import PAIR, TRAJECTORY, write_rows
from verl_act.settings.data import AlternativesSettings, ReflectSettings, SftSettings
from verl_act.settings.model import ModelSettings

PARTS = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}"""
PARTS_JOINED = "{% for message in messages %}{{ message.content[0]['text'] + '<|im_end|>' }}{% endfor %}"
REFUSES = "{{ raise_exception('no conversation for me') }}"


def with_template(chat_template: str | None) -> Any:
    tokenizer = make_tokenizer(["go"])
    tokenizer.chat_template = chat_template
    return tokenizer


UNUSABLE = {
    "special-action": (lambda: make_tokenizer(["go"], special=["<action>", "</action>"]), "'<action>' as a special"),
    "special-think": (lambda: make_tokenizer(["go"], special=["</think>"]), "'</think>' as a special"),
    "no-chat-template": (lambda: with_template(None), "no chat template"),
    "content-parts": (lambda: with_template(PARTS), "list of parts"),
    "content-parts-joined": (lambda: with_template(PARTS_JOINED), "list of parts"),
    "refuses-all": (lambda: with_template(REFUSES), "no conversation for me"),
}


@pytest.mark.parametrize(("make", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_tokenizer_that_cannot_work_is_refused_everywhere(
    make: Callable[[], Any], reason: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    make().save_pretrained(model)
    shutil.copy(embedded_models()["alfworld"] / "config.json", model)
    steps, pairs, out = tmp_path / "steps.parquet", tmp_path / "pairs.parquet", tmp_path / "out"
    write_rows(steps, [make_step().to_row()], TRAJECTORY)
    write_rows(pairs, [make_pair().to_row()], PAIR)
    settings = ModelSettings(model=str(model))
    commands: dict[str, Callable[[], Any]] = {
        "load": lambda: load_tokenizer(str(model)),
        "sft": lambda: make_sft(SftSettings(trajectories=[steps], model=str(model)), out),
        "engine": lambda: Engine(settings),
        "alternatives": lambda: sample_alternatives(
            AlternativesSettings(trajectories=[steps], **settings.model_dump()), out
        ),
        "reflect": lambda: reflect(
            ReflectSettings(trajectories=[steps], pairs=[pairs], workers=0, **settings.model_dump()),
            out,
        ),
        "dataset": lambda: ActDataset(str(pairs), AutoTokenizer.from_pretrained(model), data_config()),
    }
    for name, command in commands.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            command()
        assert str(model) in str(caught.value), name
    assert not out.exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"null", b"\xff\xfe{", b"{"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_model_folder_with_a_damaged_file_is_named(file: str, text: bytes, tmp_path: Path) -> None:
    model = shutil.copytree(embedded_models()["alfworld"], tmp_path / "model")
    (model / file).write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(model))
    assert str(model) in str(caught.value)
