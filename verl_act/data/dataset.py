"""`ActDataset`, verl's `data.custom_cls`: reads every kind of file, in any mixture.

    data.custom_cls.path=pkg://verl_act.data.dataset
    data.custom_cls.name=ActDataset

The schema in a file's parquet metadata decides what its rows become: pairs become choices, expert steps become single
actions, tasks become live episodes. verl's `RLHFDataset` reads any other file. Prompts are rendered on access.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.fs import copy_to_local

from verl_act.config.settings import ActSettings, Order
from verl_act.data.length import PromptLimit, PromptVariants
from verl_act.data.mixture import mix
from verl_act.data.order import expert_positions
from verl_act.data.sources import PairSource, Source, TaskSource, open_source
from verl_act.data.verl_rows import VerlRows
from verl_act.errors import ConfigError, DataError
from verl_act.prompts import Message
from verl_act.prompts.plain_text import as_plain_text
from verl_act.prompts.rendering import require_prompts, require_usable
from verl_act.prompts.reply_decoder import ReplyDecoder
from verl_act.settings.episodes import Mode

logger = logging.getLogger(__name__)

COLUMNS = (
    "raw_prompt",
    "data_source",
    "reward_model",
    "extra_info",
    "agent_name",
    "index",
    "tools_kwargs",
    "interaction_kwargs",
    "dummy_tensor",
)
"""The keys of every row, whatever its file: verl collates batches key by key."""

_ENTRY = np.dtype([("source", np.int32), ("row", np.int64), ("position", np.int64), ("order_by_hash", np.bool_)])
# verl requires at least one tensor in a batch.
_DUMMY = torch.zeros(1, dtype=torch.uint8)


class ActDataset(Dataset[dict[str, Any]]):
    """Rows for verl's trainer; `data.custom_cls` prescribes the constructor.

    `data_files` is a path or a list of them; `config` is verl's `data` block, with ours as `config.act`.
    `max_samples` > 0 keeps that many rows: the first, or with `config.shuffle` a sample with seed `config.seed`.

    Next to a file of ours, rows of verl's own layout have the keys `COLUMNS` too; their further columns are logged and
    left out.

    Rows depend only on the files and the settings, so a resumed data loader continues where it stopped. verl does not
    pass the epoch to a dataset: the order of the candidates stays the same unless `set_epoch` is called.

    Raises `ConfigError` for settings that cannot work, and `DataError` naming the file and row for bad data and, unless
    `config.filter_overlong_prompts` drops them, for prompts longer than `config.max_prompt_length`.
    """

    def __init__(
        self,
        data_files: str | Sequence[str],
        tokenizer: Any,
        config: Any,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        self.settings = ActSettings.from_config(config)
        self._tokenizer = tokenizer
        options = config.get("apply_chat_template_kwargs")
        require_usable(tokenizer, options)
        one_sequence = self.settings.episode.mode == Mode.CONCAT
        require_prompts(tokenizer, self.settings.make_template(), options, one_sequence=one_sequence)
        self._reply_prefix = ReplyDecoder(tokenizer, options, self.settings.thought_markers).prefix
        files = _as_list(data_files)
        if not files:
            raise ConfigError("data.train_files or data.val_files is empty; name at least one file.")
        self._sources = [self._open(path, config, processor) for path in files]
        self._has_ours = any(isinstance(source, Source) for source in self._sources)
        if self._has_ours:
            for source in self._sources:
                if isinstance(source, VerlRows):
                    source.require_mixable(COLUMNS)
        self._entries = self._all_entries()
        if 0 < max_samples < len(self):
            self._entries = self._entries[_kept_rows(len(self), max_samples, config)]
        self._limit_prompts(config)
        if not len(self):
            raise DataError(f"{', '.join(files)}: no rows are left; the log above says what was left out.")
        # verl does not say whether a dataset's files are for training or validation.
        if files == _as_list(config.get("train_files") or []) and max_samples == config.get("train_max_samples", -1):
            if self.settings.mix.weights:
                self._entries = self._mixed(files, config)
            self._require_a_batch(files, config)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A row with the keys `COLUMNS`. If no file is ours, exactly the row of `RLHFDataset`."""
        index = int(index)
        entry = self._entries[index]
        source = self._sources[entry["source"]]
        row: dict[str, Any] = source.row(int(entry["row"]), int(entry["position"]))
        if isinstance(source, Source):
            row["raw_prompt"] = as_plain_text(row["raw_prompt"], self._tokenizer)
            row["extra_info"] |= {"index": index, "reply_prefix": self._reply_prefix}
            return {**row, "index": index, "tools_kwargs": {}, "interaction_kwargs": {}, "dummy_tensor": _DUMMY}
        if not self._has_ours:
            return row
        row["agent_name"] = row.get("agent_name") or self.settings.default_agent
        return {name: row[name] for name in COLUMNS}

    def set_epoch(self, epoch: int) -> None:
        """Move each pair's expert action to the next position every epoch (`order: hash`); the first epoch is 0."""
        known = {
            source_index: (source.pair_ids, source.candidates)
            for source_index, source in enumerate(self._sources)
            if isinstance(source, PairSource)
        }
        by_hash = np.flatnonzero(self._entries["order_by_hash"])
        rows = [(known[entry["source"]], entry["row"]) for entry in self._entries[by_hash]]
        ids, candidates = [pairs[0][row] for pairs, row in rows], [pairs[1][row] for pairs, row in rows]
        self._entries["position"][by_hash] = expert_positions(ids, candidates, self.settings.seed, epoch)

    @classmethod
    async def process_multi_modal_info(cls, messages: list[dict[str, Any]], image_patch_size: int, config: Any) -> Any:
        """Called by verl's agent loops if the model has a processor; as in `RLHFDataset`."""
        return await RLHFDataset.process_multi_modal_info(messages, image_patch_size=image_patch_size, config=config)

    def _open(self, path: str, config: Any, processor: Any) -> Source | VerlRows:
        local = copy_to_local(path, cache_dir=config.get("cache_dir"), use_shm=config.get("use_shm", False))
        source = open_source(local, self.settings)
        if source is None:
            return VerlRows(local, self._tokenizer, processor, config)
        if source.unusable:
            logger.warning("%s: left out %d steps whose action the environment refused.", path, source.unusable)
        if len(source) < source.total:
            logger.info("%s: kept the %d inferable rows of %d.", path, len(source), source.total)
        return source

    def _all_entries(self) -> np.ndarray:
        tables = []
        for source_index, source in enumerate(self._sources):
            table = np.zeros(len(source), dtype=_ENTRY)
            table["source"], table["row"] = source_index, np.arange(len(source))
            if isinstance(source, PairSource):
                table = table.repeat(source.repeats())
                table["order_by_hash"] = self.settings.order is Order.HASH
                if self.settings.order is Order.BOTH and len(table):
                    counts = source.candidates[table["row"]]
                    table = table.repeat(counts)
                    table["position"] = np.concatenate([np.arange(count) for count in counts])
            tables.append(table)
        return np.concatenate(tables)

    def _require_a_batch(self, files: list[str], config: Any) -> None:
        """Raise `ConfigError` if there is no full batch: verl drops partial ones and would divide by zero."""
        batch = config.get("train_batch_size") or 1
        if len(self) < batch:
            raise ConfigError(
                f"{', '.join(files)}: {len(self)} rows are less than one batch (data.train_batch_size={batch}). Set a "
                "smaller data.train_batch_size and actor_rollout_ref.actor.ppo_mini_batch_size, or make more rows."
            )

    def _mixed(self, files: list[str], config: Any) -> np.ndarray:
        """The entries in the ratio of `data.act.mix`."""
        rows = [np.flatnonzero(self._entries["source"] == source_index) for source_index in range(len(files))]
        empty = [path for path, file_rows in zip(files, rows, strict=True) if not len(file_rows)]
        if empty:
            raise DataError(f"{empty[0]}: no rows are left to mix; the log above says what was left out.")
        order = mix(
            [len(file_rows) for file_rows in rows], self.settings.mix, config["train_batch_size"], self.settings.seed
        )
        return self._entries[[rows[file][row] for file, row in order]]

    def _limit_prompts(self, config: Any) -> None:
        """Leave out overlong prompts, or raise `DataError` for the first, depending on the configuration."""
        leave_out = config.get("filter_overlong_prompts", False)
        if not leave_out and config.get("truncation", "error") != "error":
            return
        options = config.get("apply_chat_template_kwargs") or {}
        limit = PromptLimit(config.get("max_prompt_length", 1024), self._tokenizer, options)
        fits = np.ones(len(self), dtype=bool)
        for source_index, source in enumerate(self._sources):
            if not isinstance(source, Source) or isinstance(source, TaskSource):
                continue  # verl's dataset filters its own rows; prompts of tasks are not known yet
            here = self._entries["source"] == source_index
            rows = np.unique(self._entries["row"][here])
            variants = (_prompt_variants(source, int(row), self._tokenizer) for row in rows)
            overlong_token_counts = tqdm(
                limit.overlong_token_counts(variants), "Measuring prompts", len(rows), leave=False, mininterval=1.0
            )
            overlong = {int(row): tokens for row, tokens in zip(rows, overlong_token_counts, strict=True) if tokens}
            if overlong and not leave_out:
                raise DataError(self._too_long(source, *next(iter(overlong.items())), limit.limit))
            fits &= ~(here & np.isin(self._entries["row"], list(overlong)))
        if not fits.all():
            dropped = len(fits) - fits.sum()
            logger.warning("Left out %d of %d rows: longer than %d tokens.", dropped, len(fits), limit.limit)
        self._entries = self._entries[fits]

    def _too_long(self, source: Source, row: int, tokens: int, limit: int) -> str:
        info = source.row(row, 0)["extra_info"]
        name = f"pair {info['pair_id']}" if "pair_id" in info else info["state_id"]
        return (
            f"{source.path}: {name} takes {tokens} prompt tokens with template {self.settings.template!r}, more than "
            f"data.max_prompt_length={limit}. Raise the limit, set data.act.history_length, or leave such rows out "
            "with data.filter_overlong_prompts=true."
        )


def _prompt_variants(source: Source, row: int, tokenizer: Any) -> PromptVariants:
    """The prompts of a row: one for each order of a pair."""

    def prompt(position: int) -> list[Message]:
        return as_plain_text(source.row(row, position)["raw_prompt"], tokenizer)

    if not isinstance(source, PairSource):
        return PromptVariants(prompt(0))
    candidates = source.row(row, 0)["extra_info"]["candidates"]
    return PromptVariants(prompt(0), candidates, lambda: [prompt(position) for position in range(1, len(candidates))])


def _as_list(files: str | Sequence[str]) -> list[str]:
    return [files] if isinstance(files, str) else list(files)


def _kept_rows(total: int, kept: int, config: Any) -> np.ndarray:
    """Which rows `max_samples` keeps, in file order."""
    if not config.get("shuffle", False):
        return np.arange(kept)
    return np.sort(np.random.default_rng(config.get("seed")).choice(total, size=kept, replace=False))
