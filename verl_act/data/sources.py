"""One file of ours as rows for verl: pairs become choices, expert steps become single actions, tasks become episodes.

A source keeps its file as an Arrow table and builds rows on access, so that large files open quickly and worker
processes share memory. This module does not depend on verl or torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_act.config.settings import ActSettings
from verl_act.data.order import candidate_order
from verl_act.envs.base import read_tasks
from verl_act.envs.registry import admissible_candidates, choice_prompt
from verl_act.errors import DataError
from verl_act.parquet_file import read_parquet_schema
from verl_act.parse import verb
from verl_act.prompts import Message
from verl_act.sampling import sampling_key
from verl_act.schema import PAIR, TASK, TRAJECTORY, Context, Pair, missing_columns, read_table, schema_name

SINGLE_TURN_AGENT = "single_turn_agent"
"""verl's own agent loop for one prompt and one reply."""
EPISODE_AGENT = "act_env"
"""This package's agent loop."""

TRAIN_SPLIT = "train"
LARGEST_CHUNK = 2**31

Row = dict[str, Any]


class Source(ABC):
    """The rows of one file; a subclass for each schema. `row` is deterministic."""

    schema: ClassVar[pa.Schema]
    unread: ClassVar[Sequence[str]] = ()
    """Columns that rows do not need."""

    def __init__(self, path: str, settings: ActSettings) -> None:
        self.path = path
        self.settings = settings
        self.template = settings.make_template()
        stored = read_table(path, self.schema)
        table = stored
        if "admissible" in table.column_names:  # as `verl_act.schema.steps_to_learn`
            table = table.filter(pc.fill_null(table["admissible"], True))
        self.unusable = stored.num_rows - table.num_rows
        self.total = table.num_rows
        if settings.inferable_only and "inferable" in table.column_names:
            table = table.filter(table["inferable"])
        self._columns = {name: joined(table[name]) for name in self.schema.names if name not in self.unread}
        self._length: int = table.num_rows

    def __len__(self) -> int:
        return self._length

    def row(self, index: int, position: int) -> Row:
        """The row for verl's reward and agent loops, without the keys that `ActDataset` adds to every row."""
        return self._build({name: column[index].as_py() for name, column in self._columns.items()}, position)

    @abstractmethod
    def _build(self, stored: Row, position: int) -> Row: ...


