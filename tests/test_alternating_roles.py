"""Models whose chat template demands that user and assistant take turns, as Gemma's and Mistral's, learn and play."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from samples import ALTERNATING, alternating_tokenizer, embedded_models, make_context, make_step
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.tokenizer.chat_template import extract_system_prompt_and_generation
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_act.data.sft_dataset import ActSFTDataset
from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.errors import ConfigError
from verl_act.prompts import Message, get_template
from verl_act.prompts.chat import ChatTemplate
from verl_act.prompts.rendering import require_prompts
from verl_act.rollout.sequence import GrowingSequence
from verl_act.run_folder import SFT_ROWS as FILE_NAME
from verl_act.schema import REFLECTION, TRAJECTORY, Context, Turn, write_rows
from verl_act.settings.data import SftSettings
from verl_act.upstream_gaps.alternating_roles import close_gap, system_prompt_and_generation

both = pytest.mark.parametrize("chat_template", ALTERNATING, ids=["gemma", "mistral"])
TEMPLATE = get_template("cot")


class WithSystemMessage(ChatTemplate):
    def action_messages(self, context: Context) -> list[Message]:
        return [{"role": "system", "content": "You are careful."}, *super().action_messages(context)]


def sft_file(folder: Path, tokenizer: Any) -> Path:
    """One expert row and one reflection."""
    tokenizer.save_pretrained(folder / "model")
    shutil.copy(embedded_models()["alfworld"] / "config.json", folder / "model")
    step = make_step()
    write_rows(folder / "steps.parquet", [step.to_row()], TRAJECTORY)
    texts = {"action": step.action, "outcome": "o", "reply": "r", "reflection": "The mug is here.", "model": "m"}
    reflection = {"state_id": step.state_id, **texts, "alternatives": []}
    write_rows(folder / "reflections.parquet", [reflection], REFLECTION)
    make_sft(
        SftSettings(
            trajectories=[folder / "steps.parquet"],
            model=str(folder / "model"),
            kind="reflection",
            reflections=[folder / "reflections.parquet"],
        ),
        folder / "sft",
    )
    return folder / "sft" / FILE_NAME


def sft_config() -> Any:
    overrides = ["+act=sft", "data.max_length=4096", "data.pad_mode=no_padding"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("sft_trainer_engine", overrides=overrides).data


@both
def test_imitation_and_reflections_are_encoded_as_the_model_is_asked(chat_template: str, tmp_path: Path) -> None:
    tokenizer = alternating_tokenizer(chat_template)
    dataset = ActSFTDataset(str(sft_file(tmp_path, tokenizer)), tokenizer, sft_config())
    assert len(dataset) == 2
    for index, messages in enumerate(dataset.messages):
        row = dataset[index]
        ids, learnt = row["input_ids"].tolist(), row["loss_mask"].tolist()
        asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        reply = tokenizer.encode(messages[-1]["content"], add_special_tokens=False)
        assert ids[: len(asked)] == asked and ids[len(asked) : -1] == reply
        assert tokenizer.decode(ids[-1]) == ("<end_of_turn>" if "<end_of_turn>" in chat_template else "</s>")
        assert learnt == [0] * len(asked) + [1] * (len(reply) + 1)


@both
@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral"])
def test_an_episode_grows_as_the_template_writes_it(chat_template: str, model_type: str) -> None:
    tokenizer = alternating_tokenizer(chat_template)
    builder = create_continuous_token_builder(tokenizer, hf_model_type=model_type)
    conversation = TEMPLATE.action_messages(make_context())
    sequence = GrowingSequence(conversation, tokenizer, builder)
    for observation in ("You see a mug.", "You take the mug.", "Nothing happens."):
        reply = "<action>look</action>"
        sequence.reply(tokenizer.encode(reply, add_special_tokens=False), reply)
        content = TEMPLATE.followup(observation, ["look", "go to desk 1"])
        assert sequence.observe(content, 10_000)
        conversation += [{"role": "assistant", "content": reply}, {"role": "user", "content": content}]
    expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    written = tokenizer.decode(sequence.sample.token_ids)
    assert written.replace(" ", "") == expected.replace(" ", ""), "but for the space before Mistral's replies"
    assert sum(sequence.sample.response_mask) == 3 * len(tokenizer.encode(reply, add_special_tokens=False))


def test_what_a_template_takes_is_read_as_verl_reads_it() -> None:
    tokenizer = alternating_tokenizer(ALTERNATING[0])
    tokenizer.chat_template = (embedded_models()["alfworld"] / "chat_template.jinja").read_text()
    assert system_prompt_and_generation(tokenizer) == extract_system_prompt_and_generation(tokenizer)
    builder = ContinuousTokenBuilder(tokenizer)
    close_gap(builder)
    assert builder._tokenize_single_non_tool.__func__ is ContinuousTokenBuilder._tokenize_single_non_tool  # type: ignore[attr-defined]


@both
def test_a_prompt_with_a_system_message_is_refused_at_the_start(chat_template: str, tmp_path: Path) -> None:
    tokenizer = alternating_tokenizer(chat_template)
    require_prompts(tokenizer, TEMPLATE, one_sequence=True)
    with pytest.raises(ConfigError, match="system, user"):
        require_prompts(tokenizer, WithSystemMessage())


@both
def test_the_gap_is_still_there_upstream(chat_template: str, tmp_path: Path) -> None:
    tokenizer = alternating_tokenizer(chat_template)
    with pytest.raises(Exception, match="must alternate"):
        MultiTurnSFTDataset(str(sft_file(tmp_path, tokenizer)), tokenizer, sft_config())
    question = [{"role": "user", "content": "a"}]
    more = [*question, {"role": "assistant", "content": "b"}, *question]
    # verl tries again with content parts, which Mistral's template cannot join.
    with pytest.raises(Exception, match=r"must alternate|concatenate"):
        ContinuousTokenBuilder(tokenizer).merge_context_tokens(more[:2], more, [1])


def test_a_reflection_is_asked_after_the_templates_other_messages() -> None:
    """Of a template that begins with a system message, for example."""
    context = make_step().context
    expert, other = Turn("You see it.", "look"), Turn("Nothing.", "wait")
    messages = WithSystemMessage().reflection_messages(context, expert, [other])
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "'look'" in messages[-1]["content"]
