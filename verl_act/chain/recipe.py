"""A recipe: what `chain` runs, as YAML in `verl_act/recipes` or in a file of your own.

A recipe names another as its `base`, or several, laid one over the other, and states only what differs. Unknown keys
are refused, with the key's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_act.errors import ConfigError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TRAINING = ("il", "reflection", "critic", "action")
"""The training stages, which are keys of a recipe."""
_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_EMBEDDED_MODELS = {
    "alfworld": _ASSETS / "embedded_model",
    "scienceworld": _ASSETS / "embedded_model_scienceworld",
    "webshop": _ASSETS / "embedded_model_webshop",
}


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
    """`name` null is the environment's first; `limits` draws so many tasks of a split."""

    name: str | None = None
    limits: dict[str, int] = field(default_factory=dict)


@dataclass
class SamplingRecipe:
    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 512


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

    `max_tokens` null takes that of the alternatives. `actors` is the number of processes that play each environment.
    `reasoning` are files of questions as in MATH-500 or GPQA-Diamond; a reply to one may have `reasoning_max_tokens`
    (null: `max_tokens`).
    """

    temperature: float = 0.0
    max_turns: int = 50
    actors: int = 1
    max_tokens: int | None = None
    limit: int | None = None
    tasks: int | None = None
    reasoning: list[str] = field(default_factory=list)
    reasoning_max_tokens: int | None = None


@dataclass
class MethodRecipe:
    """One row of a comparison: training stages in order, from the initial model; none evaluates that model as it is.

    A stage is `il`, `reflection`, `critic` or `action`, or with its own number of steps `action:80`. `against` is the
    method that it is tested against on the same items (default: the first). `prompt` is for its evaluation: the
    recipe's options hold where it does not give them.
    """

    stages: list[str] = field(default_factory=list)
    against: str | None = None
    prompt: PromptRecipe | None = None


@dataclass
class Recipe:
    """Every key of a recipe, with its default. `device` is one of `act/device`, or null for verl's own settings.

    `chat_template_kwargs` are for prompts in sampling, training and evaluation alike: `{enable_thinking: false}`.
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
    alternatives: SamplingRecipe = field(default_factory=SamplingRecipe)
    pairs: dict[str, Any] = field(default_factory=dict)
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
        """The initial policy: a folder, a hub id, or the model that comes with the package for the environment.

        Raises `ConfigError` where none comes with it.
        """
        if self.model != "embedded":
            return self.model
        if self.env not in _EMBEDDED_MODELS:
            raise ConfigError(
                f"no model for {self.env!r} comes with the package (there are {', '.join(_EMBEDDED_MODELS)}). Set "
                "model to a model folder or a hub id."
            )
        return str(_EMBEDDED_MODELS[self.env])


def load_recipe(name: str, changes: Sequence[str] = (), steps: int | None = None) -> Recipe:
    """The recipe `name` (below `verl_act/recipes`, or a file), with `KEY=VALUE` changes and a bound on RL steps.

    Raises `ConfigError` naming the file and the key at fault.
    """
    layers = [_read(path) for path in _layers(_find(name))]
    for change in changes:
        if "=" not in change:
            raise ConfigError(f"{change!r} is not a change of the form KEY=VALUE.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), *layers, OmegaConf.from_dotlist(list(changes)))
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"recipe {name}: {str(error).splitlines()[0]} (key {error.full_key!r}).") from error
    assert isinstance(recipe, Recipe)
    if recipe.reflect.n != 1:
        raise ConfigError(f"recipe {name}: reflect.n is {recipe.reflect.n}; a state has one reflection.")
    if recipe.action.data not in ("steps", "episodes"):
        raise ConfigError(f"recipe {name}: action.data is {recipe.action.data!r}; it can be steps or episodes.")
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


def parse_stage(text: str) -> tuple[str, int | None]:
    """`action:80` is ("action", 80), `action` is ("action", None). Raises `ValueError` on anything else."""
    kind, colon, steps = text.partition(":")
    if kind not in TRAINING:
        raise ValueError(f"there are {', '.join(TRAINING)}")
    if colon and int(steps) < 1:
        raise ValueError("it has at least one step")
    return kind, int(steps) if colon else None


def bounded_stage(text: str, most: int) -> str:
    """The stage with at most so many steps, where it has a number of its own."""
    kind, steps = parse_stage(text)
    return text if steps is None else f"{kind}:{min(steps, most)}"


def _check_methods(name: str, recipe: Recipe) -> None:
    """Raises `ConfigError` on a method whose stages do not exist or are not configured."""
    for title, method in recipe.methods.items():
        if method.against is not None and method.against not in recipe.methods:
            raise ConfigError(f"recipe {name}: method {title!r} is against {method.against!r}, which is no method.")
        for stage in method.stages:
            try:
                kind, _ = parse_stage(stage)
            except ValueError as error:
                raise ConfigError(f"recipe {name}: method {title!r} has a stage {stage!r}: {error}.") from error
            if not getattr(recipe, kind).config:
                raise ConfigError(f"recipe {name}: method {title!r} needs {kind}.config; state it in the recipe.")


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
        config = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: is not a mapping of recipe keys.")
    return config
