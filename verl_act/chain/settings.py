"""Validate the settings of all planned stages before any of them runs.

Each command has a `check_settings`. This module calls it with the options of a stage, and maps each option to its key
in the recipe for error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from verl_act.chain.stages import Call, Stage
from verl_act.data_prep.alternatives import sample_alternatives
from verl_act.data_prep.expert import collect_expert, make_tasks
from verl_act.data_prep.imports import import_trajectories
from verl_act.data_prep.pairs import check_pairs
from verl_act.data_prep.pairs.pairing import PairSettings
from verl_act.data_prep.sft import make_sft, reflect
from verl_act.engine import EngineSettings, Sampling
from verl_act.envs.process_pool import check_workers
from verl_act.errors import ActError, ConfigError, OptionError
from verl_act.evaluate import run as evaluate
from verl_act.options import check_keys

Options = dict[str, Any]


def check_stages(planned: Sequence[Stage]) -> str:
    """Validate the settings of all stages that are commands of this package.

    Raises `ConfigError` listing every invalid key of the recipe, with the stages that would refuse it.
    """
    wrong: dict[str, list[str]] = {}
    calls = [(stage.name, stage.call) for stage in planned if stage.call and stage.call.command in _CHECKS]
    for name, call in calls:
        try:
            _CHECKS[call.command](_drop_unset(call.options))
        except OptionError as error:
            wrong.setdefault(f"{recipe_key(call, error.option)} {error.problem}", []).append(name)
        except ActError as error:
            wrong.setdefault(str(error), []).append(name)
    if wrong:
        raise ConfigError(" ".join(f"{problem} ({', '.join(names)})" for problem, names in wrong.items()))
    return f"of {len(calls)} stages"


def recipe_key(call: Call, option: str) -> str:
    """The recipe's key for an option of a stage's command."""
    name, dot, rest = option.partition(".")
    key = _KEYS.get(call.command, {}).get(name) or _KEYS_OF_ALL.get(name, name)
    return key.format(**call.options) + dot + rest


def _drop_unset(options: Mapping[str, Any]) -> Options:
    """The options that are set: those that are None are not passed."""
    return {name: value for name, value in options.items() if value is not None}


def _checked_options(check: Callable[..., Any], options: Options) -> Options:
    """The options that `check` accepts: neither files nor flags."""
    return {name: value for name, value in options.items() if name in signature(check).parameters}


def _engine(options: Options, *sampling: str) -> tuple[EngineSettings, Sampling]:
    """Remove the engine's options and those named in `sampling` from `options`, and return them as settings."""
    engine = EngineSettings(
        model=options.pop("model"),
        max_model_len=options.pop("max_model_len"),
        extra=options.pop("engine_options", {}),
    )
    return engine, Sampling(**{name: options.pop(name) for name in sampling if name in options})


def _make_games(options: Options) -> None:
    from verl_act.envs.alfworld.games.make_games import check_settings  # imports the alfworld package

    check_settings(**options)


def _collect_expert(options: Options) -> None:
    collect_expert.check_settings(options.pop("env"), options.pop("split"), **options)


def _import_trajectories(options: Options) -> None:
    options["form"] = options.pop("format")
    import_trajectories.check_settings(options.pop("files"), options.pop("env"), **options)


def _sample_alternatives(options: Options) -> None:
    engine, sampling = _engine(options, "n", "temperature", "top_p", "max_tokens")
    sample_alternatives.check_settings(
        engine, sampling, **_checked_options(sample_alternatives.check_settings, options)
    )


def _build_pairs(options: Options) -> None:
    check_workers(options["workers"])
    check_keys(PairSettings, options["settings"], "settings")
    PairSettings(**options["settings"])


def _check_pairs(options: Options) -> None:
    check_keys(check_pairs.AuditBounds, options["bounds"], "bounds")
    check_pairs.AuditBounds(**options["bounds"])
    check_pairs.check_settings(**_checked_options(check_pairs.check_settings, options))


def _make_tasks(options: Options) -> None:
    make_tasks.check_settings(options.pop("env"), **options)


def _reflect(options: Options) -> None:
    engine, sampling = _engine(options, "temperature", "max_tokens")
    reflect.check_settings(engine, sampling, **_checked_options(reflect.check_settings, options))


def _make_sft(options: Options) -> None:
    make_sft.check_settings(**_checked_options(make_sft.check_settings, options))


def _evaluate(options: Options) -> None:
    engine, sampling = _engine(options, "temperature", "max_tokens")
    evaluate.check_settings(engine, sampling, **_checked_options(evaluate.check_settings, options))


_CHECKS: Mapping[str, Callable[[Options], None]] = {
    "make-games": _make_games,
    "collect-expert": _collect_expert,
    "import-trajectories": _import_trajectories,
    "sample-alternatives": _sample_alternatives,
    "build-pairs": _build_pairs,
    "check-pairs": _check_pairs,
    "make-tasks": _make_tasks,
    "reflect": _reflect,
    "make-sft": _make_sft,
    "evaluate": _evaluate,
}

_KEYS_OF_ALL = {
    "template": "prompt.template",
    "template_options": "prompt.options",
    "split": "train_split or valid_splits",
    "splits": "train_split or valid_splits",
}
_KEYS: Mapping[str, Mapping[str, str]] = {
    "make-games": {name: f"games.{name}" for name in ("counts", "size", "seed")},
    "collect-expert": {"expert": "expert.name", "limit": "expert.limits.{split}"},
    "import-trajectories": {"format": "expert.format", "files": "expert.files"},
    "sample-alternatives": {
        name: f"alternatives.{name}"
        for name in ("n", "temperature", "max_tokens", "limit", "workers", "gpus_per_worker")
    },
    "build-pairs": {"settings": "pairs"},
    "check-pairs": {"bounds": "audit"},
    "make-tasks": {"limit": "evaluate.tasks"},
    "reflect": {name: f"reflect.{name}" for name in ("n", "temperature", "max_tokens")},
    "make-sft": {"max_length": "max_model_len"},
    "evaluate": {
        name: f"evaluate.{name}"
        for name in (
            *("temperature", "max_tokens", "reasoning_max_tokens", "max_turns", "actors", "pool", "limit"),
            "engine_options",
        )
    },
}
"""Command -> option -> key of the recipe; for other options, the key has the option's name."""
