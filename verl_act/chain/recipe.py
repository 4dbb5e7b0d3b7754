"""Recipes: the YAML files that `chain` and `methods` run, in `verl_act/recipes` or your own.

A recipe may name one or more others as its `base` (later ones override earlier ones) and states only what differs.
Unknown keys are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from reprlib import repr as brief
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from verl_act.config.settings import Mode
from verl_act.errors import ConfigError, DataError
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
"""Models that think before they answer."""


def embedded_models() -> dict[str, Path]:
    """Environment -> folder of its embedded model; missing ones are made by `make embedded-model-<env>`."""
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
    """`name` null is the environment's first expert; `limits` samples that many tasks of a split.

    In a split with `files`, no expert plays: the trajectories in these files, in a `format` of `import-trajectories`,
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
    """`workers` engines of `gpus_per_worker` GPUs on Ray, or 0 for one engine without Ray.

    `limit` samples trajectories until a split has that many states; null uses all.
    """

    workers: int = 0
    gpus_per_worker: float = 1
    limit: int | None = None


@dataclass
class TrainRecipe:
    """One training stage on verl. `config` lists Hydra groups of this package; `overrides` sets any key of verl.

    YAML may write override keys dotted (`data.train_batch_size`) or nested; here they are nested.

    `data` is what the action stage trains on: `steps` (expert states) or `episodes` (live tasks).
    """

    config: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    data: str = "pairs"


@dataclass
class EvaluateRecipe:
    """`limit` samples that many expert states and pairs of each split, `tasks` that many episodes; null uses all.
    Reasoning questions are always used in full.

    `mode` is the format of live episodes, in the action stage too: `stepwise` or `concat` (`data.act.episode.mode`).
    `max_tokens` null uses that of the alternatives. `engine_options` override the recipe's. `actors` is the number of
    environment processes, `pool` has further options of `EnvPool` (`step_timeout`, `max_memory_mb`). `reasoning` lists
    files of questions as in MATH-500 or GPQA-Diamond; `reasoning_max_tokens` limits a reply to one (null:
    `max_tokens`).
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
    """The prompt of a method in its evaluation; the recipe's settings apply where this has none."""

    template: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodRecipe:
    """One row of a comparison: training stages in order, from the initial model; without any, that model is evaluated.

    A stage is `il`, `reflection`, `critic` or `action`, optionally with a number of steps: `action:80`. `against` lists
    methods for paired tests on the same items (default: the first method); a single one needs no list.
    """

    stages: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    prompt: MethodPromptRecipe = field(default_factory=MethodPromptRecipe)


