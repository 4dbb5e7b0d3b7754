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

from rich.console import Console

from verl_act.chain.method_stages import plan
from verl_act.chain.plan import with_method_prompt
from verl_act.chain.recipe import Recipe
from verl_act.chain.stages import CONFIG_NAMES, CommandStage, Stage, TrainingStage
from verl_act.chain.train import max_checkpoints
from verl_act.doctor.installed import requirements, tested_versions
from verl_act.dpo import DpoSettings
from verl_act.engine import load_tokenizer, reply_decoder
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, ConfigError, OptionError, first_line
from verl_act.evaluate.reasoning import is_right, read_questions
from verl_act.preflight import ModelShape, Problem, check_training, local_devices, model_shape
from verl_act.preflight.capacity import capacity_problems
from verl_act.preflight.conversation import conversation_problems, date_problems
from verl_act.preflight.memory import CONTENT_BYTES
from verl_act.prompts.rendering import require_prompts, require_usable
from verl_act.run_folder import RunFolder

_FREE_GIB = 2


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
    # The stages of one seed are enough: those of the others differ in the seed alone.
    for stage in plan(recipe, folder, seeds[:1]):
        if isinstance(stage, TrainingStage):
            yield f"{stage.name} configuration", partial(configuration, recipe, stage)
            if recipe.device is None and "RAY_ADDRESS" not in os.environ:
                yield f"{stage.name} accelerators", partial(accelerators, stage)


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


def _device(recipe: Recipe) -> str:
    from verl.plugin.platform import get_platform

    import verl_act.plugin  # noqa: F401  (registers the cpu platform)

    platform = get_platform().device_name
    if recipe.device == "cpu" and platform != "cpu":
        raise ConfigError(
            f"the recipe is for a CPU, but verl chose platform {platform!r} here. Run with device=null and settings "
            "for your accelerator, or in the CPU environment (make setup)."
        )
    if recipe.device != "cpu" and platform == "cpu":
        raise ConfigError(
            "the recipe is for an accelerator, but torch is a CPU build. Add device=cpu, or install torch with CUDA."
        )
    return platform


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

    shape = _shape(recipe)
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
    return _verdict([*problems, *date_problems(tokenizer, options)], f"verl's token builder for {shape.model_type}")


def configuration(recipe: Recipe, stage: TrainingStage) -> str:
    """Check the configuration of a training stage; then memory, disk, lengths and packages. A cluster's memory is
    unknown."""
    composed = compose(stage)
    if stage.trainer == "dpo":
        return composed
    devices, shape = local_devices(), _shape(recipe)
    if "RAY_ADDRESS" in os.environ:
        devices = replace(devices, count=0)
    counted = shape is not None and devices.kind != "cpu" and devices.count
    config = verl_config(stage)
    problems = check_training(config, shape, devices, _free_bytes(stage.folder.path))
    if recipe.training[stage.key.removeprefix("training.")].data == "episodes":
        problems += capacity_problems(config, get_env(recipe.env).max_episodes)
    return _verdict(problems, f"{composed}; lengths and packages{', memory of devices' if counted else ''} fit")


def _verdict(problems: Sequence[Problem], passed: str) -> str:
    """A warning of what is not fatal. Raises `ConfigError` if something is."""
    text = " ".join(map(str, problems))
    if any(problem.fatal for problem in problems):
        raise ConfigError(text)
    return Undecided(text) if problems else passed


def _shape(recipe: Recipe) -> ModelShape | None:
    """The sizes of the initial policy; None if its configuration cannot be read here."""
    return _read_shape(recipe.model_path, recipe.trust_remote_code)


@cache
def _read_shape(model: str, trust_remote_code: bool) -> ModelShape | None:
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
    shape = _shape(recipe)
    needed = max(_FREE_GIB, shape.parameters * times / 2**30 if shape else 0)
    if free < needed:
        raise ConfigError(
            f"{out.root} has {free:.1f} GiB free and needs at least {needed:.0f}: for the checkpoints of the stage in "
            f"training, and for {models} trained models, which are kept. Free space, choose another --out, keep fewer "
            "checkpoints (trainer.max_actor_ckpt_to_keep, for SFT max_ckpt_to_keep), or run some methods and seeds "
            "first and delete their `model` folders: finished evaluations do not need them."
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


def accelerators(stage: TrainingStage) -> str:
    """Check that this machine has the devices that a stage requests; verl itself checks only when the stage starts."""
    import torch

    available = torch.accelerator.device_count()
    if stage.trainer == "dpo":
        requested, nodes, rollout = int(stage.override("trainer.n_gpus_per_node") or 1), 1, None
    else:
        config = verl_config(stage)
        requested, nodes = int(config.trainer.n_gpus_per_node), config.trainer.nnodes
        rollout = config.get("actor_rollout_ref", {}).get("rollout")
    if nodes == 1 and requested > available:
        raise ConfigError(
            f"{requested} devices are requested, and this machine has {available}. Set trainer.n_gpus_per_node in the "
            "stage's overrides, or name a Ray cluster by $RAY_ADDRESS."
        )
    if rollout and requested * nodes % rollout.tensor_model_parallel_size:
        raise ConfigError(
            f"{requested * nodes} devices cannot be divided into engines of "
            f"{rollout.tensor_model_parallel_size} (actor_rollout_ref.rollout.tensor_model_parallel_size)."
        )
    return f"{requested} of {available}"


def compose(stage: TrainingStage) -> str:
    """Compose and validate the verl configuration of a training stage, without running it."""
    from verl_act.config.settings import ActSettings

    if stage.trainer == "dpo":
        DpoSettings.parse(stage.hydra_overrides({"trainer.default_local_dir": "checkpoints"}))
        return f"{len(stage.overrides)} overrides"
    config = verl_config(stage)
    ActSettings.from_config(config.data)
    if stage.trainer == "ppo":
        _validate(config, stage.key)
    return f"{len(stage.overrides)} overrides"


def verl_config(stage: TrainingStage) -> Any:
    """The verl configuration of a training stage. Raises `ConfigError` on an invalid key or value."""
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
