"""The comparison of methods: its stages, its statistics and its table; and, slow, all of it on real verl.

A method's own pieces (SFT rows, reflections, outcomes of alternatives) are made by the real environment.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from samples import make_pair

from verl_act.chain import check, load_recipe, run_recipe
from verl_act.chain.methods import budget, method_stages, only, run_methods
from verl_act.chain.recipe import Recipe, embedded_models, parse_stage
from verl_act.chain.run import alone, run_stages
from verl_act.chain.stages import CommandStage, Stage, TrainingStage
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.data_prep.sft.reflect import Unusable, alternatives_by_state, outcomes, reflection_text
from verl_act.errors import ConfigError, DataError
from verl_act.evaluate.files import FILES
from verl_act.evaluate.methods import compare_methods
from verl_act.evaluate.statistics import (
    ItemOutcome,
    against,
    effective_count,
    estimate,
    holm,
    seed_p,
    share_interval,
    wilson_interval,
)
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.prompts import get_template
from verl_act.run_folder import PlannedStage, RunFolder
from verl_act.schema import PAIR, REFLECTION, SFT, read_pairs, read_steps, read_table, write_rows
from verl_act.settings.data import ExpertSettings, PairsSettings, ReflectSettings, SftSettings
from verl_act.settings.evaluation import MethodsTableSettings

RECIPES = [
    *(f"alfworld/{name}" for name in ("methods_thinking", "official", "smollm2_methods", "sweep")),
    *(f"{env}/{size}" for env in ("alfworld", "scienceworld", "webshop") for size in ("methods", "methods_full")),
]


def named(recipe: Recipe, out: Path, seeds: tuple[int, ...] = (0, 1)) -> dict[str, Stage]:
    stages = method_stages(recipe, RunFolder(out), seeds)
    assert len({stage.name for stage in stages}) == len(stages), "a mark of its own for each"
    return {stage.name: stage for stage in stages}


def table_of(settings: MethodsTableSettings, out: Path) -> Any:
    """The content of `methods.json`."""
    compare_methods(settings, out)
    return json.loads((out / "methods.json").read_text(encoding="utf-8"))


# Stages


@pytest.mark.parametrize("name", RECIPES)
def test_every_training_stage_composes(name: str, tmp_path: Path) -> None:
    composed = set()
    for stage in method_stages(load_recipe(name), RunFolder(tmp_path), [3]):
        # Those of one trainer differ in the model and the steps alone.
        if isinstance(stage, TrainingStage) and (kind := tuple(stage.config)) not in composed:
            assert check.compose(stage).endswith("overrides")
            composed.add(kind)
    assert len(composed) >= 3


@pytest.mark.parametrize("name", RECIPES)
def test_every_input_is_written_by_an_earlier_stage(name: str, tmp_path: Path) -> None:
    written: list[Path] = []
    for stage in method_stages(load_recipe(name), RunFolder(tmp_path), [0, 1]):
        for path in stage.inputs:
            ours = path.is_relative_to(tmp_path)
            assert not ours or any(path.is_relative_to(output) for output in written), f"{stage.name}: {path}"
        written.append(stage.output)


def test_data_are_made_once_and_shared_training_once_a_seed(tmp_path: Path) -> None:
    stages = named(load_recipe("alfworld/methods_thinking"), tmp_path)
    assert [name for name in stages if not name.startswith("seed")].count("alternatives") == 1
    trained = [name for name, stage in stages.items() if isinstance(stage, TrainingStage) and name.startswith("seed 1")]
    assert len(trained) == len(set(trained)) and {"seed 1 il", "seed 1 critic+il", "seed 1 il+action"} <= set(trained)
    model = stages["seed 1 il+action"].override("actor_rollout_ref.model.path")
    assert model == str(tmp_path / "seed-1" / "il" / "model")
    evaluated = Counter(name.rpartition(" ")[2] for name in stages if " evaluate " in name)
    assert evaluated.pop("prompting") == 1, "greedy decoding of the initial model is the same for every seed"
    assert set(evaluated.values()) == {2} and len(evaluated) == 21


def test_a_methods_own_prompt_keeps_the_recipes_options(tmp_path: Path) -> None:
    stages = named(load_recipe("scienceworld/methods_full"), tmp_path, (0,))
    for name, template in (("prompting-no-reasoning", "plain"), ("prompting", "cot")):
        settings = stages[f"seed 0 evaluate {name}"].settings
        assert settings.template == template
        assert settings.template_options == {"history_length": 10, "max_listed": 60}


def test_steps_and_seeds_reach_the_trainers(tmp_path: Path) -> None:
    longer = {"Longer": {"stages": ["action:120"]}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "alfworld/methods", "methods": longer}))
    stages = named(load_recipe(str(path)), tmp_path, (5,))
    assert stages["seed 5 action-120"].override("trainer.total_training_steps") == 120
    assert stages["seed 5 action"].override("trainer.total_training_steps") == 80
    assert stages["seed 5 critic"].override("data.seed") == 5
    assert stages["seed 5 rows il"].settings.seed == 5
    bounded = load_recipe(str(path), steps=2)
    budgets = {name: budget(bounded, method) for name, method in bounded.methods.items()}
    assert {name: sum(steps.values()) for name, steps in budgets.items()} == {
        name: 2 * len(method.stages) for name, method in bounded.methods.items()
    }
    assert budgets["Longer"] == {"action:2": 2} and budgets["IL -> RL -> RL"] == {"il": 2, "action": 4}


def test_a_comparison_with_dpo_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.check_run(only(load_recipe("alfworld/methods"), ["DPO"]), RunFolder(tmp_path), [0])
    assert "ok    seed 0 dpo configuration" in capsys.readouterr().out


def test_a_stage_like_another_follows_it(tmp_path: Path) -> None:
    critic, shuffled = (load_recipe("webshop/methods").training[name] for name in ("critic", "shuffled"))
    assert shuffled.overrides["data"].pop("act") == {**critic.overrides["data"].pop("act"), "shuffled_labels": True}
    assert (shuffled.overrides, shuffled.config, shuffled.data) == (critic.overrides, critic.config, critic.data)
    for like in ("judge", "shuffled", 3):
        with pytest.raises(ConfigError, match=r"training\.mine\.like"):
            load_recipe("alfworld/methods", [f"training.mine={{like: {like}}}"])
    changed = "training.critic.overrides.trainer.save_freq=7"
    assert load_recipe("alfworld/methods", [changed]).training["shuffled"].overrides["trainer"]["save_freq"] == 7


@pytest.mark.parametrize("name", ["alfworld/methods", "alfworld/official"])
def test_a_comparison_gives_every_stage_as_many_prompts(name: str) -> None:
    recipe = load_recipe(name)
    used = {parse_stage(stage)[0] for method in recipe.methods.values() for stage in method.stages}
    shown = {recipe.training[stage].overrides["data"]["train_batch_size"] for stage in used}
    steps = {recipe.whole_override(stage, "trainer.total_training_steps") for stage in used}
    assert len(shown) == len(steps) == 1 and len(used) == 7


def test_learning_rates_are_compared_on_development_games_alone(tmp_path: Path) -> None:
    stages = named(load_recipe("alfworld/sweep"), tmp_path, (0,))
    games, evaluation = stages["games"].settings, stages["seed 0 evaluate il-lr-1e-3"]
    assert games.counts.items() >= {"train": 300, "valid_seen": 140, "valid_unseen": 134}.items()
    assert {Path(path).parent.name for path in evaluation.settings.trajectories} == {"dev"}
    assert stages["tasks eval"].settings.splits == ["dev"]
    assert stages["seed 0 il_3e-4"].override("optim.lr") == 3e-4
    assert stages["seed 0 critic_3e-3"].override("actor_rollout_ref.actor.optim.lr") == 3e-3


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"A": {"stages": ["imitation"]}}, r"methods\.A\.stages has 'imitation'"),
        ({"A": {"stages": ["action:many"]}}, r"methods\.A\.stages has 'action:many'"),
        ({"A": {"stages": ["action:0"]}}, "at least 1"),
        ({"A": {"stages": ["action: 5"]}}, r"methods\.A\.stages has 'action: 5'"),
        ({"A": {"stages": ["il"]}}, r"methods\.A\.stages has 'il'"),
        ({"A": {"stages": [], "against": "B"}}, r"methods\.A\.against has 'B'"),
        ({"A": {"stages": []}, "B": {"stages": [], "against": ["A", "B"]}}, r"methods\.B\.against has 'B'"),
        ({"A": {"stage": []}}, "stage"),
    ],
)
def test_a_bad_method_is_refused(methods: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "alfworld/quickstart", "methods": methods}))
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


def test_seeds_are_given_each_once(tmp_path: Path) -> None:
    recipe = load_recipe("alfworld/methods")
    for seeds in ([], [1, 1]):
        with pytest.raises(ConfigError, match="--seeds"):
            method_stages(recipe, RunFolder(tmp_path), seeds)
    with pytest.raises(ConfigError, match="--seeds"):
        run_recipe("alfworld/quickstart", tmp_path, seeds=[0])


def test_some_of_the_methods_in_the_recipes_order(tmp_path: Path) -> None:
    chosen = only(load_recipe("alfworld/methods"), ["ACT -> RL", "ACT -> IL", "IL"])
    assert list(chosen.methods) == ["IL", "ACT -> IL", "ACT -> RL"]
    trained = [name for name, stage in named(chosen, tmp_path, (0,)).items() if isinstance(stage, TrainingStage)]
    assert trained == [f"seed 0 {name}" for name in ("il", "critic", "critic+il", "critic+action")]
    with pytest.raises(
        ConfigError, match="'IL, more' is not a method of the recipe; choose from 'Prompting', 'ACT', 'IL', "
    ):
        only(chosen := load_recipe("alfworld/methods"), ["IL, more"])
    assert len(chosen.methods) == 21


DATA_FILES = ("trajectories", "alternatives", "pairs", "tasks", "reflections", "sft")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stages leave empty files where their results would be; the methods of the table is added to the list."""
    told: list[dict[str, Any]] = []

    def make(stage: CommandStage) -> None:
        words = stage.argv()
        if isinstance(stage.settings, MethodsTableSettings):
            told.append(stage.settings.model_dump()["methods"])
        if stage.output.suffix:
            stage.output.touch()
            return
        stage.output.mkdir(parents=True, exist_ok=True)
        for name in (*FILES, *(f"{name}.parquet" for name in DATA_FILES), "methods.json"):
            (stage.output / name).write_text(" ".join(words) if name in ("methods.json", "pairs.parquet") else "")
        write_manifest(stage.output, make_manifest(stage.name, settings={}))

    def train(stage: TrainingStage, manifest: Manifest) -> float:
        (stage.output / "model").mkdir(parents=True, exist_ok=True)
        return 1.0

    monkeypatch.setattr("verl_act.chain.run._run", make)
    monkeypatch.setattr("verl_act.chain.run.train", train)
    return told


