"""Read published trajectories, in the formats of other projects, row by row into actions to replay.

A file is a JSON list of rows, or JSON Lines, plain or gzip. The formats:

- `eto`: the format of ETO (arXiv 2403.02502), of data sets derived from it, such as AgentGym's AgentTraj-L, and of
  AgentInstruct (arXiv 2310.12823): ShareGPT conversations, instructions first, then observations by `human` and
  "Thought: ... Action: ..." by `gpt`. Roles may be `user` and `assistant`, labels `ACTION:`, `Act:` or bold. ALFWorld
  rows name their `game_file`; ScienceWorld ids are `<task number>_<variation>`, or AgentGym's `item_id`; WebShop rows
  are identified by their instruction.
- `early-experience`: the expert data of Early Experience (arXiv 2510.08558), as its published reproduction describes
  it. ALFWorld and WebShop have one row per step, with the prompt as `instruction` and
  `<think>...</think><action>...</action>` as `output` (or both as `messages`); ScienceWorld has whole conversations as
  `messages`. Rows do not name their task; the first prompt identifies it.
- `actions`, for everything else: one of our task ids as `task_id` (or, for WebShop, an `instruction`), the list
  `actions` and, optionally, `thoughts`, one per action.

An environment's importer may add formats of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_act.data_prep.imports.published_turns import decision
from verl_act.envs.importer import Published, RowError, TrajectoryImporter, list_in, texts_in
from verl_act.errors import ConfigError
from verl_act.text_files import read_rows

_STEPS_BEFORE = re.compile(r"Prior to this step,? you have (?:already )?taken (\d{1,6}) step")
_SPEAKERS = {"human": "user", "user": "user"} | dict.fromkeys(("gpt", "assistant", "agent", "model"), "assistant")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that does not fit the format, and why. `looks_like` is the format that its keys match, if any."""

    row: int
    reason: str
    looks_like: str | None = None


def formats_of(importer: type[TrajectoryImporter]) -> tuple[str, ...]:
    """The names of the formats that can be read for an environment with this importer."""
    return (*_READERS, *importer.formats)


def read_published(
    path: Path, format_name: str, importer: type[TrajectoryImporter] = TrajectoryImporter
) -> Iterator[Published | Unreadable]:
    """Yield the trajectories of a file, each with the index (from 0) of its first row.

    Rows that match a format of the environment's `importer` are read with it, whatever `format_name` is. Raises
    `DataError` if the file as a whole cannot be read, `ConfigError` for an unknown format.
    """
    if format_name not in formats_of(importer):
        known = ", ".join(formats_of(importer))
        raise ConfigError(f"{format_name!r} is not a format of published trajectories; use one of {known}.")
    for first, rows in _trajectories(read_rows(path, lambda error: RowError(str(error))), format_name):
        row_format_name = (_own_format(rows[0], importer) if len(rows) == 1 else None) or format_name
        try:
            entries = list(map(_object, rows))
            own = importer.formats.get(row_format_name)
            published = own.read(first, entries[0]) if own else _READERS[row_format_name](first, entries)
            json.dumps(asdict(published), ensure_ascii=False).encode()  # fails on half a surrogate pair
        except (RowError, UnicodeEncodeError) as error:
            likely = _looks_like(rows[0], importer)
            other = likely if likely != row_format_name else None
            hint = f"; its keys are those of --format {other}" if other else ""
            yield Unreadable(first, f"does not fit the format {row_format_name!r}: {error}{hint}", other)
        else:
            yield published


def _own_format(row: Any, importer: type[TrajectoryImporter]) -> str | None:
    """Return the environment's own format that a row matches, if any."""
    own = importer.formats.items() if isinstance(row, dict) else ()
    return next((name for name, row_format in own if row_format.matches(row)), None)


def _object(row: Any) -> dict[str, Any]:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"it is not a JSON object but {type(row).__name__}")
    return row


