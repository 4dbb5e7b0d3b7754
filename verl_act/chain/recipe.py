"""Recipes: the YAML files that `verl-act run` runs, in `verl_act/recipes` or your own.

A recipe may name one or more others as its `base` (later ones override earlier ones) and states only what differs.
Unknown keys are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator

from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError, OptionError, first_line
from verl_act.options import Positive, check_options
from verl_act.run_folder import stage_name_problem
from verl_act.settings.base import Settings, Text
from verl_act.settings.data import (
    SFT_INPUTS,
    AlternativesOptions,
    AuditOptions,
    EnvSettings,
    GamesOptions,
    PairsOptions,
    SeedSettings,
    SftKind,
    WorkerSettings,
)
from verl_act.settings.evaluation import EvaluationOptions
from verl_act.settings.model import EngineOptions, ModelSettings, SamplingOptions, TemplateSettings
from verl_act.text_files import read_text
from verl_act.yaml_text import parse_mapping, parse_value

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
ROWS_DATA = tuple(SFT_INPUTS)
"""`TrainingRecipe.data` of stages that train on rows of `data sft`."""
SFT_DATA = tuple(kind for kind in ROWS_DATA if kind != "dpo")
"""Those of them that verl's SFT trainer runs."""


class ExpertRecipe(Settings):
    name: Text | None = None
    """Name of the expert. Default: the environment's first."""
    limits: dict[str, Positive] = {}
    """Split -> most tasks that the expert plays."""
    files: dict[str, list[str]] = {}
    """Split -> files of published trajectories, which are replayed instead of playing."""
    format: Text = "actions"
    """Format of these files, as of `verl-act data import`."""


class TrainingRecipe(Settings):
    """One training stage on verl."""

    like: Text | None = None
    """Another stage, whose keys are this one's too, except those that it sets itself."""
    data: Literal["pairs", "steps", "episodes", SftKind] = "pairs"
    """What the stage trains on. By RL: `pairs` (the critic stage), `steps` (expert states) or `episodes` (live tasks).
    By SFT, on rows of that kind of `data sft`: `il`, `reflection`, `choice` or `rejection`. By TRL: `dpo`."""
    config: list[str] = []
    """Hydra groups of this package."""
    overrides: dict[str, Any] = {}
    """Any keys of verl, dotted (`data.train_batch_size`) or nested; for `dpo`, those of `verl_act.dpo.DpoSettings`."""


class EvaluateRecipe(EvaluationOptions):
    """`mode` also holds for live episodes in training."""

    max_tokens: Positive | None = None
    """Most tokens of a reply. Default: that of the alternatives."""
    task_limit: Positive | None = None
    """Most tasks of each split. Default: all."""
    engine_options: dict[str, Any] = {}
    """Overrides the recipe's `engine_options`."""

    def check(self) -> None:
        check_options(EngineOptions, self.engine_options, "engine_options")
        if "chat_template_kwargs" in self.engine_options:
            raise OptionError(
                "engine_options",
                "has chat_template_kwargs; set those of the recipe, which training shares, or those of a method.",
            )


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class MethodRecipe(Settings):
    """One row of a comparison."""

    stages: list[str] = []
    """Training stages in order, from the initial model, optionally with a number of steps: `action:80`. Without any,
    the initial model is evaluated."""
    against: Annotated[list[str], BeforeValidator(_listed)] = []
    """Methods for paired tests on the same items; a single one needs no list. Default: the first method."""
    template: Text | None = None
    """Prompt template of the method's evaluation. Default: the recipe's."""
    template_options: dict[str, Any] = {}
    """Override the recipe's."""
    chat_template_kwargs: dict[str, Any] = {}
    """Override the recipe's."""