def seeds_of(table: dict[str, Any]) -> dict[str, list[int]]:
    return {name: [int(seed) for seed in method["evaluations"]] for name, method in table.items()}


def test_the_table_has_all_that_is_finished_in_the_folder(
    tables: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["Prompting", "IL", "RL", "ACT -> RL"]
    whole = only(load_recipe("alfworld/methods"), names)
    run_methods(whole, RunFolder(tmp_path), [1, 0])
    assert seeds_of(tables[-1]) == {"Prompting": [1], "IL": [0, 1], "RL": [0, 1], "ACT -> RL": [0, 1]}
    run_methods(whole, RunFolder(tmp_path), [3])
    assert seeds_of(tables[-1]) == {"Prompting": [1], **{name: [0, 1, 3] for name in names[1:]}}
    assert tables[-1]["IL"]["training"] == {str(seed): [f"seed {seed} il"] for seed in (0, 1, 3)}
    run_methods(only(whole, ["ACT -> RL"]), RunFolder(tmp_path), [4], whole)
    expected = {"Prompting": [1], "IL": [0, 1, 3], "RL": [0, 1, 3], "ACT -> RL": [0, 1, 3, 4]}
    assert seeds_of(tables[-1]) == expected
    assert tables[-1]["ACT -> RL"]["against"] == ["RL"] and tables[-1]["IL"]["against"] == ["Prompting"]
    capsys.readouterr()
    run_methods(whole, RunFolder(tmp_path), [1, 0, 3])
    shown = capsys.readouterr().out
    assert len(tables) == 3 and ": done in" not in shown, "its table is the one that is there"

    # A half finished seed has the methods that are finished, and deleted models change nothing.
    shutil.rmtree(tmp_path / "seed-3" / "evaluation" / "rl")
    shutil.rmtree(tmp_path / "seed-0" / "critic+action" / "model")
    run_methods(only(whole, ["IL"]), RunFolder(tmp_path), [0], whole)
    assert seeds_of(tables[-1]) == expected | {"RL": [0, 1]}


def test_what_other_settings_or_data_made_is_not_in_the_table(
    tables: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int, *changes: str, steps: int | None = None) -> str:
        whole = only(load_recipe("alfworld/methods", changes, steps), ["Prompting", "IL", "RL"])
        run_methods(only(whole, ["IL", "RL"]), RunFolder(tmp_path), [seed], whole)
        return capsys.readouterr().out

    assert "Not in the table" not in run(0)
    shown = run(1, "training.il.overrides.optim.lr=1")
    assert seeds_of(tables[-1]) == {"IL": [1], "RL": [0, 1]}
    assert "Not in the table" in shown and "seed-0/evaluation/il. Run" in shown
    run(2, steps=2)
    assert seeds_of(tables[-1]) == {"IL": [2], "RL": [2]}
    run(3, "pairs.max_alternatives_per_state=1")
    assert seeds_of(tables[-1]) == {"IL": [3], "RL": [3]}


def test_the_last_of_several_processes_has_all_seeds(
    tables: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What becomes finished while it waits for another's table is in its own."""
    recipe = only(load_recipe("alfworld/methods"), ["IL", "RL"])
    last = threading.Thread(target=run_methods, args=(recipe, RunFolder(tmp_path), [0]))
    with alone(RunFolder(tmp_path), "table", "the first one's table"):
        last.start()
        shown = ""
        while "table of the methods: waiting, process" not in shown:
            shown += capsys.readouterr().out.replace("\n", " ")
            time.sleep(0.01)
        run_stages(method_stages(recipe, RunFolder(tmp_path), [1])[:-2], RunFolder(tmp_path))
    last.join()
    assert [seeds_of(table) for table in tables] == [{"IL": [0, 1], "RL": [0, 1]}]


@pytest.mark.parametrize("name", RECIPES)
def test_games_are_made_for_alfworld_alone(name: str, tmp_path: Path) -> None:
    planned = named(load_recipe(name), tmp_path, (0,)).values()
    made = [stage.name for stage in planned if isinstance(stage, CommandStage) and stage.command == "data games"]
    generated = name.startswith("alfworld") and name not in ("alfworld/official", "alfworld/methods_full")
    assert made == (["games"] if generated else [])
    if not name.startswith("alfworld"):
        with pytest.raises(ConfigError, match=r"games\.counts"):
            load_recipe(name, ["games.counts={train: 3}"])


# Data of imitation and reflection


@pytest.fixture(scope="module")
def expert(games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    data = {"data": str(games)}
    collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=data, workers=0), folder)
    build_pairs(
        PairsSettings(
            trajectories=[folder / "trajectories.parquet"],
            alternatives=[],
            env_settings=data,
            source="admissible",
            workers=0,
        ),
        folder / "pairs",
    )
    return folder


def reflecting(games: Path, workers: int = 0) -> ReflectSettings:
    settings = {"env_settings": {"data": str(games)}, "workers": workers}
    return ReflectSettings(model="none", trajectories=[], pairs=[], **settings)


def test_outcomes_are_what_the_environment_shows(expert: Path, games: Path) -> None:
    steps = read_steps([expert / "trajectories.parquet"])
    following = {(step.trajectory_id, step.step): step for step in steps}
    pairs = {pair.state_id: [pair.alternative_action] for pair in read_pairs([expert / "pairs" / "pairs.parquet"])}
    counts: Counter[str] = Counter()
    compared = 0
    for step, taken, others in outcomes(steps, pairs, reflecting(games), counts):
        assert [turn.action for turn in others] == pairs[step.state_id]
        assert all(turn.observation for turn in others)
        if after := following.get((step.trajectory_id, step.step + 1)):
            assert taken.observation == after.context.observation
            compared += 1
    assert counts["states"] == len(pairs) and compared > 20


def test_processes_share_outcomes_and_change_nothing(expert: Path, games: Path) -> None:
    steps = read_steps([expert / "trajectories.parquet"])
    alternatives = alternatives_by_state([expert / "pairs" / "pairs.parquet"])
    counts: list[Counter[str]] = [Counter(), Counter()]
    one, two = (
        list(outcomes(steps, alternatives, reflecting(games, workers), counts[workers - 1])) for workers in (1, 2)
    )
    assert one == two and counts[0] == counts[1]


def test_every_alternative_of_a_state_is_tried_once(tmp_path: Path) -> None:
    pairs = [make_pair(0, further_alternatives=("look", "inventory")), make_pair(0, alternative_action="look")]
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in [*pairs, make_pair(1)]], PAIR)
    assert alternatives_by_state([tmp_path / "pairs.parquet"]) == {
        pairs[0].state_id: ["go to shelf 1", "look", "inventory"],
        make_pair(1).state_id: ["go to shelf 1"],
    }


