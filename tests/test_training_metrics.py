"""What a reward function returns beside the score, in the metrics of every training step."""

from __future__ import annotations

from importlib import import_module

import pytest
import wrapt

from verl_act.training_metrics import last_outputs, means


def test_each_data_source_has_its_own_means() -> None:
    """In a mixed batch a key counts only the rows that have it; what is no number is left to the logs of others."""
    sources = ["act/alfworld/choice", "act/alfworld/choice", "openai/gsm8k", "act/alfworld/choice"]
    fields = [
        {"reward_extra_info": {"acc": 1.0, "fmt": 0.0}, "min_global_steps": 3},
        {"reward_extra_info": {"acc": 0.0, "fmt": 1.0}},
        {"reward_extra_info": {"acc": True, "pred": "42"}},
        {"reward_extra_info": None},
    ]
    assert means(sources, fields) == {
        "train/act/alfworld/choice/acc/mean": 0.5,
        "train/act/alfworld/choice/fmt/mean": 0.5,
        "train/openai/gsm8k/acc/mean": 1.0,
    }


def test_an_episode_counts_once_however_many_turns_it_has() -> None:
    """verl gives every turn of an episode what the reward function returned for it."""
    won = {"prompt_0_0": 1.0, "prompt_0_1": 1.0}
    lost = {f"prompt_1_{turn}": 0.0 for turn in reversed(range(12))}
    figures = {**won, **lost, "other_prompt_0_0": 0.5, "prompt_1_50": 1000.0}
    rows = last_outputs(list(figures), [key == "prompt_1_50" for key in figures])
    assert [list(figures)[row] for row in rows] == ["prompt_0_1", "prompt_1_11", "other_prompt_0_0"]
    fields = [{"reward_extra_info": {"success": list(figures.values())[row]}} for row in rows]
    assert means(["act/alfworld/episode"] * 3, fields) == {"train/act/alfworld/episode/success/mean": 0.5}
    assert last_outputs(["prompt", "other_prompt"], [False, False]) == [0, 1]


def test_nothing_to_log() -> None:
    assert means([], []) == {}
    assert means(["act/alfworld/choice"], [{}]) == {}


def test_rows_without_a_source_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        means(["act/alfworld/choice"], [])


def test_the_trainer_is_wrapped_when_verl_imports_it() -> None:
    trainer = import_module("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    assert isinstance(vars(trainer)["_compute_metrics"], wrapt.FunctionWrapper)