class Recipe(ModelSettings, TemplateSettings, EnvSettings, SeedSettings, WorkerSettings):
    """Every key of a recipe, with its default."""

    env: Text = "alfworld"
    """Name of the environment."""
    train_split: Text = "train"
    """The split of the training data."""
    valid_splits: list[Text] = ["valid_seen", "valid_unseen"]
    """The splits of the evaluation."""
    model: Text = "embedded"
    """The initial policy: a model folder, a hub id, or a model that comes with the environment (`embedded`, say; in
    ALFWorld also `embedded_thinking`, which thinks before it answers, and `embedded_full` for whole rooms)."""
    device: Text | None = None
    """A Hydra config of `act/device`, such as `cpu`. Default: verl's settings."""
    chat_template_kwargs: dict[str, Any] = {}
    """For prompts in sampling, training and evaluation: `{enable_thinking: false}`."""
    allow_degenerate: bool = False
    """Continue if no sampled reply has an action, or if all rewards of a training stage are equal."""
    games: GamesOptions = GamesOptions()
    """Generated games; `counts` null uses the official data instead."""
    expert: ExpertRecipe = ExpertRecipe()
    """The expert trajectories."""
    alternatives: AlternativesOptions = AlternativesOptions()
    """Sampling of the initial policy at expert states."""
    pairs: PairsOptions = PairsOptions()
    """Pairs of expert actions and alternatives."""
    audit: AuditOptions = AuditOptions()
    """Bounds of the audit of pairs."""
    reflect: SamplingOptions = SamplingOptions()
    """How reflections are sampled."""
    training: dict[str, TrainingRecipe] = {}
    """The training stages by name."""
    stages: list[str] = ["critic", "action"]
    """The training stages of a run without methods, in order."""
    methods: dict[str, MethodRecipe] = {}
    """The methods of a comparison."""
    evaluate: EvaluateRecipe = EvaluateRecipe()
    """The evaluation."""

    @property
    def model_path(self) -> str:
        """The initial policy's folder or hub id: the environment's model of this name, or else the name itself.

        Raises `ConfigError` for a name `embedded...` that the environment does not have.
        """
        models = get_env(self.env).models
        if self.model.startswith("embedded") and self.model not in models:
            raise ConfigError(
                f"env {self.env!r} has no model {self.model!r} (its models are {', '.join(models) or 'none'}). Set "
                "model to a model folder or a hub id."
            )
        return str(models.get(self.model, self.model))

    @property
    def splits(self) -> list[str]:
        """All splits, that of training first."""
        return [self.train_split, *self.valid_splits]

    def check(self) -> None:
        super().check()
        if not self.valid_splits:
            raise OptionError("valid_splits", "is empty; name at least one split for evaluation.")
        if twice := [split for split in self.splits if self.splits.count(split) > 1]:
            raise OptionError(
                "valid_splits",
                f"has {twice[0]!r} twice, or it is the train_split too; name it once, so that training and evaluation "
                "use different splits.",
            )
        if unused := [split for split in self.expert.files if split not in self.splits]:
            raise OptionError("expert.files", f"has {unused[0]!r}; the splits are {', '.join(self.splits)}.")
        counts = self.games.counts
        if counts is not None and get_env(self.env).make_games is None:
            raise OptionError("games.counts", f"is set, but {self.env} generates no games; set games.counts=null.")
        if counts is not None and (without := [split for split in self.splits if not counts.get(split)]):
            raise OptionError("games.counts", f"has no games for {without[0]}; give a count for every split.")
        for name in self.training:
            if wrong := stage_name_problem(name):
                raise OptionError("training", wrong)
            for key in _WHOLE_NUMBERS:
                self.whole_override(name, key)
        self._check_methods()
        if not self.methods and (twice := [stage for stage in self.stages if self.stages.count(stage) > 1]):
            raise OptionError(
                "stages",
                f"has {twice[0]!r} twice, which have one folder; add a stage that is like it "
                f"(training.NAME.like={parse_stage(twice[0])[0]}).",
            )

    def _check_methods(self) -> None:
        named = {} if self.methods else {"stages": self.stages}
        for title, method in self.methods.items():
            named[f"methods.{title}.stages"] = method.stages
            for other in method.against:
                if other not in self.methods or other == title:
                    raise OptionError(f"methods.{title}.against", f"has {other!r}, which is not another method.")
        for key, stages in named.items():
            for stage in stages:
                try:
                    name, _ = parse_stage(stage)
                except ValueError as error:
                    raise OptionError(key, f"has {stage!r}: {error}.") from error
                if name not in self.training:
                    known = ", ".join(self.training) or "none"
                    raise OptionError(key, f"has {stage!r}; the stages of `training` are: {known}.")

    def whole_override(self, stage: str, key: str) -> int | None:
        """The value of verl's `key` in the overrides of a training stage; None if it is not set there.

        Raises `OptionError` if it is not a whole number above 0.
        """
        value: Any = self.training[stage].overrides
        for segment in key.split("."):
            if not isinstance(value, dict):
                raise OptionError(
                    f"training.{stage}.overrides", f"is {value!r} at {key!r}; it must be a mapping of verl's keys."
                )
            value = value.get(segment)
            if value is None:
                return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"training.{stage}.overrides.{key}", f"is {value!r}; give a whole number, at least 1.")
        return value


