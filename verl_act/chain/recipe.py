"""A recipe: what `chain` runs, as YAML in `verl_act/recipes` or in a file of your own.

A recipe names another as its `base`, or several, laid one over the other, and states only what differs. Unknown keys
are refused, with the key's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from verl_act.errors import ConfigError, DataError
from verl_act.rollout.settings import Mode
from verl_act.text_files import read_text

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TRAINING = ("il", "reflection", "critic", "action")
"""The training stages, which are keys of a recipe."""
_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_EMBEDDED_MODELS = {
    "alfworld": _ASSETS / "embedded_model",
    "scienceworld": _ASSETS / "embedded_model_scienceworld",
    "webshop": _ASSETS / "embedded_model_webshop",
}
_THINKING_MODELS = {"alfworld": _ASSETS / "embedded_model_thinking"}
"""Those that think before they answer."""


def embedded_models() -> dict[str, Path]:
    """The models that come with the package, by environment; the others are made by `make embedded-model-<env>`."""
    return {env: folder for env, folder in _EMBEDDED_MODELS.items() if folder.is_dir()}


@dataclass
class PromptRecipe:
    template: str = "cot"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class GamesRecipe:
    """Generated games; `counts` null uses the official data instead."""

    counts: dict[str, int] | None = None
    size: str = "full"
    seed: int = 0


@dataclass
class ExpertRecipe:
    """`name` null is the environment's first; `limits` draws so many tasks of a split.

    A split with `files` has no expert play: the trajectories in them, in a `format` that `import-trajectories` knows,
    are replayed instead.
    """

    name: str | None = None
    limits: dict[str, int] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    format: str = "actions"


@dataclass
class SamplingRecipe:
    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 512


@dataclass
class AlternativesRecipe(SamplingRecipe):
    """`workers` engines of `gpus_per_worker` on a Ray cluster or on this machine's Ray; 0: one engine, without Ray.

    `limit` draws trajectories until a split has so many states; null takes all.
    """

    workers: int = 0
    gpus_per_worker: float = 1
    limit: int | None = None


@dataclass
class TrainRecipe:
    """One training stage on verl. `config` are our Hydra groups; `overrides` any keys of verl's configuration.

    YAML may write override keys dotted (`data.train_batch_size`) or nested; here they are nested.

    `data` is what the action stage trains on: `steps` (expert states) or `episodes` (live tasks).
    """

    config: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    data: str = "pairs"


@dataclass
class EvaluateRecipe:
    """`limit` draws so many expert states and pairs of each split, `tasks` draws so many episodes; null takes all.
    Questions are never left out.

    `mode` is how live episodes are put, in the action stage too: `stepwise` or `concat` (`data.act.episode.mode`).
    `max_tokens` null takes that of the alternatives. `engine_options` are laid over the recipe's. `actors` is the
    number of processes that play the environment, `pool` what else `EnvPool` takes (`step_timeout`, `max_memory_mb`).
    `reasoning` are files of questions as in MATH-500 or GPQA-Diamond; a reply to one may have `reasoning_max_tokens`
    (null: `max_tokens`).
    """

    temperature: float = 0.0
    max_turns: int = 50
    mode: str = "stepwise"
    actors: int = 1
    pool: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    limit: int | None = None
    tasks: int | None = None
    reasoning: list[str] = field(default_factory=list)
    reasoning_max_tokens: int | None = None
    engine_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodPromptRecipe:
    """How a method is asked in its evaluation; what is not given here is the recipe's."""

    template: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodRecipe:
    """One row of a comparison: training stages in order, from the initial model; none evaluates that model as it is.

    A stage is `il`, `reflection`, `critic` or `action`, or with its own number of steps `action:80`. `against` are the
    methods that it is tested against on the same items (default: the first); one may stand without a list.
    """

    stages: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    prompt: MethodPromptRecipe = field(default_factory=MethodPromptRecipe)


