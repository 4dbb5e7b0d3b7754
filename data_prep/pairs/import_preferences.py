"""Import public preference data as pairs: the chosen reply becomes the expert's action, rejected ones alternatives.

Rows may have `chosen` and `rejected` (TRL, LLaMA-Factory, UltraFeedback binarized: texts, messages, ShareGPT's
messages, or HH-RLHF's dialogues in one text), scored `completions` (UltraFeedback), or one reply with its score, where
all rows of a request form one pair (HelpSteer). Files are Parquet, JSON Lines or a JSON array, the latter two plain or
gzip.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.data_prep.pairs.preference_messages import UnusableRow
from verl_act.data_prep.pairs.preference_rows import (
    Preference,
    Request,
    SingleReplyRow,
    best_and_worst,
    read_preference,
)
from verl_act.errors import DataError, OptionError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.parquet_file import read_parquet
from verl_act.parse import normalise
from verl_act.run_folder import PAIRS as PAIRS_FILE
from verl_act.schema import ENV_NAME, PAIR, Context, Pair, is_env_name, pair_id, write_rows
from verl_act.settings.data import PreferencesSettings
from verl_act.text_files import read_rows, text_suffix, write_json_lines

logger = logging.getLogger(__name__)

REJECTED = "rejected.jsonl"
SOURCES = "sources.jsonl"
SOURCE = "preference"
"""The `alternative_source` of these pairs."""


@writes_folder("import_preferences")
def import_preferences(settings: PreferencesSettings, out: str | PathLike[str]) -> Manifest:
    """Write `out/pairs.parquet` (schema PAIR), `out/sources.jsonl`, `out/rejected.jsonl` and the manifest; return it.

    rejected.jsonl gives the file, row (from 0) and reason of each rejected row. sources.jsonl gives the file and row of
    each pair and, for scored replies, which replies it uses and by which score. `env` names the data source
    (`act/<env>/choice`). If there are more than two replies, a pair gets up to `candidates`: the best reply and the
    worst ones. Rows that label the same two replies in opposite ways are all rejected. A task is a prompt, so the same
    prompt has the same `task_id` in every file. The list of admissible actions is empty, because it is unknown.

    Raises `DataError` if a file cannot be read or no pair remains.
    """
    check_settings(settings)
    split, env, files = settings.split, settings.env, settings.files
    reader = _Reader(settings.candidates - 1)
    for path in files:
        reader.add_file(path)
    pairs: dict[str, tuple[Pair, _Labelled]] = {}
    for labelled in reader.consistent():
        pair = _pair(labelled.preference, split, env)
        if pair.pair_id in pairs:
            reader.reject(labelled.file, labelled.rows, "the same pair came before")
        else:
            pairs[pair.pair_id] = pair, labelled
    rejected = reader.rejected()
    reasons = Counter(row["reason"] for row in rejected)
    scores = Counter(labelled.preference.origin.get("scored_by") for _, labelled in pairs.values())
    if not pairs:
        raise DataError(f"{', '.join(map(str, files))}: no pairs. Rejected: {dict(reasons) or 'no rows at all'}.")
    manifest = make_manifest(
        "import_preferences",
        settings=settings.recorded(),
        inputs=settings.inputs(),
        counts={
            "pairs": len(pairs),
            "rejected": len(rejected),
            "rejected_by_reason": dict(reasons.most_common()),
            "pairs_by_score": {name: count for name, count in scores.most_common() if name},
        },
    )
    with atomic_folder(out) as folder:
        write_rows(folder / PAIRS_FILE, [pair.to_row() for pair, _ in pairs.values()], PAIR)
        sources = (
            {"pair_id": name, "file": row.file, "row": row.rows[0], **row.preference.origin}
            for name, (_, row) in pairs.items()
        )
        write_json_lines(folder / SOURCES, sources)
        write_json_lines(folder / REJECTED, rejected)
        write_manifest(folder, manifest)
    logger.info("%s: %d pairs, %d rows rejected.", Path(out) / PAIRS_FILE, len(pairs), len(rejected))
    return manifest


def check_settings(settings: PreferencesSettings) -> None:
    """Raise `ConfigError` if the environment has no valid name."""
    if not is_env_name(settings.env):
        raise OptionError("env", f"is {settings.env!r}; give {ENV_NAME}.")


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A preference and the rows that form it, that of the chosen reply first."""

    file: str
    rows: tuple[int, ...]
    preference: Preference

    def comparisons(self) -> Iterator[tuple[Request, str, str]]:
        """The request, the better reply and the worse reply, for each rejected reply."""
        better = normalise(self.preference.chosen)
        for reply in self.preference.rejected:
            yield self.preference.request, better, normalise(reply)