def _text(row: dict[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and name not in row:
        raise RowError(f"has no {name!r}")
    if not isinstance(value, str):
        raise RowError(f"{name!r} must be a string, not {value!r:.50}")
    return value


def _from_turns(row: int, task: str, turns: Sequence[tuple[str, str]]) -> Published:
    """Build a trajectory from (speaker, text) `turns`. Turns before the first action are instructions and consent,
    turns after the last one are remarks.
    """
    decisions = [(turn, decision(value)) for turn, (speaker, value) in enumerate(turns) if speaker == "assistant"]
    acting = [turn for turn, decided in decisions if decided]
    if not acting:
        raise RowError("no turn holds an 'Action:', 'Act:' or '<action>'")
    first, last = acting[0], acting[-1]
    if lacking := [turn for turn, decided in decisions if first < turn < last and decided is None]:
        raise RowError(f"turn {lacking[0]} holds no action")
    instruction = next((value for speaker, value in reversed(turns[:first]) if speaker == "user"), "")
    actions, thoughts = zip(*(decided for _, decided in decisions if decided), strict=True)
    return Published(row, task, instruction, actions, thoughts)


def _conversation(index: int, rows: list[dict[str, Any]]) -> Published:
    (row,) = rows
    turns = [_object(turn) for turn in list_in(row, "conversations")]
    messages = [_turn(turn) for turn in turns]
    named = [row[name] for name in ("game_file", "id", "item_id") if name in row]
    if named and not isinstance(named[0], str | int):
        raise RowError(f"its task must be a string or a number, not {named[0]!r:.50}")
    return _from_turns(index, str(named[0]) if named else "", messages)


def _turn(turn: dict[str, Any]) -> tuple[str, str]:
    """Return speaker and text; the speaker is empty unless it is `user` or `assistant`."""
    who, what = ("role", "content") if "role" in turn else ("from", "value")
    return _SPEAKERS.get(_text(turn, who), ""), _text(turn, what)


def _actions(index: int, rows: list[dict[str, Any]]) -> Published:
    (row,) = rows
    actions, thoughts = texts_in(row, "actions"), row.get("thoughts") or [None] * len(row["actions"])
    if not isinstance(thoughts, list) or not all(isinstance(thought, str | None) for thought in thoughts):
        raise RowError("'thoughts' must be a list of strings and nulls")
    if len(thoughts) != len(actions):
        raise RowError(f"{len(thoughts)} thoughts for {len(actions)} actions")
    task, instruction = _text(row, "task_id", ""), _text(row, "instruction", "")
    if not task and not instruction:
        raise RowError("it names neither 'task_id' nor 'instruction'")
    return Published(index, task, instruction, tuple(actions), tuple(thoughts))


def _looks_like(row: Any, importer: type[TrajectoryImporter]) -> str | None:
    """Return the format that a row's keys match."""
    if not isinstance(row, dict):
        return None
    known = (
        ("eto", {"conversations"}),
        ("early-experience", {"messages"}),
        ("early-experience", {"instruction", "output"}),
        ("actions", {"actions", "task_id"}),
        ("actions", {"actions", "instruction"}),
    )
    return _own_format(row, importer) or next((format_name for format_name, keys in known if keys <= row.keys()), None)


def _early_experience(index: int, rows: list[dict[str, Any]]) -> Published:
    """A whole conversation, or the rows of the steps of one episode."""
    turns: list[tuple[str, str]] = []
    for step, row in enumerate(rows):
        messages = _messages(row)
        if (before := _steps_before(messages)) != step:
            raise RowError(f"row {index + step} is step {before} of its episode where step {step} should be")
        turns += messages
    return _from_turns(index, "", turns)


def _messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    if "messages" not in row:
        return [("user", _text(row, "instruction")), ("assistant", _text(row, "output"))]
    return [_turn(turn) for turn in map(_object, list_in(row, "messages"))]


def _trajectories(rows: Iterable[Any], format_name: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows of each trajectory, with the index of the first. In the format `early-experience` a row with
    earlier steps continues one.
    """
    first, group = 0, list[Any]()
    for index, row in enumerate(rows):
        if group and not (format_name == "early-experience" and _continues(row)):
            yield first, group
            first, group = index, []
        group.append(row)
    if group:
        yield first, group


def _continues(row: Any) -> bool:
    try:
        return _steps_before(_messages(_object(row))) > 0
    except RowError:
        return False


def _steps_before(messages: Iterable[tuple[str, str]]) -> int:
    prompt = next((text for speaker, text in messages if speaker == "user"), "")
    match = _STEPS_BEFORE.search(prompt)
    return int(match[1]) if match else 0


_READERS = {"eto": _conversation, "early-experience": _early_experience, "actions": _actions}