def test_rows_for_sft(expert: Path, tmp_path: Path) -> None:
    trajectories = [expert / "trajectories.parquet"]
    step = read_steps(trajectories)[3]
    row = {"state_id": step.state_id, "action": step.action, "outcome": "", "alternatives": [], "model": "m"}
    write_rows(tmp_path / "r.parquet", [{**row, "reply": "x", "reflection": "It is there."}], REFLECTION)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options: dict[str, Any] = {"template": "compact", "seed": seed}
        make_sft(
            SftSettings(
                trajectories=trajectories,
                model=str(embedded_models()["alfworld"]),
                kind="reflection",
                reflections=[tmp_path / "r.parquet"],
                **options,
            ),
            tmp_path / name,
        )
    first, again, other = (read_table(tmp_path / name / "sft.parquet", SFT).to_pylist() for name in "abc")
    assert first == again != other
    assert Counter(map(str, first)) == Counter(map(str, other)), "only the order differs"
    assert len(first) == len(read_steps(trajectories)) + 1
    (reflected,) = (entry for entry in first if entry["source"] == "reflection")
    reply = reflected["messages"][-1]
    assert reply == {"role": "assistant", "content": f"<think>It is there.</think><action>{step.action}</action>"}
    kind: Any = {"kind": "reflection", "trajectories": trajectories, "model": str(embedded_models()["alfworld"])}
    with pytest.raises(DataError, match="occurs twice"):
        make_sft(SftSettings(reflections=[tmp_path / "r.parquet", tmp_path / "r.parquet"], **kind), tmp_path / "d")
    write_rows(tmp_path / "r.parquet", [{**row, "state_id": "?", "reply": "", "reflection": "x"}], REFLECTION)
    with pytest.raises(DataError, match=r"state \? is not in the trajectories"):
        make_sft(
            SftSettings(
                trajectories=trajectories,
                model=str(embedded_models()["alfworld"]),
                kind="reflection",
                reflections=[tmp_path / "r.parquet"],
            ),
            tmp_path / "d",
        )


