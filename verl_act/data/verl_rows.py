"""Files of verl's own layout, read by verl's dataset, so that they can be mixed with ours."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_act.data.sources import Row
from verl_act.errors import ConfigError, DataError
from verl_act.parquet_file import read_parquet_schema
from verl_act.schema import PAIR, TASK, TRAJECTORY, missing_columns, schema_name, written_by

logger = logging.getLogger(__name__)


class VerlRows:
    """One file of verl's layout (prompt, data_source, reward_model, ...); `RLHFDataset` filters and renders it."""

    def __init__(self, path: str, tokenizer: Any, processor: Any, config: Any) -> None:
        self.path = path
        self._require_prompts(config.get("prompt_key", "prompt"))
        try:
            self._dataset = RLHFDataset(data_files=[path], tokenizer=tokenizer, processor=processor, config=config)
        except DatasetGenerationError as error:
            raise DataError(f"{path}: the rows cannot be read ({error.__cause__}). Write the file again.") from error
        # Otherwise RLHFDataset drops its rows when it is pickled for a spawned data worker.
        self._dataset.serialize_dataset = True

    def _require_prompts(self, prompt_key: str) -> None:
        """Raise `DataError` if the file has no prompts, or verl cannot read it."""
        columns = _columns(self.path)
        if prompt_key not in columns:
            ours = (PAIR, TRAJECTORY, TASK)
            nearest = max(ours, key=lambda schema: len(schema) - 2 * len(missing_columns(columns, schema)))
            lost = missing_columns(columns, nearest)
            reason = f"but lacks {', '.join(lost)}" if lost else "but is not a parquet file"
            raise DataError(
                f"{self.path}: has no column {prompt_key!r} (data.prompt_key), which verl's rows need; it has "
                f"{', '.join(columns)}. It may be meant as {schema_name(nearest)} rows, {reason}; {written_by(nearest)}"
            )

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int, position: int = 0) -> Row:
        """The row exactly as verl returns it."""
        row: Row = self._dataset[index]
        return row

    def require_mixable(self, kept: Collection[str]) -> None:
        """Log the columns that are not in `kept`.

        Raises `ConfigError` if the file has a column that every row of a batch would need, and `DataError` if it lacks
        one that rewards need.
        """
        columns = self._dataset.dataframe.column_names
        for needed in ("data_source", "reward_model"):
            if needed not in columns:
                raise DataError(
                    f"{self.path}: has no column {needed!r}, which rewards need; it has {', '.join(columns)}. "
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


def _columns(path: str) -> list[str]:
    if path.endswith(".parquet"):
        return list(read_parquet_schema(path).names)
    if not path.endswith((".json", ".jsonl")):
        raise DataError(f"{path}: is neither .parquet nor .json nor .jsonl. Save it as one of them.")
    try:
        return list(datasets.load_dataset("json", data_files=path, split="train").column_names)
    except (DatasetGenerationError, ValueError, FileNotFoundError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{path}: cannot be read as rows in JSON ({reason}). Write one JSON object a line.") from error
