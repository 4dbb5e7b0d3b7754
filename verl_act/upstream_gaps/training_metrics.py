"""Gap: verl shows what a reward function returns beside the score in validation, but not while it trains.

In runs on `ActDataset`, every step also logs the mean of each such value, for each data source apart: the reward tiers
as `train/act/alfworld/choice/acc/mean` and so on, and for live episodes their metrics, each episode once; and the share
of groups whose replies all earn the same reward, `train/equal_reward_groups`. A run in which all groups do so stops
(`learning_signal`). Other runs are left alone.

Upstream change it waits for: `reward_extra_info` in the training metrics (verl/trainer/ppo/v1/trainer_base.py,
`PPOTrainer._compute_metrics`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from numbers import Real
from types import ModuleType
from typing import Any

import wrapt

from verl_act.learning_signal import SWITCH, LearningSignal

_SIGNAL = "act_learning_signal"
"""The attribute of a trainer that watches its steps."""


def close_gap(module: ModuleType) -> None:
    """Wrap the trainer's metrics; `module` is verl.trainer.ppo.v1.trainer_base, just imported."""

    def with_extra_info(
        wrapped: Callable[..., None], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        wrapped(*args, **kwargs)
        if trainer.config.data.get("custom_cls", {}).get("name") != "ActDataset":
            return
        arguments = signature(wrapped).bind(*args, **kwargs).arguments
        batch = arguments["batch"]
        rows = module.tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["data_source", "extra_fields"]
        )
        kept = last_outputs(batch.keys, [tag.get("is_padding", False) for tag in batch.tags])
        sources, fields = (rows.pop(name).tolist() for name in ("data_source", "extra_fields"))
        arguments["metrics"].update(means([sources[row] for row in kept], [fields[row] for row in kept]))
        scored = [row for row in kept if "score" in (fields[row].get("reward_extra_info") or {})]
        if not hasattr(trainer, _SIGNAL):
            allowed = bool((trainer.config.data.get("act") or {}).get(SWITCH, False))
            setattr(trainer, _SIGNAL, LearningSignal(allowed))
        share = getattr(trainer, _SIGNAL).after_step(
            trainer.global_steps,
            [batch.keys[row] for row in scored],
            [float(fields[row]["reward_extra_info"]["score"]) for row in scored],
        )
        if share is not None:
            arguments["metrics"]["train/equal_reward_groups"] = share

    wrapt.wrap_function_wrapper(module, "PPOTrainer._compute_metrics", with_extra_info)


def last_outputs(keys: Sequence[str], padding: Sequence[bool]) -> list[int]:
    """The rows of a batch that stand for an episode each; padding stands for none.

    A key is `<prompt>_<session>_<output>`. verl copies the last output's `reward_extra_info` to all outputs of a
    session, so that a mean over rows would count an episode once per turn.
    """
    last: dict[str, tuple[int, int]] = {}
    for row, key in enumerate(keys):
        if not padding[row]:
            session, _, output = key.rpartition("_")
            if not output.isdigit():  # the key of an agent loop manager that is not verl's
                session, output = key, "0"
            last[session] = max(last.get(session, (-1, -1)), (int(output), row))
    return sorted(row for _, row in last.values())


def means(data_sources: Sequence[str], extra_fields: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`train/<data source>/<key>/mean` over the rows that have the key in their `reward_extra_info`, if a number."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for source, fields in zip(data_sources, extra_fields, strict=True):
        for key, value in (fields.get("reward_extra_info") or {}).items():
            if isinstance(value, Real):
                values[f"train/{source}/{key}/mean"].append(float(value))
    return {name: sum(entries) / len(entries) for name, entries in values.items()}