def test_rows_that_verl_would_refuse_are_left_out_and_counted(expert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from verl_act.data.sft_dataset import ActSFTDataset

    trajectories, model = [expert / "trajectories.parquet"], str(embedded_models()["alfworld"])
    everything = make_sft(
        SftSettings(trajectories=trajectories, model=model, template="compact"), tmp_path / "all"
    ).counts
    settings = {"max_length": 4096, "truncation": "error", "messages_key": "messages", "pad_mode": "no_padding"}

    def lengths(folder: str, **changes: Any) -> list[int]:
        config = OmegaConf.create({**settings, **changes})
        files = [str(tmp_path / folder / "sft.parquet")]
        rows = ActSFTDataset(parquet_files=files, tokenizer=AutoTokenizer.from_pretrained(model), config=config)
        return [len(rows[at]["input_ids"]) for at in range(len(rows))]

    limit = sorted(lengths("all"))[everything["rows"] // 2]
    counts = make_sft(
        SftSettings(trajectories=trajectories, model=model, template="compact", max_length=limit), tmp_path / "short"
    ).counts
    kept = lengths("short", max_length=limit)  # verl would raise at a longer one
    assert kept and sorted(kept) == sorted(length for length in lengths("all") if length <= limit)
    assert counts["too_long"] == everything["rows"] - len(kept) > 0 == everything["too_long"]
    with pytest.raises(DataError, match="max-length"):
        make_sft(
            SftSettings(trajectories=trajectories, model=model, template="compact", max_length=3), tmp_path / "none"
        )


@given(st.text())
def test_a_reflection_cannot_end_its_own_reasoning(reply: str) -> None:
    text = reflection_text(f"<think>{reply}</think><action>go</action>", "go")
    assert not re.search("</?(think|action)>", text)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("It is near.", "It is near."),
        ("<think>What do they want?</think> The desk is near.", "The desk is near."),
        ("<think>The desk is near.</think><action>go to desk 1</action>", "The desk is near."),
        ("It is near. <action>Go to  desk 1</action>", "It is near."),
        ("<think>The desk is near, and what", Unusable.CUT),
        ("<think>The shelf is near.</think><action>go to shelf 1</action>", Unusable.OTHER_ACTION),
        ("It is near. <action>go to desk 1</action> or <action>look</action>", Unusable.OTHER_ACTION),
        ("It is near. <action>go to desk", Unusable.OTHER_ACTION),
        ("<action>go to desk 1</action>", Unusable.EMPTY),
        ("", Unusable.EMPTY),
    ],
)
def test_a_reflection_is_what_was_written_for_the_experts_action(reply: str, text: str) -> None:
    assert reflection_text(reply, "go to desk 1") == text
    assert reflection_text(reply, "go to desk 1", cut=True) is Unusable.CUT


