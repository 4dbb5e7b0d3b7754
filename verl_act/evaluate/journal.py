"""Answers as they come, a JSON line each: an evaluation that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from verl_act.manifest import Manifest
from verl_act.output_folder import work_path

Record = dict[str, Any]


class Journal:
    """The answers so far of the evaluation that will write `out`, in a folder beside it.

    Answers belong to a `key` (`key_of`): what an evaluation by other settings has left there is not read. `tally`
    is a count that records do not have (of prompts without room); `counted` is what it came to before this process.
    """

    seconds_before = 0.0
    """What earlier processes took, up to their last answer."""

    def __init__(self, out: Path, key: str, tally: Callable[[], int] = lambda: 0) -> None:
        self._folder = work_path(out, "answers")
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
            except (ValueError, KeyError):  # it was being written; asked again, as what comes after it
                break
            whole += len(line)
        self._file.truncate(whole)

    def get(self, what: str, number: int) -> Record | None:
        """The answer to item `number` of the kind `what`, if there is one."""
        return self._known.get((what, number))

    def add(self, what: str, number: int, record: Mapping[str, Any]) -> None:
        """Keep an answer. An episode that failed is not kept: its environment may work the next time."""
        if "error" in record:
            return
        so_far = {"tally": self.counted + self._tally(), "seconds": round(self.seconds, 1)}
        entry = {"what": what, "number": number, **so_far, "record": record}
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """When the evaluation is written: what other settings have left there goes too."""
        shutil.rmtree(self._folder)


def key_of(manifest: Manifest) -> str:
    """What answers belong to. They are kept by their place, and the same files in another order are other places."""
    return hashlib.sha256(f"{manifest.key()} {list(manifest.inputs.items())}".encode()).hexdigest()


@contextmanager
def journal(out: Path, key: str, tally: Callable[[], int] = lambda: 0) -> Iterator[Journal]:
    """A journal that is closed when the block ends, and removed when it ends without an error."""
    kept = Journal(out, key, tally)
    try:
        yield kept
    finally:
        kept.close()
    kept.remove()