@dataclass
class Recipe:
    """Every key of a recipe, with its default. `device` is one of `act/device`, or null for verl's own settings.

    `workers` processes make games, play the expert and probe alternatives. `chat_template_kwargs` are for prompts in
    sampling, training and evaluation alike: `{enable_thinking: false}`. `pairs` are the settings of `build-pairs`,
    `audit` the bounds of `check-pairs`.
    """

    env: str = "alfworld"
    env_settings: dict[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    valid_splits: list[str] = field(default_factory=lambda: ["valid_seen", "valid_unseen"])
    model: str = "embedded"
    device: str | None = None
    seed: int = 0
    workers: int = 1
    max_model_len: int = 4096
    engine_options: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    prompt: PromptRecipe = field(default_factory=PromptRecipe)
    games: GamesRecipe = field(default_factory=GamesRecipe)
    expert: ExpertRecipe = field(default_factory=ExpertRecipe)
    alternatives: AlternativesRecipe = field(default_factory=AlternativesRecipe)
    pairs: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    critic: TrainRecipe = field(default_factory=TrainRecipe)
    action: TrainRecipe = field(default_factory=TrainRecipe)
    il: TrainRecipe = field(default_factory=TrainRecipe)
    reflect: SamplingRecipe = field(default_factory=SamplingRecipe)
    """How the model's reflections are sampled; `reflection` is the stage that trains on them."""
    reflection: TrainRecipe = field(default_factory=TrainRecipe)
    methods: dict[str, MethodRecipe] = field(default_factory=dict)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)

    @property
    def model_path(self) -> str:
        """The initial policy: a folder, a hub id, or the model that comes with the package for the environment
        (`embedded`; `embedded_thinking` is one that thinks before it answers).

        Raises `ConfigError` where none comes with it.
        """
        models = {"embedded": _EMBEDDED_MODELS, "embedded_thinking": _THINKING_MODELS}.get(self.model)
        if models is None:
            return self.model
        if self.env not in models:
            raise ConfigError(
                f"no model {self.model!r} for {self.env!r} comes with the package (there are {', '.join(models)}). Set "
                "model to a model folder or a hub id."
            )
        return str(models[self.env])


def load_recipe(name: str, changes: Sequence[str] = (), steps: int | None = None) -> Recipe:
    """The recipe `name` (below `verl_act/recipes`, or a file), with `KEY=VALUE` changes and a bound on RL steps.

    Raises `ConfigError` naming the file and the key at fault.
    """
    layers = [_read(path) for path in _layers(_find(name))]
    for change in changes:
        if "=" not in change:
            raise ConfigError(f"{change!r} is not a change of the form KEY=VALUE.")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps}: a stage has at least one step.")
    layers.append(OmegaConf.from_dotlist(list(changes)))
    for layer in layers:
        _list_against(layer)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), *layers)
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"recipe {name}: {_wrong_key(error)}") from error
    assert isinstance(recipe, Recipe)
    if recipe.reflect.n != 1:
        raise ConfigError(f"recipe {name}: reflect.n is {recipe.reflect.n}; a state has one reflection.")
    if recipe.action.data not in ("steps", "episodes"):
        raise ConfigError(f"recipe {name}: action.data is {recipe.action.data!r}; it can be steps or episodes.")
    if recipe.evaluate.mode not in list(Mode):
        raise ConfigError(f"recipe {name}: evaluate.mode is {recipe.evaluate.mode!r}; it can be {' or '.join(Mode)}.")
    splits = [recipe.train_split, *recipe.valid_splits]
    if unused := [split for split in recipe.expert.files if split not in splits]:
        raise ConfigError(f"recipe {name}: expert.files has {', '.join(unused)}; the splits are {', '.join(splits)}.")
    if recipe.games.counts and recipe.env != "alfworld":
        raise ConfigError(f"recipe {name}: games are ALFWorld's, and env is {recipe.env!r}; set games.counts=null.")
    _check_methods(name, recipe)
    if recipe.chat_template_kwargs:
        recipe.engine_options.setdefault("chat_template_kwargs", recipe.chat_template_kwargs)
        for stage in TRAINING:
            key = "++data.apply_chat_template_kwargs"
            getattr(recipe, stage).overrides.setdefault(key, recipe.chat_template_kwargs)
    if steps is not None:
        for stage in filter(lambda stage: stage.config, (getattr(recipe, name) for name in TRAINING)):
            trainer = stage.overrides.setdefault("trainer", {})
            trainer["total_training_steps"] = min(trainer.get("total_training_steps") or steps, steps)
        for method in recipe.methods.values():
            method.stages = [bounded_stage(stage, steps) for stage in method.stages]
    return recipe