@dataclass
class Recipe:
    """Every key of a recipe, with its default. `device` is a Hydra config of `act/device`, or null for verl's settings.

    `workers` processes make games, play the expert and test alternatives. `chat_template_kwargs` apply to prompts in
    sampling, training and evaluation: `{enable_thinking: false}`. `pairs` are the settings of `build-pairs`, `audit`
    the bounds of `check-pairs`. `allow_degenerate` continues if no sampled reply has an action, or if all rewards of a
    training stage are equal.
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
    allow_degenerate: bool = False
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
        """The initial policy: a folder, a hub id, or the environment's model in this package (`embedded`, or
        `embedded_thinking`, which thinks before it answers).

        Raises `ConfigError` if the package has none for the environment.
        """
        models = {"embedded": _EMBEDDED_MODELS, "embedded_thinking": _THINKING_MODELS}.get(self.model)
        if models is None:
            return self.model
        if self.env not in models:
            raise ConfigError(
                f"the package has no model {self.model!r} for env {self.env!r} (only for {', '.join(models)}). Set "
                "model to a model folder or a hub id."
            )
        return str(models[self.env])


def load_recipe(name: str, changes: Sequence[str] = (), steps: int | None = None) -> Recipe:
    """Load the recipe `name` (below `verl_act/recipes`, or a file) with `KEY=VALUE` changes; `steps` bounds each stage.

    Interpolations in `overrides` refer to verl's keys and are kept. Raises `ConfigError` naming the file or change, and
    the key.
    """
    layers = [(str(path), _own_keys(path)) for path in _layers(_recipe_path(name))]
    layers += [(change, _change(change)) for change in changes]
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps}: give at least 1.")
    recipe = _merged(name, layers)
    if recipe.reflect.n != 1:
        raise ConfigError(f"recipe {name}: reflect.n is {recipe.reflect.n}; it must be 1: a state has one reflection.")
    if recipe.action.data not in ("steps", "episodes"):
        raise ConfigError(f"recipe {name}: action.data is {recipe.action.data!r}; it must be steps or episodes.")
    if recipe.evaluate.mode not in list(Mode):
        raise ConfigError(f"recipe {name}: evaluate.mode is {recipe.evaluate.mode!r}; it must be {' or '.join(Mode)}.")
    if not recipe.model:
        raise ConfigError(f"recipe {name}: model is empty; set it to a model folder, a hub id, or embedded.")
    if recipe.games.counts and recipe.env != "alfworld":
        raise ConfigError(
            f"recipe {name}: games.counts is for alfworld, and env is {recipe.env!r}; set games.counts=null."
        )
    _check_splits(name, recipe)
    _check_methods(name, recipe)
    for stage in TRAINING:
        for key in _WHOLE_NUMBERS:
            whole_override(recipe, stage, key)
    if recipe.chat_template_kwargs:
        recipe.engine_options.setdefault("chat_template_kwargs", recipe.chat_template_kwargs)
        for stage in TRAINING:
            key = "++data.apply_chat_template_kwargs"
            getattr(recipe, stage).overrides.setdefault(key, recipe.chat_template_kwargs)
    if steps is not None:
        for stage in filter(lambda stage: getattr(recipe, stage).config, TRAINING):
            trainer = getattr(recipe, stage).overrides.setdefault("trainer", {})
            configured = whole_override(recipe, stage, "trainer.total_training_steps")
            trainer["total_training_steps"] = min(configured or steps, steps)
        for method in recipe.methods.values():
            method.stages = [bounded_stage(stage, steps) for stage in method.stages]
    return recipe


_WHOLE_NUMBERS = (
    "trainer.total_training_steps",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.max_ckpt_to_keep",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
)
"""Keys of verl that this package reads from a stage's overrides."""


def whole_override(recipe: Recipe, stage: str, key: str) -> int | None:
    """The value of verl's `key` in the overrides of a training stage; None if it is not set there.

    Raises `ConfigError` if it is not a whole number above 0.
    """
    value: Any = getattr(recipe, stage).overrides
    for segment in key.split("."):
        if not isinstance(value, dict):
            raise ConfigError(
                f"{stage}.overrides.{key.split('.')[0]} is {value!r}; it must be a mapping of verl's keys."
            )
        value = value.get(segment)
        if value is None:
            return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{stage}.overrides.{key} is {value!r}; give a whole number, at least 1.")
    return value