def joined(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column in one chunk, for fast access to rows; Arrow's 32-bit offsets allow up to 2 GiB."""
    return column.combine_chunks() if column.nbytes < LARGEST_CHUNK else column


def repeats(verbs: Sequence[tuple[str, str]], most: int) -> np.ndarray:
    """Times to show each pair; int64, shape [pairs]. `verbs`: those of (expert's action, alternative).

    Of two verbs, one is usually the expert's: "move" beats "go" five times in six. A policy learns that rule first and
    becomes certain, which leaves GRPO no signal where the rule is wrong. Pairs of the rarer direction are therefore
    repeated until both are about equally frequent, at most `most` times.
    """
    counts = Counter(verbs)
    times = {
        (better, worse): max(1, min(most, round(counts[worse, better] / count)))
        for (better, worse), count in counts.items()
    }
    return np.array([times[pair] for pair in verbs], dtype=np.int64)


class PairSource(Source):
    """`act/<env>/choice`: which of two or more actions is best? `position` is the index of the expert's action."""

    schema = PAIR
    unread = ("model", "sampling")

    @property
    def pair_ids(self) -> list[str]:
        ids: list[str] = self._columns["pair_id"].to_pylist()
        return ids

    @cached_property
    def candidates(self) -> np.ndarray:
        """Number of actions of each pair, including the expert's; int64, shape [pairs]."""
        further = pc.list_value_length(self._columns["further_alternatives"])
        counts: np.ndarray = 2 + pc.fill_null(further, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return counts

    def repeats(self) -> np.ndarray:
        """Times to show each pair; int64, shape [pairs]. Held-out pairs are shown once."""
        actions = zip(
            *(self._columns[f"{whose}_action"].to_pylist() for whose in ("expert", "alternative")), strict=True
        )
        times = repeats([(verb(expert), verb(other)) for expert, other in actions], self.settings.verb_balance)
        times[pc.not_equal(self._columns["split"], TRAIN_SPLIT).to_numpy(zero_copy_only=False)] = 1
        return times

    def _build(self, stored: Row, position: int) -> Row:
        pair = Pair.from_row({**stored, "model": "", "sampling": "{}"})
        candidates = candidate_order(pair.pair_id, pair.expert_action, pair.alternatives, position)
        listed = pair.context.admissible_actions
        label = self._label(pair)
        copied = ("pair_id", "state_id", "step", "margin", "inferable", "alternative_source", "alternative_admissible")
        return _row(
            stored,
            "choice",
            choice_prompt(self.template, pair, candidates),
            ground_truth=label,
            candidates=candidates,
            candidates_admissible=admissible_candidates(pair.env, candidates, listed, pair.judged_admissible),
            expert_position=candidates.index(label),
            admissible_actions=stored["admissible_actions"],
            **{name: stored[name] for name in copied},
        )

    def _label(self, pair: Pair) -> str:
        """The action that is rewarded as the best: the expert's, or with shuffled labels any of a training pair."""
        if not self.settings.shuffled_labels or pair.split != TRAIN_SPLIT:
            return pair.expert_action
        number = int.from_bytes(sampling_key(self.settings.seed, f"label {pair.pair_id}")[:8])
        return (pair.expert_action, *pair.alternatives)[number % (1 + len(pair.alternatives))]


class TrajectorySource(Source):
    """`act/<env>/action`: what is the next action?"""

    schema = TRAJECTORY
    unread = ("thought", "reward", "done", "source", "admissible", "tied_actions")

    def _build(self, stored: Row, position: int) -> Row:
        return _row(
            stored,
            "action",
            self.template.action_messages(Context.from_row(stored)),
            ground_truth=stored["action"],
            state_id=f"{stored['trajectory_id']}#{stored['step']}",
            admissible_actions=stored["admissible_actions"],
            step=stored["step"],
            inferable=stored["inferable"],
        )


class TaskSource(Source):
    """`act/<env>/episode`: play the task to its end. The agent loop builds the prompts from the live environment."""

    schema = TASK

    def __init__(self, path: str, settings: ActSettings) -> None:
        super().__init__(path, settings)
        read_tasks(path)  # refuses bad tasks now, not in an episode

    def _build(self, stored: Row, position: int) -> Row:
        placeholder = [{"role": "user", "content": f"{stored['env']} {stored['task_id']}"}]
        row = _row(stored, "episode", placeholder, ground_truth=stored["task_id"], task=dict(stored))
        return {**row, "agent_name": EPISODE_AGENT}


def _row(stored: Row, kind: str, messages: list[Message], *, ground_truth: str, **extra: Any) -> Row:
    # verl reports validation metrics by data source: each held-out split gets its own, and so do labels that do not
    # follow from the prompt.
    held_out = "" if stored["split"] == TRAIN_SPLIT else f"/{stored['split']}"
    if held_out and not extra.get("inferable", True):
        held_out += "/not_inferable"
    task = {name: stored[name] for name in ("env", "split", "task_id", "task_type")}
    return {
        "raw_prompt": messages,
        "data_source": f"act/{stored['env']}/{kind}{held_out}",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {**task, **extra},
        "agent_name": SINGLE_TURN_AGENT,
    }


_KINDS: dict[str, type[Source]] = {
    schema_name(source.schema).split("/")[0]: source for source in (PairSource, TrajectorySource, TaskSource)
}


def open_source(path: str, settings: ActSettings) -> Source | None:
    """The source for a parquet file of this package's schemas; None for any other file.

    A file without schema metadata, such as pandas writes, is recognised by its columns.

    Raises `DataError` for a missing or damaged file, and for one of our schemas that no stage trains on.
    """
    if not path.endswith(".parquet"):
        return None
    if not Path(path).exists():
        raise DataError(f"{path}: no such file. It is listed in data.train_files or data.val_files.")
    stored = read_parquet_schema(path)
    kind = schema_name(stored).split("/")[0]
    if kind == "none":
        has_all = (source for source in _KINDS.values() if not missing_columns(stored.names, source.schema))
        unnamed = None if "prompt" in stored.names else next(has_all, None)  # verl's rows have a prompt
        return unnamed(path, settings) if unnamed else None
    if kind not in _KINDS:
        raise DataError(f"{path}: holds {kind} rows; a stage can train on {', '.join(_KINDS)} files.")
    return _KINDS[kind](path, settings)
