"""Files of verl's own layout, read by verl's own dataset, so that they can stand beside ours in one list of files."""

from __future__ import annotations

from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_act.errors import ConfigError

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

    def require_mixable(self) -> None:
        """Raise `ConfigError` where the file has a column that every row of a batch would need."""
        if "__rollout_n__" in self._dataset.dataframe.column_names:
            raise ConfigError(
                f"{self.path}: sets a rollout count for each row (__rollout_n__), which cannot be mixed with files "
                "that do not. Drop the column, or train on this file alone."
            )