def _merged(name: str, layers: Sequence[tuple[str, dict[str, Any]]]) -> Recipe:
    """Merge the layers, later ones override earlier ones. Errors name the layer and the key."""
    for layer_name, layer in layers:
        _check_shape(f"recipe {layer_name}", Recipe, layer)
    missing: dict[str, str] = {}
    for layer_name, layer in layers:
        for key, value in _leaves(layer):
            missing.pop(key, None)
            if value == "???":  # OmegaConf would keep a lower layer's value
                missing[key] = layer_name
    for key, layer_name in missing.items():
        raise ConfigError(f"recipe {layer_name}: {key} is ???, a placeholder for a required value: set {key}=VALUE.")
    merged = OmegaConf.structured(Recipe)
    source = name
    try:
        for layer_name, layer in layers:
            source = layer_name
            merged = OmegaConf.merge(merged, layer)
        source = name
        overrides = {stage: OmegaConf.to_container(merged[stage].overrides, resolve=False) for stage in TRAINING}
        for stage in TRAINING:
            merged[stage].overrides = {}
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"recipe {source}: {_wrong_key(error)}") from error
    except (ValueError, TypeError, AttributeError, AssertionError) as error:  # raised by OmegaConf on unexpected input
        raise ConfigError(f"recipe {source}: {first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"recipe {source}: is nested too deeply.") from error
    assert isinstance(recipe, Recipe)
    for stage in TRAINING:
        getattr(recipe, stage).overrides = overrides[stage]
    for text in _strings(asdict(recipe)):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(
                f"recipe {name}: {text!r} holds an invalid character (NUL or a lone surrogate); write it as UTF-8."
            )
    return recipe


def _check_shape(source: str, settings: type, layer: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `ConfigError` where a value is not of the kind (mapping, list, single value) that its key expects."""
    hints = get_type_hints(settings)
    for name, value in layer.items():
        key = f"{prefix}{name}"
        hint = hints.get(name)
        if hint is None or value is None or (isinstance(value, str) and ("${" in value or value == "???")):
            continue  # left to the merge
        kinds = {get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))}
        if is_dataclass(hint) or dict in kinds:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {key} is {brief(value)}; it must be a mapping: {name}: {{key: value}}.")
            if is_dataclass(hint):
                _check_shape(source, hint, value, f"{key}.")  # type: ignore[arg-type]
            elif name == "methods":
                for title, method in value.items():
                    if not isinstance(method, Mapping):
                        raise ConfigError(f"{source}: {key}.{title} is {brief(method)}; it must be a mapping.")
                    _check_shape(source, MethodRecipe, method, f"{key}.{title}.")
        elif list in kinds and not isinstance(value, list):
            raise ConfigError(f"{source}: {key} is {brief(value)}; it must be a list, such as {name}: [a, b].")
        elif list in kinds and any(entry is None or isinstance(entry, Mapping | list) for entry in value):
            raise ConfigError(f"{source}: {key} is {brief(value)}; it must be a list of single values.")
        elif list not in kinds and isinstance(value, Mapping | list):
            raise ConfigError(f"{source}: {key} is {brief(value)}; it must be a single value.")


def _leaves(layer: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values with their dotted keys, including nested mappings."""
    for key, value in layer.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested mappings and lists, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)


def _check_splits(name: str, recipe: Recipe) -> None:
    """Raise `ConfigError` where splits overlap, or settings name a split that is not used."""
    splits = [recipe.train_split, *recipe.valid_splits]
    if not recipe.valid_splits:
        raise ConfigError(f"recipe {name}: valid_splits is empty; name at least one split for evaluation.")
    if twice := [split for split in splits if splits.count(split) > 1]:
        raise ConfigError(
            f"recipe {name}: split {twice[0]!r} appears twice in train_split and valid_splits; name it once, so "
            "that training and evaluation use different splits."
        )
    if unused := [split for split in recipe.expert.files if split not in splits]:
        raise ConfigError(f"recipe {name}: expert.files has {', '.join(unused)}; the splits are {', '.join(splits)}.")
    counts = recipe.games.counts
    if counts is not None and (without := [split for split in splits if not counts.get(split)]):
        raise ConfigError(
            f"recipe {name}: games.counts has no games for {', '.join(without)}; give a count for every split."
        )


def _wrong_key(error: OmegaConfBaseException) -> str:
    """The key and its fault as a sentence; an unknown key is listed with the known ones."""
    known = error.object_type
    if isinstance(error, ConfigKeyError) and is_dataclass(known):
        where = str(error.full_key).rpartition(".")[0] or "a recipe"
        return f"{where} has no key {error.key!r}; its keys are {', '.join(entry.name for entry in fields(known))}."
    return f"{first_line(error)} (key {str(error.full_key)!r})."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def parse_stage(text: str) -> tuple[str, int | None]:
    """`action:80` is ("action", 80), `action` is ("action", None). Raises `ValueError` on anything else."""
    kind, colon, steps = text.partition(":")
    if kind not in TRAINING:
        raise ValueError(f"the stages are {', '.join(TRAINING)}")
    if colon and not (steps.isdecimal() and int(steps) > 0):
        raise ValueError("the number of steps after the colon must be at least 1")
    return kind, int(steps) if colon else None


def bounded_stage(text: str, most: int) -> str:
    """The stage with its number of steps, if it has one, limited to `most`."""
    kind, steps = parse_stage(text)
    return text if steps is None else f"{kind}:{min(steps, most)}"


def _check_methods(name: str, recipe: Recipe) -> None:
    """Raise `ConfigError` on a method whose stages are unknown or not configured."""
    for title, method in recipe.methods.items():
        for other in method.against:
            if other not in recipe.methods or other == title:
                raise ConfigError(f"recipe {name}: method {title!r} is against {other!r}, which is not another method.")
        for stage in method.stages:
            try:
                kind, _ = parse_stage(stage)
            except ValueError as error:
                raise ConfigError(f"recipe {name}: method {title!r} has stage {stage!r}: {error}.") from error
            if not getattr(recipe, kind).config:
                raise ConfigError(f"recipe {name}: method {title!r} needs {kind}.config; set it in the recipe.")


def _recipe_path(name: str) -> Path:
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if os.path.isfile(path):  # false for an invalid file name too
            return path
    if os.path.isdir(name):
        raise ConfigError(f"{name} is a folder; name a recipe file in it.")
    known = sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))
    raise ConfigError(f"there is no recipe or file named {brief(name)}; the recipes are {', '.join(known)}.")


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """`path` and its bases, the lowest first, each once."""
    if path.resolve() in above:
        raise ConfigError(f"{above[0]}: its bases form a cycle at {path}.")
    base = _load(path).get("base") or []
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(entry, str) and entry for entry in names):
        raise ConfigError(f"{path}: base is {base!r}; name a recipe or a file, or a list of them.")
    below = (_layers(_recipe_path(entry), (*above, path.resolve())) for entry in names)
    return list(dict.fromkeys((*chain.from_iterable(below), path)))