def test_where_a_template_asks_for_an_answer_a_reflection_must_conclude() -> None:
    assert get_template("compact").reflections_conclude and not get_template("cot").reflections_conclude
    assert reflection_text("It is near.", "go to desk 1", concludes=True) is Unusable.OTHER_ACTION
    reply = "<think>The desk is near.</think><action>go to desk 1</action>"
    assert reflection_text(reply, "go to desk 1", concludes=True) == "The desk is near."


# Statistics


def items(values: Mapping[str, float]) -> dict[str, ItemOutcome]:
    """Items that have nothing in common."""
    return {item: ItemOutcome(value) for item, value in values.items()}


def test_one_seed_is_wilson_and_mcnemar() -> None:
    ours = items({str(number): float(number < 14) for number in range(20)})
    theirs = items({str(number): float(3 <= number < 10) for number in range(20)})
    found = estimate([ours], is_share=True)
    assert (found.value, found.items, found.deviation) == (0.7, 20, None)
    assert (found.low, found.high) == pytest.approx((0.4810, 0.8545), abs=1e-4)
    test = against([ours], [theirs])
    assert test is not None and test.difference == pytest.approx(7 / 20)
    assert test.p_tasks == pytest.approx(2 * 0.5**7), "seven gained, none lost"


def test_several_seeds_are_averaged_by_item_and_spread_over_seeds() -> None:
    values = ({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 1.0})
    seeds = [items(seed) for seed in values]
    found = estimate(seeds, is_share=True)
    assert found.value == pytest.approx(6 / 9)
    assert found.by_seed == pytest.approx([2 / 3, 1.0, 1 / 3])
    assert found.deviation == pytest.approx(1 / 3)
    assert (found.low, found.high) == pytest.approx(wilson_interval(2, 3)), "three items, however often they are asked"
    assert estimate(seeds, is_share=True) == found, "the same items give the same interval"
    assert estimate([], True).value is None


