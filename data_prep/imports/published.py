"""Published trajectories: files in the formats that others use, read row by row into actions to replay.

A file is a JSON list of rows, or JSON Lines, plain or gzip. The formats:

- `eto`: ETO's (arXiv 2403.02502) and that of the data sets derived from it, such as AgentGym's AgentTraj-L, and of
  AgentInstruct (arXiv 2310.12823): ShareGPT conversations, instructions first, then observations by `human` and
  "Thought: ... Action: ..." by `gpt`. Roles may be `user` and `assistant`, labels `ACTION:`, `Act:` or bold. ALFWorld
  rows name their `game_file`; ScienceWorld ids are `<task number>_<variation>`, or AgentGym's `item_id`; WebShop rows
  are known by their instruction.
- `early-experience`: the expert data of Early Experience (arXiv 2510.08558), as its published reproduction describes
  them. ALFWorld and WebShop have a row for each step, the prompt as `instruction` and
  `<think>...</think><action>...</action>` as `output` (or both as `messages`); ScienceWorld has whole conversations as
  `messages`. No row names its task: it is known by what the first prompt shows.
- `actions`, for everything else: a `task_id` of ours (or, for WebShop, an `instruction`), the list `actions` and, if
  there are any, `thoughts`, one for each action.
- `webshop-human`: the demonstrations that people gave in WebShop (arXiv 2207.01206). A row is an episode: `actions`
  click products by their asin, `actions_translate` the same ones by their title (`click[item - <title>]`); `states`
  are the pages, of which the first shows the instruction. Such rows are known by their keys, whatever was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_act.data_prep.imports.published_turns import decision
from verl_act.errors import ConfigError
from verl_act.text_files import read_rows

_STEPS_BEFORE = re.compile(r"Prior to this step,? you have (?:already )?taken (\d{1,6}) step")
_INSTRUCTION = re.compile(r"\binstruction:", re.IGNORECASE)  # some readers of these data lower the case of all
_SPEAKERS = {"human": "user", "user": "user"} | dict.fromkeys(("gpt", "assistant", "agent", "model"), "assistant")
_DEMONSTRATION = "webshop-human"
_DEMONSTRATION_KEYS = frozenset({"action_idxs", "actions_translate", "available_actions"})
_KEYS_OF_OTHERS = frozenset({"conversations", "messages", "instruction", "task_id"})


@dataclass(frozen=True, slots=True)
class Published:
    """One row: what identifies its task, and what was done. `instruction` is what the agent was told first. `form` is
    the format that its keys name, None where it is the one that was asked for.
    """

    row: int
    task: str
    instruction: str
    actions: tuple[str, ...]
    thoughts: tuple[str | None, ...]
    form: str | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that does not fit the format, and why. `looks_like` is the format that its keys are those of, if any."""

    row: int
    reason: str
    looks_like: str | None = None


class _Misfit(ValueError):
    """Why a row does not fit."""


def read_published(path: Path, form: str) -> Iterator[Published | Unreadable]:
    """The trajectories of a file, with the number of their (first) row from 0.

    Raises `DataError` where the file as a whole cannot be read, `ConfigError` for an unknown format.
    """
    if form not in _READERS:
        raise ConfigError(f"{form!r} is no format of published trajectories; there are {', '.join(FORMATS)}.")
    rows = list(read_rows(path, lambda error: _Misfit(str(error))))
    for number, group in _trajectories(rows) if form == "early-experience" else ((at, [at]) for at in range(len(rows))):
        found = _DEMONSTRATION if len(group) == 1 and _is_demonstration(rows[number]) else form
        try:
            published = _READERS[found](number, [_object(rows[at]) for at in group])
            json.dumps(asdict(published), ensure_ascii=False).encode()  # half a surrogate pair is refused here
        except (_Misfit, UnicodeEncodeError) as error:
            known = _looks_like(rows[number])
            other = known if known != found else None
            hint = f"; its keys are those of --format {other}" if other else ""
            yield Unreadable(number, f"does not fit the format {found!r}: {error}{hint}", other)
        else:
            yield published


def _object(row: Any) -> dict[str, Any]:
    if isinstance(row, _Misfit):
        raise row
    if not isinstance(row, dict):
        raise _Misfit(f"it is no JSON object but {type(row).__name__}")
    return row


