"""Public preference data as pairs: the chosen reply stands as the expert's action, a rejected one as the alternative.

Rows may have the forms of TRL's preference data (`prompt`, `chosen` and `rejected`, each a text or a list of messages;
or conversations that share their beginning, without `prompt`), or UltraFeedback's (`instruction` and scored
`completions`). Files are Parquet, JSON Lines or a JSON array; nothing else is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_act.data_prep.preference_rows import Preference, Unusable, read_preference
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.schema import PAIR, Context, Pair, pair_id, write_rows
from verl_act.text_files import read_rows, text_suffix

logger = logging.getLogger(__name__)

FILE_NAME = "pairs.parquet"
REJECTED = "rejected.jsonl"
SOURCE = "preference"
"""The `alternative_source` of these pairs."""


@writes_folder("import_preferences")
def import_preferences(
    out: str | PathLike[str],
    files: Sequence[str | PathLike[str]],
    *,
    split: str = "train",
    env: str = SOURCE,
    candidates: int = 2,
) -> Manifest:
    """Write `out/pairs.parquet` (schema PAIR), `out/rejected.jsonl` and the manifest; return the manifest.

    Rows of rejected.jsonl say file, row (from 0) and reason. `env` names the data source (`act/<env>/choice`).
    Where a row has more than two replies, its pair gets up to `candidates`, the worst ones first. A task is a prompt:
    the same prompt has the same `task_id` in every file. Which actions are admissible is not known; the list is empty.

    Raises `DataError` where a file cannot be read or no pair is left, `ConfigError` for less than two candidates.
    """
    if candidates < 2:
        raise ConfigError(f"candidates is {candidates}; a choice needs 2 at least.")
    if "/" in env or not env:
        raise ConfigError(f"env is {env!r}; it is a part of the data source's name, so not empty and without '/'.")
    pairs: dict[str, Pair] = {}
    rejected: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    for path in files:
        for number, row in enumerate(_rows(Path(path))):
            try:
                pair = _pair(read_preference(row, candidates - 1), split, env)
                if pair.pair_id in pairs:
                    raise Unusable("the same pair came before")
            except Unusable as unusable:
                reasons[str(unusable)] += 1
                rejected.append({"file": str(path), "row": number, "reason": str(unusable)})
            else:
                pairs[pair.pair_id] = pair
    if not pairs:
        raise DataError(
            f"{', '.join(map(str, files))}: no pair is left. Rejected: {dict(reasons) or 'no rows at all'}."
        )
    manifest = make_manifest(
        "import_preferences",
        settings={"split": split, "env": env, "candidates": candidates},
        inputs=list(files),
        counts={"pairs": len(pairs), "rejected": len(rejected), "rejected_by_reason": dict(reasons.most_common())},
    )
    with atomic_folder(out) as folder:
        write_rows(folder / FILE_NAME, [pair.to_row() for pair in pairs.values()], PAIR)
        (folder / REJECTED).write_text("".join(json.dumps(row) + "\n" for row in rejected))
        write_manifest(folder, manifest)
    logger.info("%s: %d pairs, %d rows rejected.", Path(out) / FILE_NAME, len(pairs), len(rejected))
    return manifest


def _pair(preference: Preference, split: str, env: str) -> Pair:
    context = Context(preference.goal, preference.history, preference.request, ())
    asked = json.dumps(context.to_row(), sort_keys=True, ensure_ascii=False)
    task = hashlib.sha256(asked.encode()).hexdigest()[:16]
    alternative, *further = preference.rejected
    return Pair(
        context=context,
        pair_id=pair_id(task, preference.chosen, *preference.rejected),
        env=env,
        split=split,
        task_id=task,
        task_type=SOURCE,
        state_id=task,
        step=len(preference.history),
        expert_action=preference.chosen,
        alternative_action=alternative,
        further_alternatives=tuple(further),
        alternative_source=SOURCE,
        alternative_admissible=False,
        model="",
        sampling="{}",
        margin=None,
        inferable=True,
    )


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of one file. Raises `DataError` naming the file, and the line at fault."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif text_suffix(path) in (".jsonl", ".json"):
        yield from read_rows(path)
    else:
        raise DataError(
            f"{path}: is neither .parquet nor .jsonl nor .json (nor one of the last two with .gz). Save it as one."
        )


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is not a whole parquet file ({error}). Fetch it again.") from error