def test_a_share_counts_as_many_items_as_its_tasks_leave_independent() -> None:
    tasks = [number // 10 for number in range(200)]
    alike = [float(task % 2) for task in tasks]
    assert effective_count(alike, tasks) == pytest.approx(20)
    apart = np.random.default_rng(0).permutation(alike).tolist()
    assert 120 < effective_count(apart, tasks) <= 200
    assert effective_count(alike, list(range(200))) == 200, "one item a task"
    widths = []
    for right in (0, 1, 2):
        low, high = share_interval([1.0] * right + [0.0] * (200 - right), tasks)
        assert low <= right / 200 <= high
        widths.append(high)
    assert widths == sorted(widths), "one success more does not make the interval end lower"


def test_copies_of_a_seed_tell_nothing_new() -> None:
    seed = items({str(number): float(number < 22) for number in range(23)})
    one, three = estimate([seed], is_share=True), estimate([seed] * 3, is_share=True)
    for found in (one, three):
        assert (found.low, found.high) == pytest.approx(wilson_interval(22, 23))


def test_a_difference_has_an_interval_where_there_is_one() -> None:
    ours, theirs = ({str(number): float(number % other == 0) for number in range(60)} for other in (2, 3))
    found = against([items(ours)], [items(theirs)])
    assert found is not None and found.low is not None and found.high is not None
    assert found.difference == pytest.approx(1 / 6) and found.low < found.difference < found.high
    same = against([items(ours)], [items(ours)])
    assert same is not None and same.low is None and same.p_tasks == 1.0


def test_more_seeds_of_no_success_are_not_certainty() -> None:
    nothing = items({str(number): 0.0 for number in range(72)})
    one, two = estimate([nothing], is_share=True), estimate([nothing, nothing], is_share=True)
    assert (one.low, one.high) == (two.low, two.high) == pytest.approx((0.0, 0.0506), abs=1e-4)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_sign_flips_agree_with_mcnemar_where_both_apply(outcomes_of_both: list[tuple[bool, bool]]) -> None:
    ours = {str(number): float(first) for number, (first, _) in enumerate(outcomes_of_both)}
    theirs = {str(number): float(second) for number, (_, second) in enumerate(outcomes_of_both)}
    exact = against([items(ours)], [items(theirs)])
    halves = ({item: value / 2 for item, value in side.items()} for side in (ours, theirs))
    halved = against(*([items(side)] for side in halves))
    assert exact is not None and halved is not None
    assert halved.p_tasks == pytest.approx(exact.p_tasks, abs=0.01)
    back = against([items(theirs)], [items(ours)])
    assert back is not None and (back.difference, back.p_tasks) == (-exact.difference, exact.p_tasks)


def test_no_common_item_is_no_test() -> None:
    assert against([items({"a": 1.0})], [items({"b": 1.0})]) is None


def test_five_copies_of_every_answer_say_no_more_than_one() -> None:
    """The states of one game are not independent: were they counted as such, the interval would be far too narrow."""
    rng = np.random.default_rng(0)
    alone = {str(task): ItemOutcome(float(rng.random() < 0.6), task=task) for task in range(40)}
    copies = {f"{task}#{copy}": outcome for task, outcome in alone.items() for copy in range(5)}
    one, five = estimate([alone], is_share=True), estimate([copies], is_share=True)
    assert (five.value, five.items) == (one.value, 200)
    widths = [found.high - found.low for found in (one, five) if found.high is not None and found.low is not None]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    worse = {
        name: outcome._replace(amount=0.0 if outcome.task < 6 else outcome.amount) for name, outcome in copies.items()
    }
    lost = sum(outcome.amount for outcome in list(alone.values())[:6])
    test = against([worse], [copies])
    assert test is not None and test.p_tasks == pytest.approx(2 * 0.5**lost, abs=0.01), "a game has one sign, not five"


def test_all_alike_is_as_sure_as_the_number_of_tasks() -> None:
    found = estimate([{str(number): ItemOutcome(1.0, task=number % 36) for number in range(200)}], is_share=True)
    assert (found.low, found.high) == pytest.approx(wilson_interval(36, 36))


def test_a_ratio_is_of_sums() -> None:
    """Ten tokens of ten and none of ninety are a tenth, not a half."""
    found = estimate([{"a": ItemOutcome(10, 10), "b": ItemOutcome(0, 90)}], is_share=False)
    assert found.value == pytest.approx(0.1) and (found.low, found.high) == pytest.approx((0.0, 1.0))
    steps = {"won": ItemOutcome(6, 1), "lost": ItemOutcome(0, 0), "won later": ItemOutcome(8, 1)}
    assert (estimate([steps], is_share=False).value, estimate([steps], is_share=False).items) == (7.0, 2)
    assert estimate([{"lost": ItemOutcome(0, 0)}], is_share=False).value is None
    assert against([steps], [{"won": ItemOutcome(0, 0), "lost": ItemOutcome(0, 0)}]) is None
    longer = against(
        [{"won": ItemOutcome(9, 1), "lost": ItemOutcome(0, 0)}], [{"won": ItemOutcome(6, 1), "lost": ItemOutcome(4, 1)}]
    )
    assert longer is not None and (longer.difference, longer.items) == (4.0, 2)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # statsmodels' multipletests(method="holm").
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.0001, 0.5, 0.02, 0.02, 0.9], [0.0005, 1.0, 0.08, 0.08, 1.0]),
        ([0.3], [0.3]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_only_raises(thousandths: list[int]) -> None:
    p_values = [value / 1000 for value in thousandths]
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert max(adjusted) >= min(1.0, min(p_values) * len(p_values))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[index] for index in order] == sorted(adjusted)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        # Worked out by hand: t = 5.0, 4 degrees of freedom.
        ([0.6, 0.7, 0.8], [0.2, 0.3, 0.4], 2 * 0.00402496),
        # An untrained model is known exactly: t = 4, 2 degrees of freedom, p = 1 - 4 / sqrt(18).
        ([0.4, 0.6, 0.5], [0.5 - 4 / 300**0.5], 1 - 4 / 18**0.5),
        ([0.5 - 4 / 300**0.5], [0.4, 0.6, 0.5], 1 - 4 / 18**0.5),
        ([0.5, 0.5], [0.5, 0.5], 1.0),
        ([0.5, 0.5], [0.4, 0.4], 0.0),
        ([0.5], [0.4], None),
        ([], [0.4, 0.5], None),
    ],
)
def test_the_test_over_seeds(first: list[float], second: list[float], p: float | None) -> None:
    assert seed_p(first, second) == (p if p is None else pytest.approx(p, rel=1e-3))


# The table