_WHOLE_NUMBERS = (
    "trainer.total_training_steps",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.max_ckpt_to_keep",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
)
"""Keys of verl that this package reads from a stage's overrides."""


def parse_stage(text: str) -> tuple[str, int | None]:
    """`action:80` is ("action", 80), `action` is ("action", None). Raises `ValueError` on anything else."""
    name, colon, steps = text.partition(":")
    if colon and not (steps.isdecimal() and int(steps) > 0):
        raise ValueError("the number of steps after the colon must be at least 1")
    return name, int(steps) if colon else None


def load_recipe(name: str, changes: Sequence[str] = (), steps: int | None = None) -> Recipe:
    """Load the recipe `name` (below `verl_act/recipes`, or a file) with `KEY=VALUE` changes; `steps` bounds each stage.

    Interpolations in `overrides` refer to verl's keys and are kept. Raises `ConfigError` naming the file or change, and
    the key.
    """
    layers = [(str(path), keys) for path, keys in _layers(_recipe_path(name)).items()]
    layers += [(change, _change(change)) for change in changes]
    values = _merged(name, layers)
    try:
        recipe = Recipe(**values)
    except OptionError as error:
        source = _source(layers, error.option) or name
        raise ConfigError(f"recipe {source}: {error.option or 'a recipe'} {error.problem}") from error
    if recipe.chat_template_kwargs:
        recipe.engine_options.setdefault("chat_template_kwargs", recipe.chat_template_kwargs)
        for stage in recipe.training.values():
            stage.overrides.setdefault("++data.apply_chat_template_kwargs", recipe.chat_template_kwargs)
    return recipe if steps is None else _bounded(recipe, steps)


def _bounded(recipe: Recipe, most: int) -> Recipe:
    """The recipe with at most so many steps of each training stage."""
    if most < 1:
        raise ConfigError(f"--steps {most}: give at least 1.")

    def bounded(text: str) -> str:
        name, steps = parse_stage(text)
        return text if steps is None else f"{name}:{min(steps, most)}"

    for name, stage in recipe.training.items():
        configured = recipe.whole_override(name, "trainer.total_training_steps")
        stage.overrides.setdefault("trainer", {})["total_training_steps"] = min(configured or most, most)
    methods = {
        title: method.model_copy(update={"stages": list(map(bounded, method.stages))})
        for title, method in recipe.methods.items()
    }
    return recipe.model_copy(update={"methods": methods, "stages": list(map(bounded, recipe.stages))})


