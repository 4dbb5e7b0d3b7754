"""Results as they come, a JSON line each: a command that was killed resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from verl_act.manifest import Manifest
from verl_act.output_folder import work_path

Record = dict[str, Any]
Result = TypeVar("Result")


class Journal:
    """The results so far of the command that will write `out`, in a folder next to it.

    Results belong to a `key` (`key_of`): what a command with other settings has left there is not read. `tally`
    is a count that records do not have (of prompts without room); `counted` is what it came to before this process.
    """

    seconds_before = 0.0
    """What earlier processes took, up to their last record."""

    def __init__(self, out: Path, key: str, tally: Callable[[], int] = lambda: 0) -> None:
        self._folder = work_path(out, "journal")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = (self._folder / f"{key[:16]}.jsonl").open("ab+")
        self._tally = tally
        self._known: dict[tuple[str, int], Record] = {}
        self.counted = 0
        self._started = time.monotonic()
        self._read()

    @property
    def seconds(self) -> float:
        """What all processes took so far, those that were killed too."""
        return self.seconds_before + time.monotonic() - self._started

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                self._known[entry["what"], entry["number"]] = entry["record"]
                self.counted = max(self.counted, entry["tally"])
                self.seconds_before = max(self.seconds_before, entry["seconds"])
            except (ValueError, LookupError, TypeError):  # it was being written; asked again, as what comes after it
                break
            whole += len(line)
        self._file.truncate(whole)

    def get(self, what: str, number: int) -> Record | None:
        """The record of item `number` of the kind `what`, if there is one."""
        return self._known.get((what, number))

    def add(self, what: str, number: int, record: Mapping[str, Any]) -> None:
        """Keep a record. An episode that failed is not kept: its environment may work the next time."""
        if "error" in record:
            return
        so_far = {"tally": self.counted + self._tally(), "seconds": round(self.seconds, 1)}
        entry = {"what": what, "number": number, **so_far, "record": record}
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def clear(self) -> None:
        """Forget all records, of a command whose results are of no use: the next one begins anew."""
        self._known.clear()
        self.remove()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """When the output is written: what other settings have left there goes too."""
        shutil.rmtree(self._folder, ignore_errors=True)


def key_of(manifest: Manifest) -> str:
    """What records belong to. They are kept by their index, and the same files in another order have other indices."""
    decides = f"{manifest.key()} {list(manifest.inputs.items())} {sorted(manifest.versions.items())}"
    return hashlib.sha256(decides.encode()).hexdigest()


def hash_of(jobs: Sequence[Any]) -> str:
    """A name for the results of these jobs, which are known by their `repr`."""
    return hashlib.sha256(repr(jobs).encode(errors="replace")).hexdigest()[:16]


class SavedResults(Generic[Result]):
    """Results of one kind of jobs in a journal, as objects of the type `kind`, such as `list[Step] | str`."""

    def __init__(self, journal: Journal, what: str, kind: Any) -> None:
        self._journal, self._what = journal, what
        self._adapter: TypeAdapter[Result] = TypeAdapter(kind)

    def get(self, number: int) -> Result | None:
        """The result of job `number`, if it is saved."""
        record = self._journal.get(self._what, number)
        # Compressed: every step of a trajectory holds those before it.
        return None if record is None else self._adapter.validate_json(zlib.decompress(b64decode(record["zlib"])))

    def add(self, number: int, result: Result) -> None:
        """Save it. One that an environment has filled with objects of its own is not saved, and computed again."""
        with suppress(PydanticSerializationError, UnicodeEncodeError):
            text = self._adapter.dump_json(result, warnings="error")
            self._journal.add(self._what, number, {"zlib": b64encode(zlib.compress(text)).decode()})


@contextmanager
def journal(out: Path, key: str, tally: Callable[[], int] = lambda: 0) -> Iterator[Journal]:
    """A journal that is closed when the block ends, and removed when it ends without an error."""
    kept = Journal(out, key, tally)
    try:
        yield kept
    finally:
        kept.close()
    kept.remove()
