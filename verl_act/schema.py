"""The records that stages exchange, and the parquet columns that store them.

Column names are defined only here. Every file carries its schema name and version in the parquet metadata;
reading a file of another schema, or a damaged one, raises `DataError` naming the file and the column.

Trajectories are stored one row per step, and each row repeats the history: later stages work on single states, so every
row must be self-contained. Parquet's dictionary encoding makes the repetition nearly free.
Pairs store data, not prompts: the dataset renders them and orders the candidates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, Self

import pyarrow as pa

from verl_act.errors import DataError
from verl_act.names import one_line
from verl_act.parquet_file import is_parquet, read_parquet, read_parquet_schema, write_parquet
from verl_act.progress import phase

logger = logging.getLogger(__name__)


class Turn(NamedTuple):
    """One earlier turn of an episode."""

    observation: str
    """What the agent saw."""
    action: str
    """The action that it took then."""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything an agent may know at one state, and the only input of a prompt.

    `history` is complete, oldest first; the template decides how much of it a prompt shows.
    """

    goal: str
    history: tuple[Turn, ...]
    observation: str
    admissible_actions: tuple[str, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Context:
        """Build from a mapping with the four columns; lists may be lists, tuples or numpy arrays."""
        return cls(
            goal=row["goal"],
            # Rows repeat the same texts; interning keeps one copy of each in memory.
            history=tuple(Turn(intern(turn["observation"]), intern(turn["action"])) for turn in row["history"]),
            observation=row["observation"],
            admissible_actions=tuple(map(intern, row["admissible_actions"])),
        )

    def to_row(self) -> dict[str, Any]:
        """The four columns, as plain Python values."""
        return {
            "goal": self.goal,
            "history": [turn._asdict() for turn in self.history],
            "observation": self.observation,
            "admissible_actions": list(self.admissible_actions),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _ContextRecord:
    """A record with a `Context` and further flat columns."""

    context: Context

    def to_row(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "context"}
        flat = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**flat, **self.context.to_row()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        lists = {field.name for field in fields(cls) if field.default == ()}
        flat = {field.name: row[field.name] for field in fields(cls) if field.name not in {"context", *lists}}
        flat |= {name: () if row.get(name) is None else tuple(row[name]) for name in lists}
        return cls(context=Context.from_row(row), **flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(_ContextRecord):
    """One step of an expert trajectory.

    `plan_length` is the number of actions that the environment's planner still needs at this state, before `action`;
    None without a planner. `inferable` says whether the expert's rules determine `action` from the context alone;
    `tied_actions` are the actions, `action` included, between which it was drawn, if any. `success` is the outcome of
    the whole trajectory; `reward` and `done` belong to this step. `verified` means that a replay in the real
    environment gave the same observations and outcome. `admissible` says whether the environment accepted `action`,
    even if its list words it differently; None if this was not checked.
    """

    env: str
    split: str
    task_id: str
    task_type: str
    trajectory_id: str
    step: int
    action: str
    thought: str | None = None
    reward: float
    done: bool
    success: bool
    source: str
    inferable: bool
    tied_actions: tuple[str, ...] = ()
    plan_length: int | None
    verified: bool
    admissible: bool | None = None

    @property
    def state_id(self) -> str:
        """The id of this state in all later files."""
        return f"{self.trajectory_id}#{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """The initial policy's replies at one expert state, unparsed, so that a better parser needs no new sampling."""

    state_id: str
    replies: tuple[str, ...]
    model: str
    sampling: str
    """The sampling parameters as a JSON object."""

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "replies": list(self.replies)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Alternatives:
        return cls(**{**{field.name: row[field.name] for field in fields(cls)}, "replies": tuple(row["replies"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(_ContextRecord):
    """An expert action and one or more alternatives at the same state (paper section 3, D_critic).

    `margin` is the remaining plan length after the alternative minus that after the expert's action (with several
    alternatives, the smallest). Positive means that the expert's action is better. None without a planner.
    """

    pair_id: str
    env: str
    split: str
    task_id: str
    task_type: str
    state_id: str
    step: int
    expert_action: str
    alternative_action: str
    further_alternatives: tuple[str, ...] = ()
    """Further alternatives in the same question; usually empty."""
    alternative_source: str
    """`policy` (sampled from `model`), `admissible` (a random admissible action) or `preference` (preference data)."""
    alternative_admissible: bool
    further_admissible: tuple[bool, ...] = ()
    """`alternative_admissible` for each of `further_alternatives`; empty if unknown."""
    model: str
    sampling: str
    margin: int | None
    inferable: bool

    @property
    def alternatives(self) -> tuple[str, ...]:
        """All alternatives to the expert's action, at least one."""
        return (self.alternative_action, *self.further_alternatives)

    @property
    def judged_admissible(self) -> dict[str, bool]:
        """Alternative -> whether it is admissible, for those whose file records it."""
        further = dict(zip(self.further_alternatives, self.further_admissible, strict=False))
        return {**further, self.alternative_action: self.alternative_admissible}


def pair_id(state_id: str, expert_action: str, *alternatives: str) -> str:
    """A stable 16-digit id: the same texts give the same id on every machine."""
    digest = hashlib.sha256("\x1f".join((state_id, expert_action, *alternatives)).encode())
    return digest.hexdigest()[:16]


def is_env_name(name: str) -> bool:
    """Whether `name` can stand in the keys of rewards and metrics, such as `act/<env>/choice`."""
    return bool(name) and name.isprintable() and not any(character.isspace() or character == "/" for character in name)


ENV_NAME = "a name without '/', spaces or line breaks, since rewards and metrics call its rows act/<env>/choice"
"""What an environment's name must look like, for error messages."""


_ROWS_AT_ONCE = 256
_ADDED_LATER = {"verl_act.added": "later"}
"""Marks a nullable column that files of the same version may lack."""
_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())


def _columns(name_and_version: str, *columns: pa.Field) -> pa.Schema:
    return pa.schema(columns, metadata={b"verl_act.schema": name_and_version.encode()})


def _required(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name in names]


def _records(*names: str) -> pa.DataType:
    """Lists of records of these texts."""
    return pa.list_(pa.struct(_required(_TEXT, *names)))


_TASK_COLUMNS = _required(_TEXT, "env", "split", "task_id", "task_type")
_CONTEXT_COLUMNS = [
    *_required(_TEXT, "goal"),
    *_required(_records("observation", "action"), "history"),
    *_required(_TEXT, "observation"),
    *_required(_TEXTS, "admissible_actions"),
]
_MESSAGES = _records("role", "content")

TRAJECTORY = _columns(
    "trajectory/1",
    *_TASK_COLUMNS,
    *_required(_TEXT, "trajectory_id"),
    *_required(pa.int32(), "step"),
    *_CONTEXT_COLUMNS,
    *_required(_TEXT, "action"),
    pa.field("thought", _TEXT),
    *_required(pa.float32(), "reward"),
    *_required(pa.bool_(), "done", "success"),
    *_required(_TEXT, "source"),
    *_required(pa.bool_(), "inferable"),
    pa.field("tied_actions", _TEXTS, metadata=_ADDED_LATER),
    pa.field("plan_length", pa.int32()),
    *_required(pa.bool_(), "verified"),
    pa.field("admissible", pa.bool_(), metadata=_ADDED_LATER),
)

SFT = _columns("sft/1", *_required(_TEXT, "state_id", "source"), *_required(_MESSAGES, "messages"))
"""Rows for verl's SFT trainer; `source` is `expert`, `reflection`, `choice` or `rejection`."""

DPO = _columns("dpo/1", *_required(_TEXT, "state_id"), *_required(_MESSAGES, "prompt", "chosen", "rejected"))
"""Rows for TRL's `DPOTrainer`, in its conversational format."""

REFLECTION = _columns(
    "reflection/1",
    *_required(_TEXT, "state_id", "action", "outcome"),
    *_required(_records("action", "outcome"), "alternatives"),
    *_required(_TEXT, "reply", "reflection", "model"),
)
"""A model's thoughts on an expert action and its alternatives, all tried; `reflection` is `reply` without tags."""

ALTERNATIVES = _columns(
    "alternatives/1",
    *_required(_TEXT, "state_id"),
    *_required(_TEXTS, "replies"),
    *_required(_TEXT, "model", "sampling"),
)

PAIR = _columns(
    "pair/1",
    *_required(_TEXT, "pair_id"),
    *_TASK_COLUMNS,
    *_required(_TEXT, "state_id"),
    *_required(pa.int32(), "step"),
    *_CONTEXT_COLUMNS,
    *_required(_TEXT, "expert_action", "alternative_action"),
    pa.field("further_alternatives", _TEXTS, metadata=_ADDED_LATER),
    *_required(_TEXT, "alternative_source"),
    *_required(pa.bool_(), "alternative_admissible"),
    pa.field("further_admissible", pa.list_(pa.bool_()), metadata=_ADDED_LATER),
    *_required(_TEXT, "model", "sampling"),
    pa.field("margin", pa.int32()),
    *_required(pa.bool_(), "inferable"),
)

TASK = _columns("task/1", *_TASK_COLUMNS, *_required(pa.int64(), "seed"))
"""Tasks to play in the live environment: rows of the multi-turn stages and of eval sets."""

WRITTEN_BY = {
    "trajectory": ("data expert", "data import"),
    "task": ("data tasks",),
    "alternatives": ("data alternatives",),
    "pair": ("data pairs", "data preferences"),
    "reflection": ("data reflect",),
    "sft": ("data sft",),
    "dpo": ("data sft",),
}
"""The commands that write a file of each schema."""


def schema_name(schema: pa.Schema) -> str:
    """`name/version` as stored in the file, or `none`."""
    name: bytes = (schema.metadata or {}).get(b"verl_act.schema", b"none")
    return name.decode(errors="replace")


def written_by(schema: pa.Schema) -> str:
    """The commands that write a file of `schema`, as a sentence."""
    commands = " or ".join(f"`verl-act {name}`" for name in WRITTEN_BY[schema_name(schema).split("/")[0]])
    return f"{commands} writes such a file."


def missing_columns(names: Iterable[str], schema: pa.Schema) -> list[str]:
    """The required columns of `schema` that are not among `names`."""
    present = set(names)
    return [column.name for column in schema if not column.metadata and column.name not in present]


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write `rows` to `path` (parquet) atomically: a killed writer leaves no partial file.

    Raises `DataError` if a row does not fit the schema or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        batches = []
        with phase(f"writing {path.name}", len(rows), "row") as bar:
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                batch = list(rows[start : start + _ROWS_AT_ONCE])
                batches.append(pa.RecordBatch.from_pylist(batch, schema=schema))
                bar.update(len(batch))
        table = pa.Table.from_batches(batches, schema=schema).combine_chunks()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(partial, table)
        os.replace(partial, path)
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: {_unwritable(rows)} holds half a surrogate pair, which is not valid text ({error}). Fix or "
            "leave out that row; nothing was written."
        ) from error
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"{path}: the rows do not fit schema {schema_name(schema)}: {error}. Nothing was written."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: could not be written: {error}. Free space or choose another folder; nothing was replaced."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _unwritable(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the first row and column that cannot be encoded."""
    for index, row in enumerate(rows):
        for name, value in row.items():
            try:
                json.dumps(value, ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                return f"row {index}, column {name!r}"
    return "a row"


def read_table(path: str | os.PathLike[str], schema: pa.Schema) -> pa.Table:
    """Read a parquet file that must hold `schema` (further columns are ignored).

    Raises `DataError` naming the file and the first bad column or row.
    """
    path = Path(path)
    name = schema_name(schema)
    if not path.is_file():
        raise DataError(f"{path}: no such file. It should hold {name} rows; {written_by(schema)}")
    if not is_parquet(path):
        raise DataError(f"{path}: is not a parquet file, as {name} rows are stored. {written_by(schema)}")
    stored = read_parquet_schema(path)
    if schema_name(stored) not in (name, "none"):
        raise DataError(
            f"{path}: holds {schema_name(stored)} rows where {name} is needed. "
            "Pass the output of the previous stage, or write the file again with this version."
        )
    if lost := missing_columns(stored.names, schema):
        raise DataError(
            f"{path}: lacks the columns {', '.join(lost)} of {name} (it has {', '.join(stored.names)}). "
            f"{written_by(schema)}"
        )
    table = read_parquet(path, columns=[name for name in schema.names if name in stored.names])
    try:
        for column in schema:
            if column.name not in stored.names:
                table = table.append_column(column, pa.nulls(table.num_rows, column.type))
            # First without rows: refuses types that can never be cast.
            _cast(path, table[column.name].slice(0, 0), column)
        _refuse_nulls(path, table, schema)
        if "env" in schema.names:
            _refuse_env_names(path, table["env"])
        return pa.table([_cast(path, table[column.name], column) for column in schema], schema=schema)
    except (pa.ArrowException, LookupError) as error:
        raise DataError(f"{path}: does not fit {name}: {error}") from error


def _cast(path: Path, values: pa.ChunkedArray, column: pa.Field) -> pa.ChunkedArray:
    try:
        return values.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{path}: column {column.name!r} is {values.type}, which cannot be read as {column.type}: {error}. "
            "Write the column with that type."
        ) from error


def _refuse_nulls(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Refuse nulls and name the row; the cast would refuse them without naming it."""
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            row = table[column.name].is_null().to_pylist().index(True)
            raise DataError(f"{path}: row {row}, column {column.name!r} is null, but every row needs it.")
        # Chunk by chunk: the texts of a column may exceed the size limit of one chunk.
        chunks = table[column.name].chunks if column.type == _TEXTS else []
        if any(chunk.flatten().null_count for chunk in chunks):
            row = next(row for row, texts in enumerate(table[column.name].to_pylist()) if None in (texts or ()))
            raise DataError(f"{path}: row {row}, column {column.name!r} holds a null, but every entry must be a text.")


def _refuse_env_names(path: Path, envs: pa.ChunkedArray) -> None:
    for env in envs.unique().to_pylist():
        if not is_env_name(str(env)):
            row = envs.to_pylist().index(env)
            raise DataError(f"{path}: row {row}, column 'env' is {env!r}; give {ENV_NAME}.")


def read_steps(paths: Iterable[str | os.PathLike[str]]) -> list[Step]:
    """All steps of the trajectory files, in file and row order; repeated steps are left out and logged.

    Raises `DataError` if two different steps have the same `state_id`, which identifies a state.
    """
    steps: dict[str, tuple[Step, str | os.PathLike[str]]] = {}
    again = 0
    for path in paths:
        for row in _rows(path, TRAJECTORY):
            step = Step.from_row(row)
            known, first = steps.setdefault(step.state_id, (step, path))
            again += known is not step
            if known != step:
                raise DataError(
                    f"{path}: state {step.state_id} differs from the one in {first}. The files come from different "
                    "expert runs or environment settings: use one of them, or give one file other `trajectory_id`s."
                )
    if again:
        logger.warning("%s: left out %d repeated steps.", ", ".join(map(str, paths)), again)
    return [step for step, _ in steps.values()]


def steps_to_learn(steps: Iterable[Step]) -> list[Step]:
    """The steps whose action the environment did not refuse.

    A published trajectory may succeed despite refused actions such as `think: ...`; these are no examples to learn.
    """
    return [step for step in steps if step.admissible is not False]


def read_pairs(paths: Iterable[str | os.PathLike[str]]) -> list[Pair]:
    """All pairs of the pair files, in file and row order."""
    return [Pair.from_row(row) for path in paths for row in _rows(path, PAIR)]


def read_alternatives(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Alternatives]:
    """State id -> replies. Raises `DataError` if a state occurs twice."""
    return {state_id: Alternatives.from_row(row) for _, state_id, row in _by_state(paths, ALTERNATIVES)}


def read_reflections(paths: Iterable[str | os.PathLike[str]], known: Container[str]) -> dict[str, str]:
    """State id -> reflection. Raises `DataError` if a state occurs twice, or is not `known`."""
    reflections = {}
    for path, state_id, row in _by_state(paths, REFLECTION):
        if state_id not in known:
            raise DataError(f"{path}: state {state_id} is not in the trajectories; pass those that it was made from.")
        reflections[state_id] = row["reflection"]
    return reflections


def _by_state(
    paths: Iterable[str | os.PathLike[str]], schema: pa.Schema
) -> Iterator[tuple[str | os.PathLike[str], str, dict[str, Any]]]:
    """File, state id and row of each state. Raises `DataError` if one occurs twice."""
    seen: set[str] = set()
    for path in paths:
        for row in _rows(path, schema):
            if row["state_id"] in seen:
                raise DataError(f"{path}: state {row['state_id']} occurs twice. Pass the files of one run.")
            seen.add(row["state_id"])
            yield path, row["state_id"], row


def _rows(path: str | os.PathLike[str], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file in small batches: one ScienceWorld state is thousands of Python objects."""
    table = read_table(path, schema)
    with phase(f"reading {one_line(os.fspath(path))}", table.num_rows, "row") as bar:
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from batch.to_pylist()
            bar.update(batch.num_rows)