def _wrong_key(error: OmegaConfBaseException) -> str:
    """What is wrong with which key. One that does not exist is named with those that do."""
    known = error.object_type
    if isinstance(error, ConfigKeyError) and is_dataclass(known):
        where = str(error.full_key).rpartition(".")[0] or "a recipe"
        return f"{where} has no key {error.key!r}; there are {', '.join(entry.name for entry in fields(known))}."
    return f"{str(error).splitlines()[0]} (key {error.full_key!r})."


def parse_stage(text: str) -> tuple[str, int | None]:
    """`action:80` is ("action", 80), `action` is ("action", None). Raises `ValueError` on anything else."""
    kind, colon, steps = text.partition(":")
    if kind not in TRAINING:
        raise ValueError(f"there are {', '.join(TRAINING)}")
    if colon and not (steps.isdecimal() and int(steps) > 0):
        raise ValueError("after the colon stands its number of steps, at least one")
    return kind, int(steps) if colon else None


def bounded_stage(text: str, most: int) -> str:
    """The stage with at most so many steps, where it has a number of its own."""
    kind, steps = parse_stage(text)
    return text if steps is None else f"{kind}:{min(steps, most)}"


def _check_methods(name: str, recipe: Recipe) -> None:
    """Raises `ConfigError` on a method whose stages do not exist or are not configured."""
    for title, method in recipe.methods.items():
        for other in method.against:
            if other not in recipe.methods or other == title:
                raise ConfigError(f"recipe {name}: method {title!r} is against {other!r}, which is no other method.")
        for stage in method.stages:
            try:
                kind, _ = parse_stage(stage)
            except ValueError as error:
                raise ConfigError(f"recipe {name}: method {title!r} has a stage {stage!r}: {error}.") from error
            if not getattr(recipe, kind).config:
                raise ConfigError(f"recipe {name}: method {title!r} needs {kind}.config; state it in the recipe.")


def _list_against(layer: DictConfig) -> None:
    """Make lists of the methods that stand without one."""
    methods = layer.get("methods")
    for method in methods.values() if isinstance(methods, DictConfig) else ():
        if isinstance(method, DictConfig) and isinstance(method.get("against"), str):
            method.against = [method.against]


def _find(name: str) -> Path:
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))
    raise ConfigError(f"no recipe is called {name!r} and no such file exists; there are {', '.join(known)}.")


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """`path` and the recipes below it, the lowest first. One that several of them build on counts once."""
    if path in above:
        raise ConfigError(f"{above[0]}: its bases form a circle at {path}.")
    base = _load(path).get("base") or ()
    below = (_layers(_find(name), (*above, path)) for name in ((base,) if isinstance(base, str) else base))
    return list(dict.fromkeys((*chain.from_iterable(below), path)))


def _read(path: Path) -> DictConfig:
    config = OmegaConf.masked_copy(layer := _load(path), [str(key) for key in layer if key != "base"])
    for stage in TRAINING:
        if overrides := (config.get(stage) or {}).get("overrides"):
            config[stage].overrides = OmegaConf.create()
            for key, value in overrides.items():
                OmegaConf.update(config[stage].overrides, str(key), value, force_add=True)
    return config


def _load(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(StringIO(read_text(path)))
    except DataError as error:
        raise ConfigError(str(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: is not a mapping of recipe keys.")
    return config