def _merged(name: str, layers: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Merge the layers, later ones override earlier ones, and resolve interpolations. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = _overlaid(values, layer)
    for key, value in _entries(values):
        if value == "???":
            source = next(source for source, layer in layers[::-1] if (key, value) in _entries(layer))
            raise ConfigError(f"recipe {source}: {key} is ???, a placeholder for a required value: set {key}=VALUE.")
    values = _with_like(name, values)
    overrides = {}
    if isinstance(training := values.get("training"), dict):
        blocks = {stage: block for stage, block in training.items() if isinstance(block, dict) and "overrides" in block}
        overrides = {stage: block["overrides"] for stage, block in blocks.items()}
        values["training"] = {**training, **{stage: {**block, "overrides": {}} for stage, block in blocks.items()}}
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, AssertionError) as error:
        key = getattr(error, "full_key", None) or ", ".join(
            key for key, value in _entries(values) if "${" in str(value)
        )
        raise ConfigError(f"recipe {_source(layers, key) or name}: {key}: {first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"recipe {name}: is nested too deeply.") from error
    assert isinstance(resolved, dict)
    for stage, block in overrides.items():
        resolved["training"][stage]["overrides"] = block
    for text in chain.from_iterable(_entries(resolved)):
        if isinstance(text, str) and ("\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)):
            raise ConfigError(
                f"recipe {name}: {text!r} holds an invalid character (NUL or a lone surrogate); write it as UTF-8."
            )
    return {str(key): value for key, value in resolved.items()}


def _with_like(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values, where each training stage has the keys of the one that it is `like`. Raises `ConfigError`."""
    training = values.get("training")
    if not isinstance(training, dict):
        return values
    complete = dict(training)
    for stage, block in training.items():
        if isinstance(block, dict) and (like := block.get("like")) is not None:
            model = training.get(like) if isinstance(like, str) else None
            if not isinstance(model, dict) or "like" in model:
                raise ConfigError(
                    f"recipe {name}: training.{stage}.like is {like!r}; name a training stage that is like no other."
                )
            complete[stage] = _overlaid(model, block)
    return {**values, "training": complete}


def _source(layers: Sequence[tuple[str, dict[str, Any]]], key: str) -> str | None:
    """The last layer that sets `key`, or a key above or below it."""
    for source, layer in layers[::-1]:
        if any(f"{known}.".startswith(f"{key}.") or f"{key}.".startswith(f"{known}.") for known, _ in _entries(layer)):
            return source
    return None


def _entries(block: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values in nested mappings and lists, these included, with their dotted keys."""
    entries = block.items() if isinstance(block, Mapping) else enumerate(block) if isinstance(block, list) else ()
    for key, value in entries:
        yield f"{prefix}{key}", value
        yield from _entries(value, f"{prefix}{key}.")


def _recipe_path(name: str) -> Path:
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if os.path.isfile(path):  # false for an invalid file name too
            return path
    if os.path.isdir(name):
        raise ConfigError(f"{name} is a folder; name a recipe file in it.")
    known = sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))
    raise ConfigError(f"there is no recipe or file named {brief(name)}; the recipes are {', '.join(known)}.")


def _layers(path: Path, above: tuple[Path, ...] = ()) -> dict[Path, dict[str, Any]]:
    """`path` and its bases with their own keys, the lowest first, each once."""
    if path.resolve() in above:
        raise ConfigError(f"{above[0]}: its bases form a cycle at {path}.")
    try:
        keys = parse_mapping(str(path), read_text(path))
    except DataError as error:
        raise ConfigError(str(error)) from error
    base = keys.pop("base", None) or []
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(entry, str) and entry for entry in names):
        raise ConfigError(f"{path}: base is {base!r}; name a recipe or a file, or a list of them.")
    layers: dict[Path, dict[str, Any]] = {}
    for entry in names:
        layers |= _layers(_recipe_path(entry), (*above, path.resolve()))
    training = keys.get("training")
    for stage, block in training.items() if isinstance(training, dict) else ():
        if isinstance(block, dict) and isinstance(block.get("overrides"), dict):
            block["overrides"] = nested(f"{path}: training.{stage}.overrides", block["overrides"])
    return {**layers, path: keys}


def _change(change: str) -> dict[str, Any]:
    """`KEY=VALUE` as nested mappings. The value is YAML, or Hydra's grammar, in which `{train:24}` has key `train`."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"{change!r} is not of the form KEY=VALUE.")
    value = parse_value(change, text)
    if any(entry is None and ":" in name for name, entry in _entries([value])):  # YAML's reading of `{key:value}`
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            value = OverridesParser.create().parse_override(f"key={text}").value()
        except HydraException as error:
            raise ConfigError(f"{change}: write a space after the colon, as in YAML: {{key: value}}.") from error
    return nested(change, {key: value})


def nested(source: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings. Raises `ConfigError` if a key is empty between dots, or is also a value."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *folders, last = str(key).split(".")
        if not all((*folders, last)):
            raise ConfigError(f"{source}: {key!r} is not a valid key; write a name between the dots.")
        block = result
        for folder in folders:
            block = block.setdefault(folder, {})
            if not isinstance(block, dict):
                raise ConfigError(f"{source}: {key!r} is below {folder!r}, which already has a value.")
        if isinstance(value, Mapping):
            value = nested(source, value)
            if isinstance(block.get(last), dict):
                value = _overlaid(block[last], value)
        block[last] = value
    return result


def _overlaid(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """The two nested mappings merged, without changing either."""
    both = {
        key: _overlaid(lower[key], upper[key])
        for key in lower.keys() & upper.keys()
        if isinstance(lower[key], dict) and isinstance(upper[key], dict)
    }
    return {**lower, **upper, **both}
