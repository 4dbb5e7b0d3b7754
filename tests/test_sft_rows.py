"""Rows for supervised training and DPO: prompts as the stages ask them, and the reply to learn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from samples import data_config, embedded_models, make_pair, make_step
from transformers import AutoTokenizer
from trl.data_utils import is_conversational, maybe_apply_chat_template

from verl_act.data.dataset import ActDataset
from verl_act.data_prep.sft import rows
from verl_act.parse import parse_action, parse_choice
from verl_act.prompts import get_template
from verl_act.reward_fns.route import compute_score
from verl_act.schema import DPO, PAIR, SFT, Alternatives, Pair, read_table, write_rows

PAIRS = [make_pair(number) for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(embedded_models()["alfworld"])


def open_pairs(folder: Path, tokenizer: object, pairs: list[Pair], **act: object) -> ActDataset:
    write_rows(folder / "pairs.parquet", [pair.to_row() for pair in pairs], PAIR)
    return ActDataset(str(folder / "pairs.parquet"), tokenizer, data_config(act))


@pytest.mark.parametrize("options", [{}, {"choose_by_number": True}], ids=["by-text", "by-number"])
def test_choices_are_the_questions_of_the_critic_stage_with_the_answer_it_rewards(
    options: dict[str, bool], tokenizer: object, tmp_path: Path
) -> None:
    pairs = [*PAIRS, make_pair(99, further_alternatives=("look", "inventory"))]
    made = list(rows.choice(pairs, get_template("cot", **options), seed=5))
    asked = open_pairs(tmp_path, tokenizer, pairs, template_options=options, seed=5)
    for row, question in zip(made, asked, strict=True):
        *prompt, reply = row["messages"]
        assert prompt == question["raw_prompt"]
        answer = parse_choice(reply["content"], question["extra_info"]["candidates"])
        assert answer.index == question["extra_info"]["expert_position"]
        truth = question["reward_model"]["ground_truth"]
        score = compute_score(question["data_source"], reply["content"], truth, question["extra_info"])
        assert score["score"] == 1.0
    write_rows(tmp_path / "sft.parquet", made, SFT)
    assert read_table(tmp_path / "sft.parquet", SFT).num_rows == len(pairs)


def test_rejection_keeps_the_first_reply_with_the_experts_action_and_its_thought() -> None:
    steps = [make_step(number) for number in range(3)]
    right = [f"<think>{thought}</think><action>take  MUG 0 from desk 1</action>" for thought in ("I see", "So")]
    replies = ("<action>look</action>", right[0], f" {right[0]}\n", "no tag", right[1], "<think>take mug 0 from desk 1")
    sampled = {steps[0].state_id: Alternatives(state_id=steps[0].state_id, replies=replies, model="m", sampling="{}")}
    sampled[steps[1].state_id] = Alternatives(
        state_id=steps[1].state_id, replies=("<action>look</action>",), model="m", sampling="{}"
    )
    template = get_template("cot")
    (made,) = rows.rejection(steps, sampled, template)
    assert made["state_id"] == steps[0].state_id
    assert made["messages"][-1]["content"] == right[0]
    assert made["messages"][:-1] == template.action_messages(steps[0].context)


def test_preferences_are_rows_of_trl(tokenizer: object, tmp_path: Path) -> None:
    pairs = [*PAIRS[:5], make_pair(99, further_alternatives=("look",))]
    made = list(rows.preference(pairs, get_template("compact")))
    assert len(made) == 7, "one row an alternative"
    write_rows(tmp_path / "dpo.parquet", made, DPO)
    for row, pair in zip(pq.read_table(tmp_path / "dpo.parquet").to_pylist(), [*pairs, pairs[-1]], strict=True):
        assert is_conversational(row)
        texts = maybe_apply_chat_template(row, tokenizer)
        assert parse_action(texts["chosen"]).action == pair.expert_action
        assert parse_action(texts["rejected"]).action in pair.alternatives
        assert pair.context.observation in texts["prompt"] and "<action>" not in texts["prompt"]


def test_shuffled_labels_reward_any_candidate_of_training_pairs_alone(tokenizer: object, tmp_path: Path) -> None:
    held_out = [make_pair(number, split="valid_seen") for number in range(60, 120)]
    plain, shuffled, again, other = (
        open_pairs(tmp_path, tokenizer, [*PAIRS, *held_out], shuffled_labels=shuffle, seed=seed)
        for shuffle, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    labels = [row["reward_model"]["ground_truth"] for row in shuffled]
    experts = [row["reward_model"]["ground_truth"] for row in plain]
    assert labels == [row["reward_model"]["ground_truth"] for row in again]
    assert labels[60:] == experts[60:]
    assert labels[:60] != [row["reward_model"]["ground_truth"] for row in other][:60]
    kept = Counter(label == expert for label, expert in zip(labels[:60], experts[:60], strict=True))
    assert 15 < kept[True] < 45
    for row, before in zip(shuffled, plain, strict=True):
        assert row["raw_prompt"] == before["raw_prompt"]
        assert row["extra_info"]["candidates"] == before["extra_info"]["candidates"]
        truth = row["reward_model"]["ground_truth"]
        assert row["extra_info"]["candidates"][row["extra_info"]["expert_position"]] == truth
        score = compute_score(row["data_source"], f"<action>{truth}</action>", truth, row["extra_info"])
        assert score["score"] == 1.0