def three_methods(tmp_path: Path, seeds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    methods: dict[str, Any] = {}
    for name, chance in (("Prompting", 0.1), ("RL", 0.5), ("RL + ACT", 0.9)):
        trained = name != "Prompting"
        paths = {str(seed): f"{name}-{seed}" for seed in range(seeds if trained else 1)}
        for path in paths.values():
            write_evaluation(tmp_path / path, rng, chance)
        against = {"Prompting": [], "RL": ["Prompting"], "RL + ACT": ["RL", "Prompting"]}[name]
        methods[name] = {
            "steps": {"action": 40} if trained else {},
            "against": against,
            "evaluations": paths,
            "training": {},
        }
    return methods


def test_one_seed_has_no_p(tmp_path: Path) -> None:
    whole = table_of(MethodsTableSettings(run=tmp_path, methods=three_methods(tmp_path, seeds=1)), tmp_path / "methods")
    tests = [test for item in whole["entries"] for test in item["against"].values()]
    assert tests and all(test["p"] is None and test["p_seeds"] is None for test in tests)
    text = (tmp_path / "methods" / "methods.md").read_text()
    assert not re.search(r"p [=<] 0", text) and "points [+" in text
    assert re.search(r"\[\+[\d.]+, \+[\d.]+\], one seed", text)


def test_p_is_the_larger_one_corrected_for_the_whole_table(tmp_path: Path) -> None:
    whole = table_of(MethodsTableSettings(run=tmp_path, methods=three_methods(tmp_path, seeds=3)), tmp_path / "methods")
    tests = {
        (item["method"], item["metric"], other): test
        for item in whole["entries"]
        for other, test in item["against"].items()
    }
    tested = {key: test for key, test in tests.items() if key[1] in ("success", "choice")}
    assert {key for key, test in tests.items() if test["p"] is not None} == set(tested)
    raw = {key: max(test["p_tasks"], test["p_seeds"]) for key, test in tested.items()}
    lowest = min(raw, key=raw.__getitem__)
    assert len(tested) == 6 and tested[lowest]["p"] == pytest.approx(min(1.0, 6 * raw[lowest]))
    assert [test["p"] for test in tested.values()] == pytest.approx(holm(list(raw.values())))
    assert tested["RL + ACT", "success", "Prompting"]["p"] < 0.05


def write_evaluation(folder: Path, rng: np.random.Generator, chance: float) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"model": "the initial model"}))
    episodes = [
        {
            "task_id": f"t{number}",
            "split": "valid_seen",
            "task_type": f"type_{number % 2}",
            "success": bool(rng.random() < chance),
            "end": "turns",
            "longest_failed_repeat": number % 5,
            "inadmissible_share": 0.25,
            "malformed_share": 0.0,
            "steps": 4.0,
            "reply_tokens": 20,
            "useful_tokens": 15,
        }
        for number in range(30)
    ]
    choices = [
        {
            "pair_id": f"p{number}",
            "split": "valid_seen",
            "right": bool(rng.random() < chance),
            "inferable": number % 3 == 0,
            "reply": "A",
            "well_formed": True,
            "admissible": True,
            "named_a_candidate": True,
            "expert_position": number % 2,
            "order": 0,
            "candidates": ["a", "b"],
            "chosen": 0,
            "consistent": True,
            "margin": number % 4 or None,
        }
        for number in range(60)
    ]
    for name, records in (("episodes", episodes), ("choices", choices)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def entry(whole: dict[str, Any], **wanted: str) -> dict[str, Any]:
    wanted.setdefault("group", "")
    (found,) = (item for item in whole["entries"] if all(item[key] == value for key, value in wanted.items()))
    return found


def test_the_table_says_what_the_answers_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    methods: dict[str, Any] = {}
    for name, chance in (("Prompting", 0.2), ("RL", 0.5), ("RL + ACT", 0.9)):
        seeds = [0] if name == "Prompting" else [0, 1, 2]
        paths = {str(seed): f"seed-{seed}/evaluation/{name}" for seed in seeds}
        for path in paths.values():
            write_evaluation(tmp_path / path, rng, chance)
        steps = {} if name == "Prompting" else {"action": 40}
        methods[name] = {"steps": steps, "against": ["Prompting"], "evaluations": paths, "training": {}}
    methods["Prompting"]["against"] = []
    methods["RL + ACT"]["against"] = ["RL", "Prompting"]
    whole = table_of(
        MethodsTableSettings(run=tmp_path, methods=methods, initial_model="models/tiny"), tmp_path / "methods"
    )
    assert whole["initial_model"] == "models/tiny"
    for name, method in methods.items():
        means = []
        for path in method["evaluations"].values():
            records = list(map(json.loads, (tmp_path / path / "episodes.jsonl").read_text().splitlines()))
            means.append(np.mean([record["success"] for record in records]))
        found = entry(whole, method=name, metric="success")["estimate"]
        assert found["by_seed"] == pytest.approx(means) and found["value"] == pytest.approx(np.mean(means))
    tests = entry(whole, method="RL + ACT", metric="success")["against"]
    assert list(tests) == ["RL", "Prompting"] and tests["Prompting"]["p_tasks"] < 0.001
    assert entry(whole, method="Prompting", metric="success")["against"] == {}
    values = {}
    for name in ("RL", "RL + ACT"):
        won: dict[str, list[bool]] = {}
        for path in methods[name]["evaluations"].values():
            for line in (tmp_path / path / "episodes.jsonl").read_text().splitlines():
                record = json.loads(line)
                won.setdefault(record["task_id"], []).append(record["success"])
        values[name] = np.array([np.mean(won[task]) for task in sorted(won)])
    differences = values["RL + ACT"] - values["RL"]
    assert tests["RL"]["difference"] == pytest.approx(differences.mean())
    assert tests["RL"]["items"] == len(differences)
    assert tests["RL"]["p_tasks"] == pytest.approx(random_signs_p(differences), abs=0.02)
    middle, spread = differences.mean(), 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
    assert (tests["RL"]["low"], tests["RL"]["high"]) == pytest.approx((middle - spread, middle + spread), abs=0.03)
    assert entry(whole, method="RL", metric="loops")["estimate"]["value"] == pytest.approx(0.4)
    assert entry(whole, method="RL", metric="reply_length")["estimate"]["value"] == 5
    assert entry(whole, method="RL", metric="useful_tokens")["estimate"]["value"] == 0.75
    groups = {item["group"] for item in whole["entries"] if item["metric"] == "choice_by_margin"}
    assert groups == {"1", "2", "3–4", "unknown"}
    table = (tmp_path / "methods" / "methods.md").read_text()
    assert "| RL + ACT | action 40 | RL; Prompting | 0, 1, 2 |" in table
    assert "### Better action chosen by its position, valid_seen" in table
    assert re.search(r"; \+\d\d\.\d points \[\+\d\d\.\d, \+\d\d\.\d\], p = 0\.\d{3}", table)
    assert re.search(r"; \+\d\d\.\d points \[[^]]*\] to RL, p [<=]", table)
    assert json.loads((tmp_path / "methods" / "methods.json").read_text()) == json.loads(json.dumps(whole))


def test_steps_that_epochs_decided_are_those_that_were_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    training = {"0": ["seed 0 il", "seed 0 il+action"]}
    RunFolder(tmp_path).add_to_plan([PlannedStage("seed 0 il", "seed-0/il", trains=True)])
    method = {"steps": {"il": -1, "action": 5}, "against": [], "evaluations": {"0": "a"}, "training": training}
    write_evaluation(tmp_path / "a", rng, 0.5)
    log = tmp_path / "seed-0" / "il" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"step": step, "data": {}}) + "\n" for step in (1, 7)))
    assert table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")["methods"]["A"][
        "steps"
    ] == {"il": 7, "action": 5}
    assert "| A | il 7, action 5 |" in (tmp_path / "out" / "methods.md").read_text()


