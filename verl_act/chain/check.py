"""`verl-act run --check`: find in seconds the faults that would stop a run after an hour."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from verl_act.chain.hydra_overrides import flat
from verl_act.chain.method_stages import plan
from verl_act.chain.plan import with_method_prompt
from verl_act.chain.recipe import Recipe, TrainingRecipe
from verl_act.chain.stages import CONFIG_NAMES, CommandStage, Stage, TrainingStage
from verl_act.chain.train import max_checkpoints
from verl_act.doctor.installed import requirements, tested_versions
from verl_act.dpo import DpoSettings
from verl_act.engine import load_tokenizer, reply_decoder
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, ConfigError, OptionError, first_line
from verl_act.evaluate.reasoning import is_right, read_questions
from verl_act.preflight import Devices, ModelShape, Problem, check_training, local_devices, model_shape
from verl_act.preflight.capacity import capacity_problems, count_problems
from verl_act.preflight.conversation import conversation_problems, date_problems
from verl_act.preflight.memory import CONTENT_BYTES
from verl_act.preflight.problem import NO_DEVICE, Words
from verl_act.prompts.rendering import require_prompts, require_usable
from verl_act.run_folder import RunFolder

_FREE_GIB = 2
_RECIPE_KEYS = {
    "actor_rollout_ref.rollout.max_model_len": "max_model_len",
    "data.max_length": "max_model_len",
    "data.act.episode.mode": "evaluate.mode",
    "data.apply_chat_template_kwargs": "chat_template_kwargs",
}
"""verl's keys that a run sets by keys of its recipe."""


class Undecided(str):
    """The message of a check that could not decide."""


def check_run(recipe: Recipe, folder: RunFolder, seeds: Sequence[int]) -> None:
    """Check versions, device, model, prompts, data, disk and the configuration of every verl run; print a line each.

    `seeds` are those of a comparison of methods. A check that cannot decide prints a warning. Raises `ConfigError`
    naming the checks that failed.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    wrong = []
    for name, check in checks(recipe, folder, seeds):
        try:
            result = check()
            console.print(f"{'warn' if isinstance(result, Undecided) else 'ok':5} {name}: {result}", soft_wrap=True)
        except ActError as error:
            console.print(f"wrong {name}: {error}", soft_wrap=True)
            wrong.append(name)
    if wrong:
        raise ConfigError(f"the recipe cannot run yet: {', '.join(wrong)} (see above).")


def checks(recipe: Recipe, folder: RunFolder, seeds: Sequence[int]) -> Iterator[tuple[str, Callable[[], str]]]:
    """The name of every check of a run, and the check."""
    yield "versions", lambda: f"{requirements()}; {tested_versions()}"
    yield "device", lambda: _device(recipe)
    yield "model", lambda: _model(recipe)
    yield "prompt", lambda: _prompt(recipe)
    for name, method in recipe.methods.items():
        if (prompted := with_method_prompt(recipe, method)) != recipe:
            yield f"prompt of {name}", partial(_prompt, prompted)
    yield "conversation", lambda: _conversation(recipe)
    planned = plan(recipe, folder, seeds)
    yield "settings", lambda: check_settings(recipe, planned)
    yield "data", lambda: _data(recipe)
    if recipe.evaluate.reasoning:
        yield "reasoning", lambda: _reasoning(recipe)
    yield "disk", lambda: disk_space(recipe, folder, planned)
    devices = _devices()
    counted = bool(devices.count) and devices.kind != "cpu"
    if counted and recipe.alternatives.workers:
        yield "alternatives accelerators", lambda: sampling_accelerators(recipe, devices)
    # The stages of one seed are enough: those of the others differ in the seed alone.
    for stage in plan(recipe, folder, seeds[:1]):
        if isinstance(stage, TrainingStage):
            yield f"{stage.name} configuration", partial(configuration, recipe, stage)
            if counted:
                yield f"{stage.name} accelerators", partial(accelerators, recipe, stage, devices)


def recipe_words(recipe: Recipe, stage: TrainingStage | None = None) -> Words:
    """From words of verl's command line to those of `verl-act run`, which say the same of the stage."""
    own = {key.lstrip("+") for key in flat(_training(recipe, stage).overrides)} if stage else set()

    def word(text: str) -> str:
        key, equals, value = text.partition("=")
        plain = key.lstrip("+")
        if plain == "trainer.default_local_dir":
            return "--out"
        if plain == "act/device":
            return f"device={value.removesuffix('_sft')}"
        if plain in _RECIPE_KEYS and plain not in own:
            return f"{_RECIPE_KEYS[plain]}{equals}{value}"
        return f"{stage.key}.overrides.{text}" if stage else text

    return word


