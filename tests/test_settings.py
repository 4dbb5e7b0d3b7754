"""Wrong settings: `chain --check` names the recipe's key, the command refuses the same before any work.

No engine runs and no file of data exists: a command that looked at its data first would say that they are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from verl_act.__main__ import app
from verl_act.chain import load_recipe
from verl_act.chain.check import _checks
from verl_act.chain.methods import method_stages
from verl_act.chain.recipe import RECIPES, Recipe
from verl_act.chain.settings import check_stages, recipe_key
from verl_act.chain.stages import Stage, stages
from verl_act.errors import ActError, ConfigError, DataError, OptionError

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
RECIPE_NAMES = sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))

WRONG = [
    ("games.counts={train: 3, valid_seen: 1, valid_unseen: 1, trian: 3}", "games.counts"),
    ("games.counts={train: -1, valid_seen: 1, valid_unseen: 1}", "games.counts.train"),
    ("games.size=medium", "games.size"),
    ("games.seed=99999999999999999999", "games.seed"),
    ("workers=-2", "workers"),
    ("seed=99999999999999999999", "seed"),
    ("expert.name=nobody", "expert.name"),
    ("expert.limits={train: 0}", "expert.limits.train"),
    ("expert.limits={valid_seen: -3}", "expert.limits.valid_seen"),
    ("expert={files: {train: [FILE]}, format: csv}", "expert.format"),
    ("env_settings={dta: x}", "dta"),
    ("env_settings={max_steps: 0}", "max_steps"),
    ("env_settings={max_steps: many}", "env_settings.max_steps"),
    ("alternatives.n=0", "alternatives.n"),
    ("alternatives.n=-4", "alternatives.n"),
    ("alternatives.temperature=0", "alternatives.n"),
    ("alternatives.temperature=-1", "alternatives.temperature"),
    ("alternatives.temperature=.nan", "alternatives.temperature"),
    ("alternatives.temperature=.inf", "alternatives.temperature"),
    ("alternatives.max_tokens=0", "alternatives.max_tokens"),
    ("alternatives.max_tokens=1024", "alternatives.max_tokens"),
    ("alternatives.limit=0", "alternatives.limit"),
    ("alternatives.limit=-5", "alternatives.limit"),
    ("alternatives.workers=-1", "alternatives.workers"),
    ("alternatives={workers: 2, gpus_per_worker: -1}", "alternatives.gpus_per_worker"),
    ("alternatives={workers: 2, gpus_per_worker: .nan}", "alternatives.gpus_per_worker"),
    ("max_model_len=0", "max_model_len"),
    ("max_model_len=-1024", "max_model_len"),
    ("engine_options={gpu_memory_utilisation: 0.5}", "engine_options"),
    ("engine_options={model: other}", "engine_options"),
    ("engine_options={max_model_len: long}", "engine_options.max_model_len"),
    ("engine_options={trust_remote_code: maybe}", "engine_options.trust_remote_code"),
    ("engine_options={chat_template_kwargs: thinking}", "engine_options.chat_template_kwargs"),
    ("prompt.template=compcat", "compcat"),
    ("prompt.options={history_lenght: 3}", "history_lenght"),
    ("prompt.options={history_length: -1}", "prompt.options.history_length"),
    ("prompt.options={history_length: some}", "prompt.options.history_length"),
    ("prompt.options={max_listed: 0}", "prompt.options.max_listed"),
    ("prompt.options={admissible_in_action: sometimes}", "prompt.options.admissible_in_action"),
    ("pairs={candidate: 3}", "candidate"),
    ("pairs={candidates: 1}", "pairs.candidates"),
    ("pairs={candidates: 9}", "pairs.candidates"),
    ("pairs={candidates: two}", "pairs.candidates"),
    ("pairs={max_alternatives_per_state: 0}", "pairs.max_alternatives_per_state"),
    ("pairs={max_alternatives_per_state: 1.5}", "pairs.max_alternatives_per_state"),
    ("pairs={source: anywhere}", "pairs.source"),
    ("pairs={margins: 'yes'}", "pairs.margins"),
    ("pairs={max_inadmissible_share: 2}", "pairs.max_inadmissible_share"),
    ("pairs={max_inadmissible_share: .nan}", "pairs.max_inadmissible_share"),
    ("pairs={limit: 0}", "pairs.limit"),
    ("pairs={seed: x}", "pairs.seed"),
    ("audit={lenght: 0.7}", "lenght"),
    ("audit={length: 2}", "audit.length"),
    ("audit={verb: .nan}", "audit.verb"),
    ("audit={imbalance: [0.1]}", "audit.imbalance"),
    ("evaluate.temperature=-0.5", "evaluate.temperature"),
    ("evaluate.temperature=.nan", "evaluate.temperature"),
    ("evaluate.max_tokens=0", "evaluate.max_tokens"),
    ("evaluate.max_tokens=5000", "evaluate.max_tokens"),
    ("evaluate.reasoning_max_tokens=0", "evaluate.reasoning_max_tokens"),
    ("evaluate.reasoning_max_tokens=5000", "evaluate.reasoning_max_tokens"),
    ("evaluate.max_turns=0", "evaluate.max_turns"),
    ("evaluate.actors=0", "evaluate.actors"),
    ("evaluate.limit=-1", "evaluate.limit"),
    ("evaluate.tasks=0", "evaluate.tasks"),
    ("evaluate.pool={step_timout: 3}", "step_timout"),
    ("evaluate.pool={actors: 2}", "evaluate.pool"),
    ("evaluate.pool={step_timeout: 0}", "evaluate.pool.step_timeout"),
    ("evaluate.pool={reset_timeout: .nan}", "evaluate.pool.reset_timeout"),
    ("evaluate.pool={max_memory_mb: -1}", "evaluate.pool.max_memory_mb"),
    ("evaluate.pool={step_timeout: soon}", "evaluate.pool.step_timeout"),
    ("evaluate.engine_options={dtipe: half}", "dtipe"),
]
"""A change of the recipe, and what its refusal must name: settings that a stage gets."""

WRONG_RECIPES = [
    ("games.counts={train: 3, valid_seen: 1, valid_unseen: 0}", "games.counts"),
    ("games.counts={train: 1.5, valid_seen: 1, valid_unseen: 1}", "games.counts"),
    ("train_split=valid_seen", "valid_seen"),
    ("valid_splits=[valid_seen, valid_seen]", "valid_splits"),
    ("valid_splits=[]", "valid_splits"),
    ("reflect.n=2", "reflect.n"),
    ("action.data=pairs", "action.data"),
    ("evaluate.mode=whole", "evaluate.mode"),
    ("env=webshop", "games"),
]
"""Settings that a recipe refuses as soon as it is read."""

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
    "audit={length: 1, verb: 0.5, imbalance: 0}",
    "evaluate.pool={step_timeout: 5, reset_timeout: 0.5, max_memory_mb: 100}",
    "evaluate={temperature: 1, max_tokens: 1023, reasoning_max_tokens: 1, max_turns: 1, actors: 3, limit: 1, tasks: 1}",
    "evaluate.max_tokens=null",
    "prompt.options={history_length: 0, max_listed: 1, admissible_in_choice: false}",
    "prompt={template: compact, options: {history_length: null, observations_in_history: true}}",
    "env_settings={max_steps: 1}",
    "engine_options={gpu_memory_utilization: 0.5, trust_remote_code: true}",
    "expert.limits={train: 1, valid_seen: 36}",
    "games={size: full, seed: 7}",
]


@pytest.fixture
def planned(tmp_path: Path) -> Any:
    """The stages of the quickstart with a change."""
    (tmp_path / "FILE").write_text("")

    def plan(change: str) -> list[Stage]:
        recipe = load_recipe("alfworld/quickstart", [change.replace("FILE", str(tmp_path / "FILE"))])
        return stages(recipe, tmp_path / "out")

    return plan


def run_command(stage: Stage) -> None:
    """The stage's command line, in this process."""
    _, _, _, command, *arguments = stage.command
    COMMANDS[command].main(arguments, standalone_mode=False)