def test_a_stage_that_a_method_repeats_counts_with_all_of_its_trainings(tmp_path: Path) -> None:
    names = ["critic", "critic+critic", "critic+critic+action"]
    stages = [PlannedStage(f"seed 0 {name}", f"seed-0/{name}", trains=True) for name in names]
    RunFolder(tmp_path).add_to_plan(stages)
    for name, last in zip(names, (3, 4, 50), strict=True):
        log = tmp_path / "seed-0" / name / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps({"step": last, "data": {}}) + "\n")
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    training = {"0": [stage.name for stage in stages]}
    method = {
        "steps": {"critic": -2, "action": -1},
        "against": [],
        "evaluations": {"0": "a"},
        "training": training,
    }
    whole = table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    assert whole["methods"]["A"]["steps"] == {"critic": 7, "action": 50}


def test_seeds_are_compared_on_the_tasks_that_all_of_them_have() -> None:
    """A seed whose hard tasks were lost to the environment is no better than the others."""
    every = {f"t{number}": ItemOutcome(float(number < 5), 1.0, f"t{number}") for number in range(10)}
    easy = {item: outcome for item, outcome in every.items() if outcome.amount}
    result = against([every, easy], [every, every])
    assert result is not None and (result.difference, result.p_seeds) == (0.0, 1.0)
    assert estimate([every, easy], is_share=True).by_seed == [1.0, 1.0]


def test_episodes_that_the_environment_lost_are_named(tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "training": {}}
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    path = tmp_path / "a" / "episodes.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0] |= {"end": "error", "error": "no memory"}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = {"episodes": len(records), "episode_errors": 1}
    write_manifest(tmp_path / "a", make_manifest("evaluate", settings={}, inputs=[], counts=counts))
    whole = table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    assert whole["methods"]["A"]["failed"] == {"0": [1, len(records)]}
    assert f"**A, seed 0: 1 of {len(records)} episodes ended in an error" in (tmp_path / "out/methods.md").read_text()


def test_judging_is_told_from_naming_a_candidate(tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "training": {}}
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    path = tmp_path / "a" / "choices.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for number, record in enumerate(records):
        named = number % 2 == 0
        record |= {"inferable": True, "named_a_candidate": named, "right": named and number % 4 == 0}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    whole = table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    named, right = (sum(record[key] for record in records) for key in ("named_a_candidate", "right"))
    values = {name: entry(whole, method="A", metric=name)["estimate"]["value"] for name in CHOICE_METRICS}
    assert values == pytest.approx(
        {
            "choice_inferable": right / len(records),
            "choice_named": named / len(records),
            "choice_of_named_inferable": right / named,
        }
    )


CHOICE_METRICS = ("choice_inferable", "choice_named", "choice_of_named_inferable")


def random_signs_p(differences: np.ndarray) -> float:
    """The share of random signs that make the sum as extreme as it is."""
    signs = np.random.default_rng(5).choice([-1, 1], (20_000, len(differences)))
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())


def test_a_missing_or_doubled_evaluation_is_refused(tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "training": {}}
    with pytest.raises(DataError, match="no such evaluation"):
        compare_methods(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    lines = (tmp_path / "a" / "episodes.jsonl").read_text()
    (tmp_path / "a" / "episodes.jsonl").write_text(lines + lines)
    with pytest.raises(DataError, match="comes twice"):
        compare_methods(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")


@pytest.mark.parametrize("cut", ["half a line", "whole lines"])
def test_answers_that_were_cut_are_refused(cut: str, tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "training": {}}
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    path = tmp_path / "a" / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    counts = {"episodes": len(lines)}
    write_manifest(tmp_path / "a", make_manifest("evaluate", settings={}, inputs=[], counts=counts))
    path.write_text("".join(lines[:-1]) + (lines[-1][:20] if cut == "half a line" else ""))
    message = r"episodes\.jsonl(, line \d+: is not JSON|: holds \d+ records, but)"
    with pytest.raises(DataError, match=message):
        compare_methods(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")


def test_a_methods_prompt_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    own = {"template_options": {"history_length": 3}, "chat_template_kwargs": {"enable_thinking": False}}
    path.write_text(yaml.safe_dump({"base": "alfworld/methods", "methods": {"Short": {"stages": [], **own}}}))
    short, plain = (
        named(load_recipe(str(path)), tmp_path, (0,))[f"seed 0 evaluate {name}"].settings.model_dump()
        for name in ("short", "prompting")
    )
    changed = {key for key in plain if short[key] != plain[key]}
    assert changed == {"name", "template_options", "engine_options"}
    assert short["template_options"] == {**plain["template_options"], "history_length": 3}
    assert short["engine_options"] == {"chat_template_kwargs": {"enable_thinking": False}}


def test_a_method_needs_a_name_for_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "alfworld/methods", "methods": {"方法": {"stages": []}}}))
    with pytest.raises(ConfigError, match="a method's name has no letter"):
        method_stages(load_recipe(str(path)), RunFolder(tmp_path), [0])
    with pytest.raises(ConfigError, match="--steps"):
        load_recipe("alfworld/methods", steps=0)


def test_a_change_may_name_one_method_or_several() -> None:
    for text in ("IL", "[IL]"):
        changed = load_recipe("alfworld/methods", [f"methods.ACT.against={text}"])
        assert changed.methods["ACT"].against == ["IL"]