def check_settings(recipe: Recipe, planned: Sequence[Stage]) -> str:
    """Check the settings of all commands before any of them runs.

    Raises `ConfigError` listing every invalid key of the recipe, with the stages that would refuse it.
    """
    splits = get_env(recipe.env).splits
    if unknown := [split for split in recipe.expert.limits if split not in splits]:
        raise ConfigError(f"expert.limits has {unknown[0]!r}; the splits are {', '.join(splits)}.")
    wrong: dict[str, list[str]] = {}
    commands = [stage for stage in planned if isinstance(stage, CommandStage)]
    for stage in commands:
        try:
            stage.definition.check(stage.settings)
        except OptionError as error:
            wrong.setdefault(f"{stage.recipe_key(error.option, recipe)} {error.problem}", []).append(stage.name)
        except ActError as error:
            wrong.setdefault(str(error), []).append(stage.name)
    if wrong:
        raise ConfigError(" ".join(f"{problem} ({', '.join(names)})" for problem, names in wrong.items()))
    return f"of {len(commands)} stages"


def _training(recipe: Recipe, stage: TrainingStage) -> TrainingRecipe:
    return recipe.training[stage.key.removeprefix("training.")]


def _devices() -> Devices:
    """Those of this machine. On a Ray cluster they are not known: a count of 0."""
    devices = local_devices()
    return replace(devices, count=0) if "RAY_ADDRESS" in os.environ else devices


def _device(recipe: Recipe) -> str:
    import verl_act.plugin  # noqa: F401  (registers the cpu platform)

    devices = local_devices()
    if recipe.device == "cpu" and devices.kind != "cpu":
        raise ConfigError(
            f"the recipe is for a CPU, but verl chose platform {devices.kind!r} here. Run with device=null and "
            "settings for your accelerator, or in the CPU environment (make setup)."
        )
    if recipe.device != "cpu" and devices.kind == "cpu":
        raise ConfigError(
            "the recipe is for an accelerator, but torch is a CPU build. Add device=cpu, or install torch with CUDA."
        )
    if not devices.count and "RAY_ADDRESS" not in os.environ:
        raise ConfigError(f"the recipe is for {devices.kind}, and no such device is visible. {NO_DEVICE}")
    return devices.kind


def _model(recipe: Recipe) -> str:
    """Check that the tokenizer can be read, and that the model marks thoughts in a way that is known."""
    tokenizer = _tokenizer(recipe)
    reply_decoder(tokenizer, recipe)
    return f"{recipe.model_path} ({len(tokenizer)} tokens)"


def _tokenizer(recipe: Recipe) -> Any:
    return load_tokenizer(recipe.model_path, recipe.trust_remote_code)


def _prompt(recipe: Recipe) -> str:
    """Check the prompt template with its options, and that the model's chat template accepts its messages."""
    template = recipe.make_template()
    options = recipe.engine_options.get("chat_template_kwargs")
    try:
        tokenizer = _tokenizer(recipe)
    except ConfigError:  # the check of the model says why
        return type(template).__name__
    require_usable(tokenizer, options)
    require_prompts(tokenizer, template, options, one_sequence=recipe.evaluate.mode == "concat")
    return type(template).__name__


def _conversation(recipe: Recipe) -> str:
    """Check that verl can turn the model's conversations into tokens."""
    from verl.utils.tokenizer import hf_processor

    shape = _shape(recipe.model_path, recipe.trust_remote_code)
    if shape is None:
        return Undecided(f"not checked, because config.json of {recipe.model_path} cannot be read here")
    tokenizer = _tokenizer(recipe)
    options = recipe.engine_options.get("chat_template_kwargs")
    problems = conversation_problems(
        tokenizer,
        shape.model_type,
        recipe.make_template(),
        options,
        one_sequence=recipe.evaluate.mode == "concat",
        processor=hf_processor(recipe.model_path, trust_remote_code=recipe.trust_remote_code),
    )
    problems += date_problems(tokenizer, options)
    return _verdict(problems, f"verl's token builder for {shape.model_type}", recipe_words(recipe))


def configuration(recipe: Recipe, stage: TrainingStage) -> str:
    """Check the configuration of a training stage; then memory, disk, lengths and packages. A cluster's memory is
    unknown."""
    composed = compose(stage)
    devices, shape = _devices(), _shape(recipe.model_path, recipe.trust_remote_code)
    counted = shape is not None and devices.kind != "cpu" and devices.count
    config = verl_config(stage)
    problems = check_training(config, shape, devices, _free_bytes(stage.folder.path))
    if _training(recipe, stage).data == "episodes":
        problems += capacity_problems(config, get_env(recipe.env).max_episodes)
    passed = f"{composed}; lengths and packages{', memory of devices' if counted else ''} fit"
    return _verdict(problems, passed, recipe_words(recipe, stage))


def _verdict(problems: Sequence[Problem], passed: str, words: Words) -> str:
    """A warning of what is not fatal. Raises `ConfigError` if something is."""
    text = " ".join(f"{problem.message} {problem.fix(words)}" for problem in problems)
    if any(problem.fatal for problem in problems):
        raise ConfigError(text)
    return Undecided(text) if problems else passed


@cache
def _shape(model: str, trust_remote_code: bool) -> ModelShape | None:
    """The sizes of the initial policy; None if its configuration cannot be read here."""
    try:
        return model_shape(model, trust_remote_code)
    except ConfigError:  # without a network, after half a minute
        return None


