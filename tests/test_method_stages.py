"""The stages of a comparison of methods: what is shared, what every method and seed has of its own."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from verl_act.chain import check, load_recipe, run_recipe
from verl_act.chain.method_stages import budget, method_stages, only, run_methods
from verl_act.chain.recipe import Recipe, parse_stage
from verl_act.chain.run_stages import alone, run_stages
from verl_act.chain.stages import CommandStage, Stage, TrainingStage
from verl_act.errors import ConfigError
from verl_act.evaluate.records import FILES
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.run_folder import RunFolder
from verl_act.settings.evaluation import MethodsTableSettings

RECIPES = [
    *(f"alfworld/{name}" for name in ("methods_thinking", "official", "smollm2_methods", "sweep")),
    *(f"{env}/{size}" for env in ("alfworld", "scienceworld", "webshop") for size in ("methods", "methods_full")),
]


def named(recipe: Recipe, out: Path, seeds: tuple[int, ...] = (0, 1)) -> dict[str, Stage]:
    stages = method_stages(recipe, RunFolder(out), seeds)
    assert len({stage.name for stage in stages}) == len(stages), "a mark of its own for each"
    return {stage.name: stage for stage in stages}


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
    assert set(evaluated.values()) == {2} and len(evaluated) == 23


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
        ({"A": {"stages": ["imitation"]}}, r"methods\.A\.stages .*'imitation'"),
        ({"A": {"stages": ["action:many"]}}, r"methods\.A\.stages .*'action:many'"),
        ({"A": {"stages": ["action:0"]}}, "at least 1"),
        ({"A": {"stages": ["action: 5"]}}, r"methods\.A\.stages .*'action: 5'"),
        ({"A": {"stages": ["il"]}}, r"methods\.A\.stages .*'il'"),
        ({"A": {"stages": [], "against": "B"}}, r"methods\.A\.against .*'B'"),
        ({"A": {"stages": []}, "B": {"stages": [], "against": ["A", "B"]}}, r"methods\.B\.against .*'B'"),
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
    with pytest.raises(ConfigError, match=r"'IL, more'.* 'Prompting', 'ACT', 'IL', "):
        only(chosen := load_recipe("alfworld/methods"), ["IL, more"])
    assert len(chosen.methods) == 23


DATA_FILES = ("trajectories", "alternatives", "pairs", "tasks", "reflections", "sft")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stages leave empty files where their results would be; the methods of the table is added to the list."""
    told: list[dict[str, Any]] = []

    def make(stage: CommandStage, log: Path) -> None:
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

    monkeypatch.setattr("verl_act.chain.run_stages.run_command", make)
    monkeypatch.setattr("verl_act.chain.run_stages.train", train)
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
    assert (tables[-1]["IL"]["stages"], tables[-1]["ACT -> RL"]["stages"]) == (["il"], ["critic", "action"])
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
            assert last.is_alive()
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
    with pytest.raises(ConfigError, match="method's name"):
        method_stages(load_recipe(str(path)), RunFolder(tmp_path), [0])
    with pytest.raises(ConfigError, match="--steps"):
        load_recipe("alfworld/methods", steps=0)


def test_a_change_may_name_one_method_or_several() -> None:
    for text in ("IL", "[IL]"):
        changed = load_recipe("alfworld/methods", [f"methods.ACT.against={text}"])
        assert changed.methods["ACT"].against == ["IL"]
