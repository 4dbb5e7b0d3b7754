"""Published trajectories: files in the formats that others use, read row by row into actions to replay.

`eto` is the format of ETO (arXiv 2403.02502) and of the data sets derived from it: a JSON list of ShareGPT
conversations, instructions first, then observations by `human` and "Thought: ... Action: ..." by `gpt`. ALFWorld rows
name their `game_file`; ScienceWorld ids are `<task number>_<variation>`; WebShop rows are known by their instruction.

`actions` is for everything else: JSON lines with a `task_id` of ours (or, for WebShop, an `instruction`), the list
`actions` and, if there are any, `thoughts`, one for each action.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_act.errors import ConfigError, DataError

FORMATS = ("eto", "actions")

_ACTION = re.compile(r"Action:[ \t]*(\S[^\n]*)")
_THOUGHT = re.compile(r"Thought:\s*(.*?)\s*(?=Action:)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Published:
    """One row: what identifies its task, and what was done. `instruction` is what the agent was told first."""

    row: int
    task: str
    instruction: str
    actions: tuple[str, ...]
    thoughts: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that does not fit the format, and why."""

    row: int
    reason: str


def read_published(path: Path, form: str) -> Iterator[Published | Unreadable]:
    """The rows of a file, from 0. Raises `DataError` where the file as a whole cannot be read, `ConfigError` for an
    unknown format.
    """
    if form not in FORMATS:
        raise ConfigError(f"{form!r} is no format of published trajectories; there are {', '.join(FORMATS)}.")
    read = _conversation if form == "eto" else _actions
    for number, row in enumerate(_rows(path, form)):
        try:
            published = read(number, row)
            json.dumps(asdict(published), ensure_ascii=False).encode()  # half a surrogate pair is refused here
        except (KeyError, TypeError, ValueError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            yield Unreadable(number, f"does not fit the format {form!r}: {reason}")
        else:
            yield published


def _rows(path: Path, form: str) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if form == "actions" or path.suffix == ".jsonl":
            # Not `splitlines`: JSON may hold U+2028 and its like within a text.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        rows = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {form!r}: {error}. Download or write it again.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds no list of rows but {type(rows).__name__}. Is it in another format?")
    return rows


def _conversation(number: int, row: Mapping[str, Any]) -> Published:
    turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
    said = [(at, value) for at, (speaker, value) in enumerate(turns) if speaker == "gpt"]
    # What comes before the first action is instructions and the model's consent.
    first = next((at for at, value in said if _ACTION.search(value)), None)
    if first is None:
        raise ValueError("no turn holds an 'Action:'")
    actions, thoughts = [], []
    for at, value in said:
        if at < first:
            continue
        found = _ACTION.search(value)
        if found is None:
            raise ValueError(f"turn {at} holds no 'Action:'")
        thought = _THOUGHT.search(value)
        actions.append(found[1].strip())
        thoughts.append(thought[1] if thought else None)
    told = next((value for speaker, value in reversed(turns[:first]) if speaker == "human"), "")
    task = row.get("game_file", row.get("id", ""))
    return Published(number, str(task), told, tuple(actions), tuple(thoughts))


def _actions(number: int, row: Mapping[str, Any]) -> Published:
    actions = row["actions"]
    if not isinstance(actions, list) or not actions or not all(isinstance(action, str) for action in actions):
        raise ValueError("'actions' must be a list of texts, at least one")
    thoughts = row.get("thoughts") or [None] * len(actions)
    if len(thoughts) != len(actions):
        raise ValueError(f"{len(thoughts)} thoughts for {len(actions)} actions")
    task, instruction = row.get("task_id", ""), row.get("instruction", "")
    if not task and not instruction:
        raise ValueError("it names neither 'task_id' nor 'instruction'")
    return Published(number, task, instruction, tuple(actions), tuple(thoughts))