def _data(recipe: Recipe) -> str:
    spec = get_env(recipe.env)
    if recipe.games.counts is not None:
        return f"{sum(recipe.games.counts.values())} games will be generated"
    counts = {split: len(spec.tasks(split, **recipe.env_settings)) for split in recipe.splits}
    return ", ".join(f"{split} {count}" for split, count in counts.items())


def _reasoning(recipe: Recipe) -> str:
    questions = read_questions(recipe.evaluate.reasoning)
    is_right(questions[0], "")  # raises if math-verify is not installed
    return f"{len(questions)} questions"


def disk_space(recipe: Recipe, out: RunFolder, planned: Sequence[Stage]) -> str:
    """Check the disk space for one stage's checkpoints and for the models of all stages that have yet to be trained."""
    free = _free_bytes(out.root) / 2**30
    models = sum(isinstance(stage, TrainingStage) and not stage.output.exists() for stage in planned)
    checkpoints = _checkpoints(planned) * sum(CONTENT_BYTES.values()) if models else 0
    times = models * CONTENT_BYTES["hf_model"] + checkpoints
    shape = _shape(recipe.model_path, recipe.trust_remote_code)
    needed = max(_FREE_GIB, shape.parameters * times / 2**30 if shape else 0)
    if free < needed:
        raise ConfigError(
            f"{out.root} has {free:.1f} GiB free and needs at least {needed:.0f}: for the checkpoints of the stage in "
            f"training, and for {models} trained models, which are kept. Free space, choose another --out, keep fewer "
            "checkpoints (training.STAGE.overrides.trainer.max_actor_ckpt_to_keep=1, for SFT max_ckpt_to_keep=1), or "
            "run some methods and seeds first and delete their `model` folders: finished evaluations do not need them."
        )
    if shape is None and models:
        return Undecided(
            f"{free:.0f} GiB free; unknown how much is needed, because config.json of {recipe.model_path} cannot be "
            f"read here: {times} bytes a parameter, for the checkpoints of the stage in training and for {models} "
            "trained models. Download the model to have this checked."
        )
    return f"{free:.0f} GiB free, {needed:.0f} needed"


def _free_bytes(folder: Path) -> int:
    """Free disk space where `folder` is or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _checkpoints(planned: Sequence[Stage]) -> int:
    """Largest number of checkpoints on disk at once: those that a training stage keeps, and the one being written.
    Those of a stage that keeps all are in the check of its configuration."""
    return 1 + max(max_checkpoints(stage) or 2 for stage in planned if isinstance(stage, TrainingStage))


def accelerators(recipe: Recipe, stage: TrainingStage, devices: Devices) -> str:
    """Check that this machine has the devices that a stage asks for."""
    config = verl_config(stage)
    passed = f"{config.trainer.n_gpus_per_node} of {devices.count}"
    return _verdict(count_problems(config, devices), passed, recipe_words(recipe, stage))


def sampling_accelerators(recipe: Recipe, devices: Devices) -> str:
    """Check that this machine has the devices of the engines that sample: Ray would wait for them for ever."""
    workers, each = recipe.alternatives.workers, recipe.alternatives.gpus_per_worker
    if workers * each > devices.count:
        raise ConfigError(
            f"alternatives.workers={workers} engines of {each:g} devices each (alternatives.gpus_per_worker) are "
            f"asked for, and this machine has {devices.count}. Set alternatives.workers={int(devices.count // each)}, "
            "or name a Ray cluster by $RAY_ADDRESS."
        )
    return f"{workers * each:g} of {devices.count}"


def compose(stage: TrainingStage) -> str:
    """Compose and validate the configuration of a training stage, without running it."""
    from verl_act.config.settings import ActSettings

    config = verl_config(stage)
    if stage.trainer != "dpo":
        ActSettings.from_config(config.data)
    if stage.trainer == "ppo":
        _validate(config, stage.key)
    return f"{len(stage.overrides)} overrides"


def verl_config(stage: TrainingStage) -> Any:
    """The configuration of a training stage: verl's, or the settings of DPO.

    Raises `ConfigError` on an invalid key or value.
    """
    if stage.trainer == "dpo":
        words = stage.hydra_overrides({"trainer.default_local_dir": str(stage.folder.checkpoints)})
        return OmegaConf.create(DpoSettings.parse(words).model_dump())
    # A copy, because verl's validation writes to it.
    return deepcopy(_hydra_config(CONFIG_NAMES[stage.trainer], tuple(stage.hydra_overrides()), stage.key))


@cache
def _hydra_config(name: str, overrides: tuple[str, ...], key: str) -> Any:
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{first_line(error)} Correct the recipe's {key}.overrides.") from error


def _validate(config: Any, key: str) -> None:
    """Run verl's own validation, which finds batch sizes that do not divide, for example."""
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import validate_config

    try:
        with redirect_stdout(io.StringIO()):
            # Without the value model's checks: they read a model that an earlier stage has yet to write.
            validate_config(config, need_reference_policy(config), use_critic=False)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"verl refuses the configuration: {error} Correct the recipe's {key}.overrides.") from error
