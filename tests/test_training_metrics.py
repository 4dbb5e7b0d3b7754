"""What a reward function returns beside the score, in the metrics of every training step."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import wrapt

from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import load_recipe
from verl_act.config.settings import ActSettings
from verl_act.errors import DataError
from verl_act.learning_signal import STEPS, SWITCH, LearningSignal, equal_groups
from verl_act.run_folder import RunFolder
from verl_act.upstream_gaps.training_metrics import last_outputs, means


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


@pytest.mark.parametrize(
    ("keys", "rewards", "expected"),
    [
        (["a_0_0", "a_1_0", "b_0_0", "b_1_0"], [1.0, 0.1, 0.0, 0.0], (1, 2)),
        (["a_0_0", "a_1_0", "b_0_0", "b_1_0"], [1.0, 1.0, 0.0, 0.0], (2, 2)),
        (["a_0_3", "a_1_7", "b_0_0"], [1.0, 1.0, 0.0], (1, 1)),  # of b one reply is left
        (["a_0_0", "b_0_0"], [1.0, 0.0], (0, 1)),  # one reply a prompt: the batch is the group
        (["a_0_0", "b_0_0"], [0.0, 0.0], (1, 1)),
        (["with_underscores_0_0", "with_underscores_1_0"], [1.0, 0.0], (0, 1)),
        ([], [], (0, 0)),
    ],
)
def test_groups_with_equal_rewards(keys: list[str], rewards: list[float], expected: tuple[int, int]) -> None:
    assert equal_groups(keys, rewards) == expected


GROUP = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]


@pytest.mark.parametrize("rewards", [[-0.5] * 4, [1.0, 1.0, 0.0, 0.0], [1.0] * 4])
def test_a_run_without_a_learning_signal_stops(rewards: list[float]) -> None:
    """All rewards of every group are equal from the first step on."""
    signal = LearningSignal()
    assert [signal.after_step(step, GROUP, rewards) for step in range(1, STEPS)] == [1.0] * (STEPS - 1)
    with pytest.raises(DataError, match=r"data\.act\.allow_degenerate=true"):
        signal.after_step(STEPS, GROUP, rewards)


def test_a_switch_continues_and_so_does_a_run_that_has_learnt(caplog: pytest.LogCaptureFixture) -> None:
    equal, different = [1.0] * 4, [1.0, 0.1, 1.0, 1.0]
    runs = {
        "allowed": (LearningSignal(allow_degenerate=True), [equal] * 20, 1),
        "solved later": (LearningSignal(), [different, *[equal] * 20], 1),
        "resumed": (LearningSignal(), [equal] * 20, 81),
        "now and then": (LearningSignal(), [equal, equal, equal, different] * 5, 1),
    }
    for name, (signal, steps, first) in runs.items():
        caplog.clear()
        shares = [signal.after_step(number, GROUP, rewards) for number, rewards in enumerate(steps, first)]
        assert shares == [1.0 if rewards is equal else 0.5 for rewards in steps]
        assert len(caplog.records) == (name != "now and then"), "warned of once"


def test_the_switch_has_one_name() -> None:
    """In data.act, in a recipe, and as the option of a command."""
    recipe = load_recipe("alfworld/quickstart", [f"{SWITCH}=true"])
    commands = {stage.name: " ".join(stage.argv()) for stage in run_plan(recipe, RunFolder(Path("run")))}
    assert "--allow-degenerate" in commands["alternatives"]
    assert all(f"data.act.{SWITCH}=true" in commands[name] for name in ("critic", "action"))
    assert SWITCH in ActSettings.model_fields
    without = {
        stage.name: " ".join(stage.argv())
        for stage in run_plan(load_recipe("alfworld/quickstart"), RunFolder(Path("run")))
    }
    assert not any("degenerate" in command for command in without.values())


def test_the_trainer_is_wrapped_when_verl_imports_it() -> None:
    trainer = import_module("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    assert isinstance(vars(trainer)["_compute_metrics"], wrapt.FunctionWrapper)