def _text(row: dict[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and name not in row:
        raise _Misfit(f"has no {name!r}")
    if not isinstance(value, str):
        raise _Misfit(f"{name!r} must be a text, not {value!r:.50}")
    return value


def _list(row: dict[str, Any], name: str) -> list[Any]:
    if name not in row:
        raise _Misfit(f"has no {name!r}")
    if not isinstance(row[name], list) or not row[name]:
        raise _Misfit(f"{name!r} must be a list with entries, not {row[name]!r:.50}")
    return row[name]


def _texts(row: dict[str, Any], name: str) -> list[str]:
    texts = _list(row, name)
    if not all(isinstance(text, str) for text in texts):
        raise _Misfit(f"{name!r} must be a list of texts")
    return texts


def _played(row: int, task: str, turns: Sequence[tuple[str, str]]) -> Published:
    """What `user` and `assistant` say in `turns`. Before the first action, that is instructions and consent; after the
    last one, remarks.
    """
    decisions = [(at, decision(value)) for at, (speaker, value) in enumerate(turns) if speaker == "assistant"]
    acting = [at for at, decided in decisions if decided]
    if not acting:
        raise _Misfit("no turn holds an 'Action:', 'Act:' or '<action>'")
    first, last = acting[0], acting[-1]
    if lacking := [at for at, decided in decisions if first < at < last and decided is None]:
        raise _Misfit(f"turn {lacking[0]} holds no action")
    told = next((value for speaker, value in reversed(turns[:first]) if speaker == "user"), "")
    actions, thoughts = zip(*(decided for _, decided in decisions if decided), strict=True)
    return Published(row, task, told, actions, thoughts)


def _conversation(number: int, rows: list[dict[str, Any]]) -> Published:
    (row,) = rows
    turns = [_object(turn) for turn in _list(row, "conversations")]
    said = [_turn(turn) for turn in turns]
    named = [row[name] for name in ("game_file", "id", "item_id") if name in row]
    if named and not isinstance(named[0], str | int):
        raise _Misfit(f"its task must be a text or a number, not {named[0]!r:.50}")
    return _played(number, str(named[0]) if named else "", said)


def _turn(turn: dict[str, Any]) -> tuple[str, str]:
    """Speaker and text; the speaker is empty for any but `user` and `assistant`."""
    who, what = ("role", "content") if "role" in turn else ("from", "value")
    return _SPEAKERS.get(_text(turn, who), ""), _text(turn, what)


def _actions(number: int, rows: list[dict[str, Any]]) -> Published:
    (row,) = rows
    actions, thoughts = _texts(row, "actions"), row.get("thoughts") or [None] * len(row["actions"])
    if not isinstance(thoughts, list) or not all(isinstance(thought, str | None) for thought in thoughts):
        raise _Misfit("'thoughts' must be a list of texts and nulls")
    if len(thoughts) != len(actions):
        raise _Misfit(f"{len(thoughts)} thoughts for {len(actions)} actions")
    task, instruction = _text(row, "task_id", ""), _text(row, "instruction", "")
    if not task and not instruction:
        raise _Misfit("it names neither 'task_id' nor 'instruction'")
    return Published(number, task, instruction, tuple(actions), tuple(thoughts))


def _looks_like(row: Any) -> str | None:
    """The format that a row's keys are those of."""
    if not isinstance(row, dict):
        return None
    if _is_demonstration(row):
        return _DEMONSTRATION
    known = (
        ("eto", {"conversations"}),
        ("early-experience", {"messages"}),
        ("early-experience", {"instruction", "output"}),
        ("actions", {"actions", "task_id"}),
        ("actions", {"actions", "instruction"}),
    )
    return next((form for form, keys in known if keys <= row.keys()), None)


def _is_demonstration(row: Any) -> bool:
    """Whether the keys of a row are those of WebShop's human demonstrations, and of no other format."""
    if not isinstance(row, dict) or "states" not in row or row.keys() & _KEYS_OF_OTHERS:
        return False
    return bool(row.keys() & _DEMONSTRATION_KEYS)


def _demonstration(number: int, rows: list[dict[str, Any]]) -> Published:
    """`actions` before `actions_translate`: an asin says which product is meant, a title may be that of several."""
    (row,) = rows
    name = "actions" if "actions" in row or "actions_translate" not in row else "actions_translate"
    actions = tuple(action.strip() for action in _texts(row, name))
    before, *told = _INSTRUCTION.split(_texts(row, "states")[0], maxsplit=1)
    if not told:
        raise _Misfit(f"its first state shows no 'Instruction:' but {before!r:.50}")
    return Published(number, "", told[0], actions, (None,) * len(actions), _DEMONSTRATION)


def _early_experience(number: int, rows: list[dict[str, Any]]) -> Published:
    """A whole conversation, or the rows of the steps of one episode."""
    turns: list[tuple[str, str]] = []
    for at, row in enumerate(rows):
        said = _said(row)
        if (before := _steps_before(said)) != at:
            raise _Misfit(f"row {number + at} is step {before} of its episode where step {at} should be")
        turns += said
    return _played(number, "", turns)


def _said(row: dict[str, Any]) -> list[tuple[str, str]]:
    if "messages" not in row:
        return [("user", _text(row, "instruction")), ("assistant", _text(row, "output"))]
    return [(_text(turn, "role"), _text(turn, "content")) for turn in map(_object, _list(row, "messages"))]


def _trajectories(rows: Sequence[Any]) -> Iterable[tuple[int, range]]:
    """The first row of each trajectory, and all of its rows. One begins where no step has been taken before."""
    starts = [at for at, row in enumerate(rows) if at == 0 or not _goes_on(row)]
    return [(start, range(start, end)) for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _goes_on(row: Any) -> bool:
    try:
        return _steps_before(_said(_object(row))) > 0
    except _Misfit:
        return False


def _steps_before(said: Iterable[tuple[str, str]]) -> int:
    prompt = next((text for speaker, text in said if speaker == "user"), "")
    found = _STEPS_BEFORE.search(prompt)
    return int(found[1]) if found else 0


_READERS = {
    "eto": _conversation,
    "early-experience": _early_experience,
    "actions": _actions,
    _DEMONSTRATION: _demonstration,
}
FORMATS = tuple(_READERS)