class _Reader:
    """Collects the preferences of all files, and the reasons why rows were rejected."""

    def __init__(self, most_rejected: int) -> None:
        self._most_rejected = most_rejected
        self._labelled: list[_Labelled] = []
        self._rejected: dict[tuple[str, int], str] = {}

    def add_file(self, path: Path) -> None:
        """Read all rows. Rows with one scored reply each are grouped by request; a group gives one pair."""
        groups: dict[Request, list[SingleReplyRow]] = {}
        for index, row in enumerate(rows_of(path)):
            self._rejected[str(path), index] = ""  # keeps the order of the rows
            try:
                result = read_preference(row, self._most_rejected, index)
            except UnusableRow as unusable:
                self.reject(str(path), [index], str(unusable))
                continue
            if isinstance(result, Preference):
                self._labelled.append(_Labelled(str(path), (index,), result))
            else:
                groups.setdefault(result.request, []).append(result)
        for request, scored in groups.items():
            self._add_group(str(path), request, scored)

    def _add_group(self, file: str, request: Request, scored: Sequence[SingleReplyRow]) -> None:
        score_names = {entry.scored_by for entry in scored}
        try:
            if len(scored) == 1:
                raise UnusableRow("is the only reply to its request")
            if len(score_names) > 1:
                raise UnusableRow(
                    f"replies to its request are scored by different columns ({', '.join(sorted(score_names))})"
                )
            replies = [entry.reply for entry in scored]
            preference = best_and_worst(request, replies, self._most_rejected, score_names.pop())
        except UnusableRow as unusable:
            self.reject(file, [entry.reply.index for entry in scored], str(unusable))
            return
        chosen, rejected = preference.origin["chosen"]["index"], preference.origin["rejected"]
        used = tuple(dict.fromkeys((chosen, *(reply["index"] for reply in rejected))))
        others = [entry.reply.index for entry in scored if entry.reply.index not in used]
        self.reject(file, others, "is neither the best reply to its request nor one of the worst")
        self._labelled.append(_Labelled(file, used, preference))

    def consistent(self) -> Iterator[_Labelled]:
        """The preferences that no other row contradicts. Contradicting rows are rejected."""
        known = {comparison for labelled in self._labelled for comparison in labelled.comparisons()}
        for labelled in self._labelled:
            if any((request, worse, better) in known for request, better, worse in labelled.comparisons()):
                self.reject(labelled.file, labelled.rows, "another row labels the same two replies the other way")
            else:
                yield labelled

    def reject(self, file: str, rows: Iterable[int], reason: str) -> None:
        self._rejected |= {(file, row): reason for row in rows}

    def rejected(self) -> list[dict[str, Any]]:
        """The rejected rows with reasons, in the order of the rows."""
        return [{"file": file, "row": row, "reason": why} for (file, row), why in self._rejected.items() if why]


def _pair(preference: Preference, split: str, env: str) -> Pair:
    request = preference.request
    context = Context(request.goal, request.history, request.message, ())
    prompt = json.dumps(context.to_row(), sort_keys=True, ensure_ascii=False)
    task = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    alternative, *further = preference.rejected
    return Pair(
        context=context,
        pair_id=pair_id(task, preference.chosen, *preference.rejected),
        env=env,
        split=split,
        task_id=task,
        task_type=SOURCE,
        state_id=task,
        step=len(request.history),
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


def rows_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the rows of one file. Raises `DataError` naming the file and the invalid line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.suffix.lower() == ".parquet":
        for batch in read_parquet(path).to_batches(max_chunksize=1024):
            yield from batch.to_pylist()
    elif text_suffix(path) in (".jsonl", ".json"):
        yield from read_rows(path)
    else:
        raise DataError(
            f"{path}: is neither .parquet nor .jsonl, .json, .jsonl.gz or .json.gz. Convert it to one of these."
        )