@pytest.mark.parametrize(("change", "key"), WRONG, ids=lambda text: str(text)[:60])
def test_a_wrong_setting_is_refused_by_check_and_command(change: str, key: str, planned: Any, tmp_path: Path) -> None:
    found = planned(change)
    with pytest.raises(ConfigError) as checked:
        check_stages(found)
    message = str(checked.value)
    assert key in message, message
    after = message[message.index(key) :]
    stage = min(
        (stage for stage in found if stage.call), key=lambda stage: (after + f"({stage.name}").index(f"({stage.name}")
    )
    with pytest.raises(ConfigError) as refused:
        run_command(stage)
    error = refused.value
    assert not isinstance(error, DataError), "it has looked at its data"
    if "is not JSON" not in str(error):  # as which NaN is refused
        told = (
            f"{recipe_key(stage.call, error.option)} {error.problem}" if isinstance(error, OptionError) else str(error)
        )
        assert key in told
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["FILE"], "nothing is written"


@pytest.mark.parametrize(("change", "key"), WRONG_RECIPES)
def test_a_recipe_that_cannot_work_is_refused_when_it_is_read(change: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_recipe("alfworld/quickstart", [change])


@pytest.mark.parametrize("change", RIGHT)
def test_a_right_setting_passes(change: str, planned: Any) -> None:
    assert check_stages(planned(change)).startswith("of ")


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_the_settings_of_every_recipe_pass(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    found = method_stages(recipe, tmp_path, [0]) if recipe.methods else stages(recipe, tmp_path)
    assert check_stages(found).startswith("of ")


def test_reflections_are_checked_too(tmp_path: Path) -> None:
    recipe = load_recipe("alfworld/methods_thinking", ["reflect.temperature=-1", "reflect.max_tokens=4096"])
    with pytest.raises(ConfigError, match=r"reflect\.temperature"):
        check_stages(method_stages(recipe, tmp_path, [0]))


def test_a_limit_of_a_split_that_the_environment_has_not_is_refused(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe("alfworld/quickstart", ["expert.limits={dev: 3}"])
    check = dict(_checks(recipe, tmp_path, [0]))["data"]
    with pytest.raises(ConfigError, match=r"expert\.limits has dev"):
        check()


def test_every_option_of_a_stage_has_a_key_of_the_recipe(tmp_path: Path) -> None:
    """Where it does not have one, it comes from other stages, or is not stated at all."""
    recipe = load_recipe("alfworld/methods_thinking")
    derived = {"trajectories", "pairs", "alternatives", "reflections", "held_out", "tasks", "name", "mode", "reasoning"}
    known = set(vars(recipe))
    for stage in method_stages(recipe, tmp_path, [0]):
        for option in (
            stage.call.options if stage.call and not stage.call.command.startswith(("compare", "report")) else ()
        ):
            key = recipe_key(stage.call, option)
            assert option in derived or key.split(".")[0].split(" ")[0] in known | {"trust_remote_code"}, key


def test_an_option_error_survives_its_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(OptionError("settings.candidates", "is 1; give 2.")))
    assert isinstance(error, ActError) and str(error) == "--settings candidates is 1; give 2."
