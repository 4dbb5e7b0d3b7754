"""Saves each result as a JSON line when it is ready, so that a killed command resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from typing import IO, Any, Generic, TypeVar

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError
from tqdm import tqdm

from verl_act.concurrency import for_each
from verl_act.manifest import Manifest
from verl_act.output_folder import work_path

Record = dict[str, Any]
Item = TypeVar("Item")
Name = TypeVar("Name", int, str)
Result = TypeVar("Result")


class Journal:
    """The results so far of the command that writes `out`, in a folder next to it.

    Results belong to a `key` (`key_of`): results of other settings are ignored. `tally` returns a count that records do
    not contain (prompts without room for a reply); `counted` is the count of earlier processes.
    """

    seconds_before = 0.0
    """Run time of earlier processes up to their last record."""

    def __init__(self, out: str | PathLike[str], key: str, tally: Callable[[], int] = lambda: 0) -> None:
        self._folder = work_path(out, "journal")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = (self._folder / f"{key[:16]}.jsonl").open("ab+")
        self._tally = tally
        self._known: dict[tuple[str, int | str], Record] = {}
        self.counted = 0
        self._started = time.monotonic()
        self._read()

    @property
    def seconds(self) -> float:
        """Run time of all processes so far, including killed ones."""
        return round(self.seconds_before + time.monotonic() - self._started, 1)

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                self._known[entry["what"], entry["number"]] = entry["record"]
                self.counted = max(self.counted, entry["tally"])
                self.seconds_before = max(self.seconds_before, entry["seconds"])
            except (ValueError, LookupError, TypeError):  # cut short by a kill: it is computed again
                break
            whole += len(line)
        self._file.truncate(whole)

    def get(self, what: str, name: int | str) -> Record | None:
        """The record of the item `name` (or its index) of the kind `what`, or None."""
        return self._known.get((what, name))

    def add(self, what: str, name: int | str, record: Mapping[str, Any]) -> None:
        """Save a record. A failed episode is not saved, since its environment may work the next time."""
        if "error" in record:
            return
        so_far = {"tally": self.counted + self._tally(), "seconds": self.seconds}
        entry = {"what": what, "number": name, **so_far, "record": record}
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def clear(self) -> None:
        """Delete all records, so that the next run starts from scratch."""
        self._known.clear()
        self.remove()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Delete the folder, including results of other settings, once the output is written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def key_of(manifest: Manifest) -> str:
    """The key of a command's records. It includes the order of the inputs, since records are stored by index."""
    decides = f"{manifest.key()} {list(manifest.inputs.items())} {sorted(manifest.versions.items())}"
    return hashlib.sha256(decides.encode()).hexdigest()


def hash_of(jobs: Sequence[Any]) -> str:
    """A hash of jobs, by their `repr`."""
    return hashlib.sha256(repr(jobs).encode(errors="replace")).hexdigest()[:16]


class SavedResults(Generic[Result]):
    """Results of one kind of job in a journal, as objects of the type `kind`, such as `list[Step] | str`."""

    def __init__(self, journal: Journal, what: str, kind: Any) -> None:
        self._journal, self._what = journal, what
        self._adapter: TypeAdapter[Result] = TypeAdapter(kind)

    def get(self, index: int) -> Result | None:
        """The result of job `index`, or None."""
        record = self._journal.get(self._what, index)
        # Compressed, since every step of a trajectory repeats its history.
        return None if record is None else self._adapter.validate_json(zlib.decompress(b64decode(record["zlib"])))

    def add(self, index: int, result: Result) -> None:
        """Save a result. One with objects that JSON cannot hold is skipped and computed again on resume."""
        with suppress(PydanticSerializationError, UnicodeEncodeError):
            text = self._adapter.dump_json(result, warnings="error")
            self._journal.add(self._what, index, {"zlib": b64encode(zlib.compress(text)).decode()})


async def all_records(
    answer: Callable[[Item], Awaitable[Record]],
    items: Mapping[Name, Item],
    what: str,
    journal: Journal | None,
    at_once: int,
    unit: str = "it",
) -> list[Record]:
    """The records of all items, in their order; those in `journal`, under the name `what`, are not computed again.

    At most `at_once` items are in progress. `unit` is what the progress bar counts.
    """
    records = {name: record for name in items if journal and (record := journal.get(what, name)) is not None}
    with tqdm(total=len(items), initial=len(records), desc=what, unit=unit) as progress:

        async def answer_one(name: Name) -> None:
            records[name] = await answer(items[name])
            if journal:
                journal.add(what, name, records[name])
            progress.update()

        await for_each(answer_one, [name for name in items if name not in records], at_once)
    return [records[name] for name in items]


@contextmanager
def journal(out: str | PathLike[str], key: str, tally: Callable[[], int] = lambda: 0) -> Iterator[Journal]:
    """A journal that is closed at the end of the block, and removed if there was no error."""
    kept = Journal(out, key, tally)
    try:
        yield kept
    finally:
        kept.close()
    kept.remove()
