"""Gap: verl logs the further values of a reward function (besides the score) in validation, but not in training.

In runs on `ActDataset`, every step also logs the mean of each such value for each data source: the reward tiers as
`train/act/alfworld/choice/acc/mean` and so on, and the metrics of live episodes, each episode once. It also logs the
share of groups whose replies all earn the same reward, `train/equal_reward_groups`. If this holds for all groups, the
run stops (`learning_signal`). Other runs are unchanged.

Upstream change it waits for: `reward_extra_info` in the training metrics (verl/trainer/ppo/v1/trainer_base.py,
`PPOTrainer._compute_metrics`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from numbers import Real
from typing import Any

from verl_act.learning_signal import SWITCH, LearningSignal
from verl_act.upstream_gaps import wrap_when_imported

_SIGNAL = "act_learning_signal"
"""The attribute of a trainer that holds its `LearningSignal`."""


@wrap_when_imported("verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_metrics")
def log_extra_info(wrapped: Callable[..., None], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    if trainer.config.data.get("custom_cls", {}).get("name") != "ActDataset":
        return
    import transfer_queue as tq

    arguments = signature(wrapped).bind(*args, **kwargs).arguments
    batch = arguments["batch"]
    rows = tq.kv_batch_get(
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


def last_outputs(keys: Sequence[str], padding: Sequence[bool]) -> list[int]:
    """The indices of rows that represent an episode each, without padding.

    A key is `<prompt>_<session>_<output>`. verl copies the last output's `reward_extra_info` to all outputs of a
    session, so that a mean over rows would count an episode once per turn.
    """
    last: dict[str, tuple[int, int]] = {}
    for row, key in enumerate(keys):
        if not padding[row]:
            session, _, output = key.rpartition("_")
            if not output.isdigit():  # a key of another agent loop manager than verl's
                session, output = key, "0"
            last[session] = max(last.get(session, (-1, -1)), (int(output), row))
    return sorted(row for _, row in last.values())


def means(data_sources: Sequence[str], extra_fields: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`train/<data source>/<key>/mean` over the rows with a number under that key in `reward_extra_info`."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for source, fields in zip(data_sources, extra_fields, strict=True):
        for key, value in (fields.get("reward_extra_info") or {}).items():
            if isinstance(value, Real):
                values[f"train/{source}/{key}/mean"].append(float(value))
    return {name: sum(entries) / len(entries) for name, entries in values.items()}
