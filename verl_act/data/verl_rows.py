"""Files of verl's own layout, read by verl's own dataset, so that they can stand beside ours in one list of files."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_act.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class VerlRows:
    """One file of verl's layout (prompt, data_source, reward_model, ...); `RLHFDataset` filters and renders it."""

    is_pairs = False

    def __init__(self, path: str, tokenizer: Any, processor: Any, config: Any) -> None:
        self.path = path
        self._dataset = RLHFDataset(data_files=[path], tokenizer=tokenizer, processor=processor, config=config)
        # Otherwise RLHFDataset leaves its rows out when it is pickled, as a spawned data worker needs it to be.
        self._dataset.serialize_dataset = True

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, number: int, position: int = 0) -> Row:
        """The row exactly as verl returns it."""
        return self._dataset[number]

    def require_mixable(self, kept: Collection[str]) -> None:
        """Prepare to give the columns `kept` only, and log the others.

        Raises `ConfigError` where the file has a column that every row of a batch would need, `DataError` where it
        lacks one that rewards need.
        """
        columns = self._dataset.dataframe.column_names
        for needed in ("data_source", "reward_model"):
            if needed not in columns:
                raise DataError(
                    f"{self.path}: has no column {needed!r}, by which a row is scored; it has {', '.join(columns)}. "
                    "Add the column, or train on this file alone."
                )
        if "__rollout_n__" in columns:
            raise ConfigError(
                f"{self.path}: sets a rollout count for each row (__rollout_n__), which cannot be mixed with files "
                "that do not. Drop the column, or train on this file alone."
            )
        read = {self._dataset.prompt_key, self._dataset.image_key, self._dataset.video_key, self._dataset.audio_key}
        if left_out := sorted(set(columns) - set(kept) - read):
            logger.warning("%s: columns left out, which other files do not have: %s.", self.path, ", ".join(left_out))