def _own_keys(path: Path) -> dict[str, Any]:
    """The recipe's keys without its base."""
    return _normalized(str(path), {key: value for key, value in _load(path).items() if key != "base"})


def _load(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return _mapping(str(path), text)


def _mapping(source: str, text: str) -> dict[str, Any]:
    """Parse a YAML mapping; interpolations are kept as text. Raises `ConfigError`."""
    try:
        config = OmegaConf.load(StringIO(text))
        plain = OmegaConf.to_container(config, resolve=False)
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{source}: is not valid YAML for a recipe: {' '.join(str(error).split())}") from error
    except (OSError, TypeError, AttributeError) as error:  # raised by OmegaConf where the file is a single value
        raise ConfigError(f"{source}: is not a mapping of recipe keys.") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: is nested too deeply.") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{source}: is not a mapping of recipe keys.")
    return plain  # type: ignore[return-value]


def _change(change: str) -> dict[str, Any]:
    """`KEY=VALUE` as nested mappings. The value is YAML, or Hydra's grammar, in which `{train:24}` has key `train`."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"{change!r} is not of the form KEY=VALUE.")
    value = _mapping(change, f"value: {text}" if "\n" not in text else f"value:\n  {text}").get("value")
    if _has_keys_of_hydra(value):
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            value = OverridesParser.create().parse_override(f"key={text}").value()
        except HydraException as error:
            raise ConfigError(f"{change}: write a space after the colon, as in YAML: {{key: value}}.") from error
    return _normalized(change, nested(change, {key: value}))


def _has_keys_of_hydra(value: Any) -> bool:
    """Whether YAML has parsed `{key:value}` as a key without a value."""
    if isinstance(value, dict):
        return any(
            (isinstance(key, str) and ":" in key and entry is None) or _has_keys_of_hydra(entry)
            for key, entry in value.items()
        )
    return isinstance(value, list) and any(map(_has_keys_of_hydra, value))


def _normalized(source: str, layer: dict[str, Any]) -> dict[str, Any]:
    """The layer with nested keys in `overrides`, and with lists for single `against` methods."""
    for stage in TRAINING:
        block = layer.get(stage)
        if isinstance(block, dict) and isinstance(block.get("overrides"), dict):
            layer[stage] = {**block, "overrides": nested(f"{source}: {stage}.overrides", block["overrides"])}
    methods = layer.get("methods")
    for method in methods.values() if isinstance(methods, dict) else ():
        if isinstance(method, dict) and isinstance(method.get("against"), str):
            method["against"] = [method["against"]]
    return layer


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
    both = {
        key: _overlaid(lower[key], upper[key])
        for key in lower.keys() & upper.keys()
        if isinstance(lower[key], dict) and isinstance(upper[key], dict)
    }
    return {**lower, **upper, **both}
