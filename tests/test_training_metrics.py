"""What a reward function returns beside the score, in the metrics of every training step."""

from __future__ import annotations

from importlib import import_module

import pytest
import wrapt

from verl_act.training_metrics import means


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


def test_nothing_to_log() -> None:
    assert means([], []) == {}
    assert means(["act/alfworld/choice"], [{}]) == {}


def test_rows_without_a_source_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        means(["act/alfworld/choice"], [])


def test_the_trainer_is_wrapped_when_verl_imports_it() -> None:
    trainer = import_module("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    assert isinstance(vars(trainer)["_compute_metrics"], wrapt.FunctionWrapper)
