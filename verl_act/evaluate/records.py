"""The files of an evaluation, and how comparisons and reports read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.manifest import FILE_NAME as MANIFEST
from verl_act.manifest import read_manifest
from verl_act.text_files import read_json_lines, refuse_constant

METRICS_FILE = "metrics.json"
EPISODES, NEXT_ACTIONS, CHOICES = "episodes.jsonl", "next_actions.jsonl", "choices.jsonl"
REASONING, RATIONALES = "reasoning.jsonl", "rationales.jsonl"
RECORDS = (EPISODES, NEXT_ACTIONS, CHOICES, REASONING, RATIONALES)
"""The files of records; each is named after what it holds."""
FILES = (METRICS_FILE, *RECORDS)
"""All result files of an evaluation."""

_EPISODE_KEYS = ("task_id", "task_type", "split", "end", "success", "steps", "inadmissible_share", "malformed_share")
_ANSWER_KEYS = ("split", "inferable", "reply", "well_formed", "admissible", "right")
_CHOICE_KEYS = ("margin", "candidates", "expert_position", "named_a_candidate", "chosen", "consistent")
_RATIONALE_KEYS = ("well_formed", "thought", "right", "follows")
_METRICS_KEYS = ("name", "model", "template", "sampling", "metrics")
REQUIRED_KEYS = {
    EPISODES: (*_EPISODE_KEYS, "longest_failed_repeat"),
    NEXT_ACTIONS: ("state_id", *_ANSWER_KEYS),
    CHOICES: ("pair_id", "order", *_ANSWER_KEYS, *_CHOICE_KEYS),
    REASONING: ("item", "split", "right"),
    RATIONALES: ("pair_id", "task_id", "split", "rationale", "question", "order", "reply", *_RATIONALE_KEYS),
}
"""File -> keys that every record in it has; docs/reference/files.md says what they mean."""


def read_records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """File name -> records; an empty list for a missing file.

    Raises `DataError` if a file is damaged or does not hold as many records as the manifest counts.
    """
    manifest = read_manifest(folder)
    by_file = {}
    for file, required in REQUIRED_KEYS.items():
        path, records = folder / file, []
        for line_number, record in read_json_lines(path):
            if missing := [key for key in required if key not in record]:
                raise DataError(f"{path}, line {line_number}: {missing[0]!r} is missing. Run the evaluation again.")
            records.append(record)
        expected = None if manifest is None else manifest.counts.get(path.stem)
        if expected is not None and expected != len(records):
            raise DataError(
                f"{path}: holds {len(records)} records, but {folder / MANIFEST} counts {expected}. "
                "A file was cut short or changed; run the evaluation again."
            )
        by_file[file] = records
    return by_file


def read_metrics_file(path: Path) -> dict[str, Any]:
    """The content of `metrics.json`. Raises `DataError` if it is missing, is not strict JSON (no `NaN` or `Infinity`)
    or lacks a required key.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a folder that `eval run` wrote.")
    try:
        metrics = json.loads(path.read_bytes(), parse_constant=refuse_constant)
        if not isinstance(metrics, dict):
            raise ValueError(f"it holds {type(metrics).__name__}, not an object")
        if missing := [key for key in _METRICS_KEYS if key not in metrics]:
            raise ValueError(f"{missing[0]!r} is missing")
        if not isinstance(metrics["name"], str):
            raise ValueError(f"'name' is {metrics['name']!r}, not a string")
        by_split = metrics["metrics"]
        if not isinstance(by_split, dict) or not all(isinstance(split, dict) for split in by_split.values()):
            raise ValueError("'metrics' does not hold metrics by split")
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: is damaged ({error}). Run the evaluation again.") from error
    return metrics
