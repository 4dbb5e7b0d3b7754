"""Models that mark thoughts by control tokens, which decoding strips: drafts are no answers, a cut thought is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from samples import byte_level, data_config, embedded_models, make_context, make_pair
from transformers import AutoConfig
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.workers.rollout.replica import TokenOutput

from verl_act.chain import load_recipe
from verl_act.chain.check import check_run
from verl_act.chain.check import compose as compose_stage
from verl_act.chain.plan import run_plan
from verl_act.chain.stages import TrainingStage
from verl_act.config.settings import EpisodeSettings
from verl_act.data.dataset import ActDataset
from verl_act.engine import Engine, usable_tokenizer
from verl_act.errors import ConfigError
from verl_act.parse import THOUGHT_MARKERS, Malformed, has_thought, parse_action
from verl_act.prompts import get_template
from verl_act.prompts.reply_decoder import ReplyDecoder
from verl_act.rollout.agent_loop import StepwisePolicy
from verl_act.run_folder import RunFolder
from verl_act.schema import PAIR, write_rows
from verl_act.settings.model import ModelSettings, Sampling

CONTROL = ["<|im_start|>", "<|im_end|>"]
OPENS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
TEMPLATE = f"{OPENS}{{% endif %}}"
DRAFT = "I could <action>look</action>, but the shelf is nearer."
ANSWER = "<action>go to shelf 1</action>"


@dataclass(frozen=True)
class Family:
    control: list[str]
    opens: str
    closes: str
    ends: str = "<|im_end|>"

    @property
    def reply(self) -> str:
        return f"{self.opens}{DRAFT}{self.closes}{ANSWER}{self.ends}"

    def tokenizer(self, template: str = TEMPLATE) -> Any:
        return byte_level([*CONTROL, *self.control], template, eos_token="<|im_end|>")


HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"]
FAMILIES = {
    "gpt-oss": Family(
        HARMONY,
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
    "Gemma 4": Family(["<|channel>", "<channel|>"], "<|channel>thought\n", "<channel|>"),
    "Magistral": Family(["[THINK]", "[/THINK]"], "[THINK]", "[/THINK]"),
    "Command A Reasoning": Family(["<|START_THINKING|>", "<|END_THINKING|>"], "<|START_THINKING|>", "<|END_THINKING|>"),
    "Kimi K3": Family(
        ["<|open|>", "<|close|>", "<|sep|>"],
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|><|open|>response<|sep|>",
        "<|close|>response<|sep|><|im_end|>",
    ),
    "Seed-OSS": Family(["<seed:think>", "</seed:think>"], "<seed:think>", "</seed:think>"),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def test_every_family_is_tested() -> None:
    assert FAMILIES.keys() == THOUGHT_MARKERS.keys()


@each_family
def test_a_draft_is_no_answer_and_a_cut_thought_is_none(family: Family) -> None:
    tokenizer = family.tokenizer()
    decoder = ReplyDecoder(tokenizer)
    ids = tokenizer.encode(family.reply)
    reply = decoder.prefix + decoder.text(ids)
    assert parse_action(reply).action == "go to shelf 1" and has_thought(reply)
    assert reply.endswith(ANSWER), "nothing of the markers is left"
    stripped = tokenizer.decode(ids, skip_special_tokens=True)
    assert parse_action(stripped).malformed is Malformed.SEVERAL, "the case needs the decoder"
    cut = ids[: len(tokenizer.encode(family.opens + DRAFT))]
    assert parse_action(decoder.text(cut)).malformed is Malformed.UNCLOSED_THINK


@each_family
def test_a_thought_that_the_prompt_opened_is_part_of_the_reply(family: Family) -> None:
    tokenizer = family.tokenizer(f"{OPENS}{family.opens}{{% endif %}}")
    decoder = ReplyDecoder(tokenizer)
    assert decoder.prefix == "<think>"
    ids = tokenizer.encode(f"{DRAFT}{family.closes}{ANSWER}")
    assert parse_action(decoder.prefix + decoder.text(ids)).action == "go to shelf 1"
    assert parse_action(decoder.prefix + decoder.text(ids[: len(DRAFT)])).malformed is Malformed.UNCLOSED_THINK
    closed = family.tokenizer(f"{OPENS}{family.opens}{family.closes}{{% endif %}}")
    assert ReplyDecoder(closed).prefix == ""


@each_family
def test_markers_that_are_spelled_as_text_mark_nothing(family: Family) -> None:
    """A policy in training could else hide an answer in a thought of its own making."""
    tokenizer = family.tokenizer()
    letters = [token for letter in family.reply for token in tokenizer.encode(letter)]
    assert ReplyDecoder(tokenizer).text(letters) == family.reply


def test_an_ordinary_model_is_decoded_by_its_tokenizer_alone() -> None:
    tokenizer = byte_level(CONTROL, TEMPLATE, ordinary=["<think>", "</think>"], eos_token="<|im_end|>")
    decoder = ReplyDecoder(tokenizer)
    reply = f"<think>{DRAFT}</think>{ANSWER}"
    assert not decoder.rewrites and decoder.text(tokenizer.encode(f"{reply}<|im_end|>")) == reply


UNKNOWN = Family(["<|thinking|>", "<|/thinking|>"], "<|thinking|>", "<|/thinking|>")


def test_an_unknown_family_is_refused_unless_its_markers_are_set() -> None:
    tokenizer = UNKNOWN.tokenizer()
    with pytest.raises(ConfigError, match="thought_markers") as refused:
        ReplyDecoder(tokenizer)
    assert "<|thinking|>" in str(refused.value)
    decoder = ReplyDecoder(tokenizer, markers=("<|thinking|>", "<|/thinking|>"))
    assert parse_action(decoder.text(tokenizer.encode(UNKNOWN.reply))).action == "go to shelf 1"
    assert not ReplyDecoder(tokenizer, markers=()).rewrites
    with pytest.raises(ConfigError, match="thought_markers"):
        ReplyDecoder(tokenizer, markers=("<|thinking|>",))


def test_datasets_and_engines_refuse_an_unknown_family_at_their_start(tmp_path: Any) -> None:
    model = save_model(UNKNOWN, tmp_path / "model")
    pairs = tmp_path / "pairs.parquet"
    write_rows(pairs, [make_pair().to_row()], PAIR)
    for refused in (
        lambda: ActDataset(str(pairs), UNKNOWN.tokenizer(), data_config()),
        lambda: usable_tokenizer(ModelSettings(model=model)),
    ):
        with pytest.raises(ConfigError, match="thought_markers"):
            refused()
    markers = UNKNOWN.control
    assert len(ActDataset(str(pairs), UNKNOWN.tokenizer(), data_config({"thought_markers": markers}))) == 1
    usable_tokenizer(ModelSettings(model=model, engine_options={"thought_markers": markers}))


def save_model(family: Family, folder: Any) -> str:
    family.tokenizer().save_pretrained(folder)
    AutoConfig.from_pretrained(embedded_models()["alfworld"]).save_pretrained(folder)
    return str(folder)


@each_family
def test_the_engine_marks_thoughts(family: Family) -> None:
    tokenizer = family.tokenizer()

    class Vllm:
        """vLLM, as far as an engine sees it: text without control tokens."""

        async def generate(self, prompt: Any, parameters: Any, request: str) -> AsyncIterator[Any]:
            ids = tokenizer.encode(family.reply)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            completion = SimpleNamespace(token_ids=ids, text=text, cumulative_logprob=-1.0, finish_reason="stop")
            yield SimpleNamespace(outputs=[completion])

    engine = Engine.__new__(Engine)
    engine.tokenizer, engine.llm, engine.decoder = tokenizer, cast(Any, Vllm()), ReplyDecoder(tokenizer)
    engine.chat_template_kwargs, engine.reply_prefix, engine.max_model_len, engine.without_room = {}, "", 4096, 0
    messages = [{"role": "user", "content": "go"}]
    (reply,) = asyncio.run(engine.reply(messages, Sampling()))
    (scored,) = asyncio.run(engine.scored_reply(messages, Sampling()))
    assert parse_action(reply).action == "go to shelf 1" and scored.text == reply


@each_family
def test_the_agent_loop_marks_thoughts(family: Family) -> None:
    tokenizer = family.tokenizer()

    async def generate(**_: Any) -> TokenOutput:
        return TokenOutput(token_ids=tokenizer.encode(family.reply), log_probs=None)

    async def reply() -> str | None:
        rollout = SimpleNamespace(prompt_length=4096, response_length=512)
        builder = SimpleNamespace(build_initial_tokens=lambda messages: [0])
        loop = SimpleNamespace(
            tokenizer=tokenizer,
            data_config=OmegaConf.create(),
            rollout_config=rollout,
            continuous_token_builder=builder,
            server_manager=SimpleNamespace(generate=generate),
            loop=asyncio.get_running_loop(),
        )
        policy = StepwisePolicy(cast(Any, loop), get_template("plain"), EpisodeSettings(), {})
        return await policy.reply(make_context())

    assert parse_action(asyncio.run(reply()) or "").action == "go to shelf 1"


@each_family
def test_verls_reward_managers_mark_thoughts(family: Family, tmp_path: Any) -> None:
    """The reward of a right answer with a draft in its thought, as verl's reward worker computes it."""
    model = save_model(family, tmp_path / "model")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["+act=critic", f"actor_rollout_ref.model.path={model}"])
    tokenizer = family.tokenizer()

    def score(text: str) -> dict[str, float]:
        ids = torch.tensor([tokenizer.encode(text)])
        rows = {"responses": ids, "attention_mask": torch.ones_like(ids)}
        info = {"candidates": ["go to shelf 1", "look"], "admissible_actions": ["go to shelf 1", "look"]}
        columns = {
            "data_source": "act/alfworld/choice",
            "reward_model": {"ground_truth": "go to shelf 1"},
            "extra_info": info,
        }
        arrays = {name: np.array([value], dtype=object) for name, value in columns.items()}
        data = DataProto.from_dict(rows, non_tensors=arrays)

        async def run() -> dict[str, Any]:
            return await RewardLoopWorker(config).reward_manager.run_single(data)

        return asyncio.run(run())["reward_extra_info"]

    assert score(family.reply)["acc"] == score(family.reply)["thought"] == 1
    assert score(f"{family.opens}{ANSWER}")["fmt"] == 1


def test_a_recipe_checks_its_model_and_trains_with_its_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [f"model={save_model(UNKNOWN, tmp_path / 'model')}"]
    with pytest.raises(ConfigError, match="model"):
        check_run(load_recipe("alfworld/quickstart", changes), RunFolder(tmp_path / "out"), [0])
    assert "thought_markers" in capsys.readouterr().out
    recipe = load_recipe("alfworld/quickstart", [*changes, f"engine_options={{thought_markers: {UNKNOWN.control}}}"])
    trained = [stage for stage in run_plan(recipe, RunFolder(tmp_path)) if isinstance(stage, TrainingStage)]
    assert [stage.overrides["data.act.thought_markers"] for stage in trained] == [UNKNOWN.control] * 2
    for stage in trained:
        compose_stage(stage)
