"""Public preference data as pairs: the chosen reply stands as the expert's action, a rejected one as the alternative.

Rows may have `chosen` and `rejected` (TRL, LLaMA-Factory, UltraFeedback binarized: texts, messages, ShareGPT's
messages, or HH-RLHF's dialogues in one text), scored `completions` (UltraFeedback), or one reply and its score, where
the rows of a request make its pair (HelpSteer). Files are Parquet, or JSON Lines or a JSON array, plain or gzip.
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

from verl_act.data_prep.pairs.preference_messages import Unusable
from verl_act.data_prep.pairs.preference_rows import Preference, Request, ScoredReply, best_and_worst, read_preference
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.parquet_file import read_parquet
from verl_act.parse import normalise
from verl_act.schema import ENV_NAME, PAIR, Context, Pair, is_env_name, pair_id, write_rows
from verl_act.text_files import read_rows, text_suffix

logger = logging.getLogger(__name__)

FILE_NAME = "pairs.parquet"
REJECTED = "rejected.jsonl"
SOURCES = "sources.jsonl"
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
    """Write `out/pairs.parquet` (schema PAIR), `out/sources.jsonl`, `out/rejected.jsonl` and the manifest; return it.

    Rows of rejected.jsonl say file, row (from 0) and reason; those of sources.jsonl from which file and row a pair is
    and, where replies are scored, which of them it has, by which score. `env` names the data source
    (`act/<env>/choice`). Of more than two replies, a pair gets up to `candidates`: the best, and the worst ones first.
    Rows that label the same two replies in opposite ways are all rejected. A task is a prompt:
    the same prompt has the same `task_id` in every file. Which actions are admissible is not known; the list is empty.

    Raises `DataError` where a file cannot be read or no pair is left, `ConfigError` for less than two candidates.
    """
    if candidates < 2:
        raise ConfigError(f"candidates is {candidates}; a choice needs 2 at least.")
    if not is_env_name(env):
        raise ConfigError(f"--env is {env!r}; give {ENV_NAME}.")
    read = _Read(candidates - 1)
    for path in files:
        read.add_file(Path(path))
    pairs: dict[str, tuple[Pair, _Labelled]] = {}
    for labelled in read.consistent():
        pair = _pair(labelled.preference, split, env)
        if pair.pair_id in pairs:
            read.reject(labelled.file, labelled.row, "the same pair came before")
        else:
            pairs[pair.pair_id] = pair, labelled
    rejected = read.rejected()
    reasons = Counter(row["reason"] for row in rejected)
    scores = Counter(labelled.preference.origin.get("scored_by") for _, labelled in pairs.values())
    if not pairs:
        raise DataError(
            f"{', '.join(map(str, files))}: no pair is left. Rejected: {dict(reasons) or 'no rows at all'}."
        )
    manifest = make_manifest(
        "import_preferences",
        settings={"split": split, "env": env, "candidates": candidates},
        inputs=list(files),
        counts={
            "pairs": len(pairs),
            "rejected": len(rejected),
            "rejected_by_reason": dict(reasons.most_common()),
            "pairs_by_score": {name: count for name, count in scores.most_common() if name},
        },
    )
    with atomic_folder(out) as folder:
        write_rows(folder / FILE_NAME, [pair.to_row() for pair, _ in pairs.values()], PAIR)
        _write_lines(folder / SOURCES, ({"pair_id": name, **row.source()} for name, (_, row) in pairs.items()))
        _write_lines(folder / REJECTED, rejected)
        write_manifest(folder, manifest)
    logger.info("%s: %d pairs, %d rows rejected.", Path(out) / FILE_NAME, len(pairs), len(rejected))
    return manifest


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A preference and the row that it is from; that of the chosen reply where several rows make it."""

    file: str
    row: int
    preference: Preference

    def source(self) -> dict[str, Any]:
        return {"file": self.file, "row": self.row, **self.preference.origin}

    def comparisons(self) -> Iterator[tuple[Request, str, str]]:
        """What was request, the better reply and the worse one, of each rejected reply."""
        better = normalise(self.preference.chosen)
        for reply in self.preference.rejected:
            yield self.preference.request, better, normalise(reply)


class _Read:
    """What the rows of all files say, and what was wrong with the others."""

    def __init__(self, most_rejected: int) -> None:
        self._most_rejected = most_rejected
        self._labelled: list[_Labelled] = []
        self._rejected: dict[tuple[str, int], str] = {}

    def add_file(self, path: Path) -> None:
        """Rows with one scored reply each make pairs with the others of the same file and request."""
        groups: dict[Request, list[ScoredReply]] = {}
        for number, row in enumerate(_rows(path)):
            self._rejected[str(path), number] = ""  # keeps the order of the rows
            try:
                read = read_preference(row, self._most_rejected, number)
            except Unusable as unusable:
                self.reject(str(path), number, str(unusable))
                continue
            if isinstance(read, Preference):
                self._labelled.append(_Labelled(str(path), number, read))
            else:
                groups.setdefault(read.request, []).append(read)
        for request, scored in groups.items():
            self._add_group(str(path), request, scored)

    def _add_group(self, file: str, request: Request, scored: Sequence[ScoredReply]) -> None:
        by = {entry.scored_by for entry in scored}
        try:
            if len(scored) == 1:
                raise Unusable("is the only reply to its request")
            if len(by) > 1:
                raise Unusable(f"replies to its request are scored by different columns ({', '.join(sorted(by))})")
            replies = [entry.reply for entry in scored]
            preference = best_and_worst(request, replies, self._most_rejected, by.pop())
        except Unusable as unusable:
            for entry in scored:
                self.reject(file, entry.reply.index, str(unusable))
            return
        chosen, rejected = preference.origin["chosen"]["index"], preference.origin["rejected"]
        used = {chosen, *(reply["index"] for reply in rejected)}
        for entry in scored:
            if entry.reply.index not in used:
                self.reject(file, entry.reply.index, "is neither the best reply to its request nor one of the worst")
        self._labelled.append(_Labelled(file, chosen, preference))

    def consistent(self) -> Iterator[_Labelled]:
        """The preferences that no other row contradicts; the others are rejected."""
        known = {comparison for labelled in self._labelled for comparison in labelled.comparisons()}
        for labelled in self._labelled:
            if any((request, worse, better) in known for request, better, worse in labelled.comparisons()):
                self.reject(labelled.file, labelled.row, "another row labels the same two replies the other way")
            else:
                yield labelled

    def reject(self, file: str, row: int, reason: str) -> None:
        self._rejected[file, row] = reason

    def rejected(self) -> list[dict[str, Any]]:
        """In the order of the rows."""
        return [{"file": file, "row": row, "reason": why} for (file, row), why in self._rejected.items() if why]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _pair(preference: Preference, split: str, env: str) -> Pair:
    request = preference.request
    context = Context(request.goal, request.history, request.message, ())
    shown = json.dumps(context.to_row(), sort_keys=True, ensure_ascii=False)
    task = hashlib.sha256(shown.encode()).hexdigest()[:16]
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


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of one file. Raises `DataError` naming the file, and the line at fault."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        for batch in read_parquet(path).to_batches(max_chunksize=1024):
            yield from batch.to_pylist()
    elif text_suffix(path) in (".jsonl", ".json"):
        yield from read_rows(path)
    else:
        raise DataError(
            f"{path}: is neither .parquet nor .jsonl nor .json (nor one of the last two with .gz). Save it as one."
        )
