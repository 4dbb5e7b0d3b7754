"""Wrong settings: the recipe's key is named and nothing is written; a command refuses the same before any work.

No engine runs and no file of data exists: a command that looked at its data first would say that they are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from recipe_stages import RECIPE_NAMES

from verl_act.__main__ import app
from verl_act.chain import load_recipe, run_recipe
from verl_act.chain.check import check_settings
from verl_act.chain.method_stages import plan
from verl_act.errors import ActError, ConfigError, DataError, OptionError
from verl_act.run_folder import RunFolder

COMMAND: Any = typer.main.get_command(app)

WRONG = [
    ("games.counts={train: 3, valid_seen: 1, valid_unseen: 1, trian: 3}", "games.counts"),
    ("games.counts={train: -1, valid_seen: 1, valid_unseen: 1}", "games.counts.train"),
    ("games.size=medium", "games.size"),
    ("games.seed=99999999999999999999", "games.seed"),
    ("stages=[critic, critic]", "stages"),
    ("training.rows-il={data: il}", "training"),
    ("training.games={data: il}", "training"),
    ("training={a+b: {data: il}}", "training"),
    ("training={il.work: {data: il}}", "training"),
    ("evaluate.engine_options={chat_template_kwargs: {enable_thinking: false}}", "evaluate.engine_options"),
    ("workers=-2", "workers"),
    ("seed=99999999999999999999", "seed"),
    ("expert.name=nobody", "expert.name"),
    ("expert.limits={train: 0}", "expert.limits.train"),
    ("expert={files: {train: [FILE]}, format: csv}", "expert.format"),
    ("env_settings={dta: x}", "dta"),
    ("env_settings={max_steps: 0}", "max_steps"),
    ("env_settings={max_steps: many}", "env_settings.max_steps"),
    ("alternatives.n=0", "alternatives.n"),
    ("alternatives.temperature=0", "alternatives.n"),
    ("alternatives.temperature=-1", "alternatives.temperature"),
    ("alternatives.temperature=.nan", "alternatives.temperature"),
    ("alternatives.max_tokens=0", "alternatives.max_tokens"),
    ("alternatives.max_tokens=1024", "alternatives.max_tokens"),
    ("alternatives.limit=0", "alternatives.limit"),
    ("alternatives.workers=-1", "alternatives.workers"),
    ("alternatives={workers: 2, gpus_per_worker: -1}", "alternatives.gpus_per_worker"),
    ("max_model_len=0", "max_model_len"),
    ("engine_options={gpu_memory_utilisation: 0.5}", "engine_options"),
    ("engine_options={model: other}", "engine_options"),
    ("engine_options={max_model_len: long}", "engine_options.max_model_len"),
    ("engine_options={trust_remote_code: maybe}", "engine_options.trust_remote_code"),
    ("engine_options={chat_template_kwargs: thinking}", "engine_options.chat_template_kwargs"),
    ("template=compcat", "compcat"),
    ("template_options={history_lenght: 3}", "history_lenght"),
    ("template_options={history_length: -1}", "template_options.history_length"),
    ("template_options={history_length: some}", "template_options.history_length"),
    ("template_options={max_listed: 0}", "template_options.max_listed"),
    ("template_options={admissible_in_action: sometimes}", "template_options.admissible_in_action"),
    ("pairs={candidate: 3}", "candidate"),
    ("pairs={candidates: 1}", "pairs.candidates"),
    ("pairs={candidates: 9}", "pairs.candidates"),
    ("pairs={candidates: two}", "pairs.candidates"),
    ("pairs={max_alternatives_per_state: 0}", "pairs.max_alternatives_per_state"),
    ("pairs={max_alternatives_per_state: 1.5}", "pairs.max_alternatives_per_state"),
    ("pairs={source: anywhere}", "pairs.source"),
    ("pairs={margins: 'yes'}", "pairs.margins"),
    ("pairs={max_inadmissible_share: 2}", "pairs.max_inadmissible_share"),
    ("pairs={limit: 0}", "pairs.limit"),
    ("pairs={seed: 1}", "seed"),
    ("audit={lenght: 0.7}", "lenght"),
    ("audit={max_length_accuracy: 2}", "audit.max_length_accuracy"),
    ("audit={max_order_imbalance: [0.1]}", "audit.max_order_imbalance"),
    ("evaluate.temperature=.nan", "evaluate.temperature"),
    ("evaluate.max_tokens=0", "evaluate.max_tokens"),
    ("evaluate.max_tokens=5000", "evaluate.max_tokens"),
    ("evaluate.reasoning_max_tokens=5000", "evaluate.reasoning_max_tokens"),
    ("evaluate.max_turns=0", "evaluate.max_turns"),
    ("evaluate.actors=0", "evaluate.actors"),
    ("evaluate.limit=-1", "evaluate.limit"),
    ("evaluate.task_limit=0", "evaluate.task_limit"),
    ("evaluate={step_timout: 3}", "step_timout"),
    ("evaluate.step_timeout=0", "evaluate.step_timeout"),
    ("evaluate.reset_timeout=.nan", "evaluate.reset_timeout"),
    ("evaluate.max_memory_mb=-1", "evaluate.max_memory_mb"),
    ("evaluate.step_timeout=soon", "evaluate.step_timeout"),
    ("evaluate.engine_options={max_model_len: long}", "evaluate.engine_options.max_model_len"),
    ("evaluate.engine_options={dtipe: half}", "dtipe"),
    ("games.counts={train: 3, valid_seen: 1, valid_unseen: 0}", "games.counts"),
    ("games.counts={train: 1.5, valid_seen: 1, valid_unseen: 1}", "games.counts"),
    ("train_split=valid_seen", "valid_seen"),
    ("valid_splits=[valid_seen, valid_seen]", "valid_splits"),
    ("valid_splits=[]", "valid_splits"),
    ("reflect={temperature: -1}", "reflect.temperature"),
    ("training.action.data=games", "training.action.data"),
    ("training.action.overrides.trainer.nnodes=0", "training.action.overrides.trainer.nnodes"),
    ("stages=[critic, judge]", "stages"),
    ("stages=['critic:0']", "stages"),
    ("methods={A: {stages: [critic], against: B}}", "methods.A.against"),
    ("evaluate.mode=whole", "evaluate.mode"),
    ("env=webshop", "games"),
]
"""A change of the recipe, and the key that its refusal must name."""

RIGHT = [
    "seed=-1",
    "workers=0",
    "workers=16",
    "max_model_len=4096",
    "alternatives.temperature=0.01",
    "alternatives={n: 1, temperature: 0}",
    "alternatives={workers: 8, gpus_per_worker: 0.5}",
    "alternatives={workers: 1, gpus_per_worker: 0}",
    "alternatives.limit=1",
    "pairs={max_alternatives_per_state: 2, candidates: 3, source: admissible, margins: false, limit: 10}",
    "pairs={max_inadmissible_share: 0}",
    "audit={max_length_accuracy: 1, max_verb_accuracy: 0.5, max_order_imbalance: 0}",
    "evaluate={step_timeout: 5, reset_timeout: 0.5, max_memory_mb: 100}",
    "evaluate={temperature: 1, max_tokens: 1023, reasoning_max_tokens: 1, max_turns: 1}",
    "evaluate={actors: 3, limit: 1, task_limit: 1}",
    "evaluate.max_tokens=null",
    "template_options={history_length: 0, max_listed: 1, admissible_in_choice: false}",
    "template_options={history_length: null, observations_in_history: true}",
    "env_settings={max_steps: 1}",
    "engine_options={gpu_memory_utilization: 0.5, trust_remote_code: true}",
    "expert.limits={train: 1, valid_seen: 36}",
    "games={size: full, seed: 7}",
]


def check(name: str, folder: Path, *changes: str) -> str:
    recipe = load_recipe(name, changes)
    return check_settings(recipe, plan(recipe, RunFolder(folder), [0]))


@pytest.mark.parametrize(("change", "key"), WRONG, ids=lambda text: str(text)[:60])
def test_a_wrong_setting_is_refused_by_its_key_before_anything_is_written(
    change: str, key: str, tmp_path: Path
) -> None:
    (tmp_path / "FILE").write_text("")
    change = change.replace("FILE", str(tmp_path / "FILE"))
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as refused:
        run_recipe("alfworld/quickstart", tmp_path / "out", [change])
    assert not isinstance(refused.value, DataError)
    assert [path.name for path in tmp_path.rglob("*")] == ["FILE"]


MODEL = ["--model", "/nowhere", "--trajectories", "none.parquet"]
WRONG_COMMANDS = [
    (["data", "games", "--counts", "train=-1"], "counts.train"),
    (["data", "games", "--counts", "trian=1"], "counts"),
    (["data", "games", "--counts", "train"], "counts"),
    (["data", "games", "webshop", "--counts", "train=1"], "env"),
    (["data", "games", "alfworld", "--counts", "train=0"], "counts"),
    (["data", "games", "--counts", "train=1", "--counts", "train=2"], "counts"),
    (["data", "games", "--seed", "99999999999999999999"], "seed"),
    (["data", "expert", "alfworld", "trian"], "split"),
    (["data", "expert", "alfworld", "train", "--expert", "nobody"], "expert"),
    (["data", "expert", "alfworld", "train", "--limit", "0"], "limit"),
    (["data", "expert", "alfworld", "train", "--env-settings", "max_steps=many"], "env_settings.max_steps"),
    (["data", "alternatives", *MODEL, "--n", "0"], "n"),
    (["data", "alternatives", *MODEL, "--temperature", "nan"], "temperature"),
    (["data", "alternatives", *MODEL, "--max-tokens", "4096"], "max_tokens"),
    (["data", "alternatives", *MODEL, "--template-options", "history_length=-1"], "template_options.history_length"),
    (["data", "alternatives", *MODEL, "--engine-options", "model=x"], "engine_options"),
    (["data", "pairs", "--trajectories", "none.parquet"], "alternatives"),
    (["data", "pairs", "--trajectories", "none.parquet", "--candidates", "1"], "candidates"),
    (["data", "tasks", "alfworld", "--splits", "train", "--splits", "train"], "splits"),
    (["data", "preferences", "none.jsonl", "--candidates", "1"], "candidates"),
    (["data", "preferences", "none.jsonl", "--env", "a b"], "env"),
    (["data", "sft", *MODEL, "--max-length", "0"], "max_length"),
    (["eval", "run", *MODEL, "--max-turns", "0"], "max_turns"),
    (["eval", "run", *MODEL, "--step-timeout", "0"], "step_timeout"),
    (["eval", "run", *MODEL, "--reasoning-max-tokens", "5000"], "reasoning_max_tokens"),
    (["dev", "catalogue", "--products", "1", "--instructions", "1"], "products"),
]


@pytest.mark.parametrize(("words", "option"), WRONG_COMMANDS, ids=lambda entry: " ".join(entry)[:60])
def test_a_command_refuses_a_wrong_option_before_any_work(words: list[str], option: str, tmp_path: Path) -> None:
    """Its data do not exist: a command that looked at them first would say that they are missing."""
    with pytest.raises(OptionError) as refused:
        COMMAND.main([*words[:2], "--out", str(tmp_path / "out"), *words[2:]], standalone_mode=False)
    assert refused.value.option == option
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", RIGHT)
def test_a_right_setting_passes(change: str, tmp_path: Path) -> None:
    assert check("alfworld/quickstart", tmp_path, change).startswith("of ")


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_the_settings_of_every_recipe_pass(name: str, tmp_path: Path) -> None:
    assert check(name, tmp_path).startswith("of ")


@pytest.mark.parametrize("name", [name for name in RECIPE_NAMES if name.endswith(("full", "quickstart"))])
def test_the_paper_s_choices_go_over_any_recipe(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: [{name}, layers/paper]\n")
    assert check(str(tmp_path / "mine.yaml"), tmp_path).startswith("of ")
    ours, papers = load_recipe(name), load_recipe(str(tmp_path / "mine.yaml"))
    assert (papers.alternatives.n, papers.pairs.max_alternatives_per_state) == (1, 1)
    assert not papers.pairs.stand_ins and papers.pairs.keep_nonpositive_margin
    assert papers.training["critic"].overrides["data"]["act"]["verb_balance"] == 1
    assert papers.template_options == {**ours.template_options, "admissible_in_choice": False}
    assert papers.evaluate == ours.evaluate


def test_settings_of_several_stages_are_all_named(tmp_path: Path) -> None:
    changes = ["evaluate.max_tokens=5000", "reflect.max_tokens=4096", "expert.name=nobody"]
    with pytest.raises(ConfigError, match=r"expert\.name(.|\n)*reflect\.max_tokens(.|\n)*evaluate\.max_tokens"):
        check("alfworld/methods_thinking", tmp_path, *changes)


def test_a_limit_of_a_split_that_the_environment_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expert\.limits"):
        run_recipe("alfworld/quickstart", tmp_path, ["expert.limits={nowhere: 3}"])


def test_every_option_has_a_help_text() -> None:
    for group in COMMAND.commands.values():
        for command in getattr(group, "commands", {"": group}).values():
            assert command.help
            for parameter in command.params:
                assert parameter.help, f"{command.name} {parameter.name}"


def test_an_option_error_survives_its_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(OptionError("settings.candidates", "is 1; give 2.")))
    assert isinstance(error, ActError) and str(error) == "--settings candidates is 1; give 2."
