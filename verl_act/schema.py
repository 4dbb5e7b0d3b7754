"""The records that travel between the stages, and the parquet columns that hold them.

Column names live here and nowhere else. Every file carries its schema name and version in the parquet metadata;
reading a file of another schema, or a damaged one, raises `DataError` naming the file and the column.

Trajectories are stored one row per step, with the history repeated in each row: every later stage works on single
states, so a row must be complete without its neighbours, and parquet's dictionary encoding makes the repetition nearly
free.
Pairs store data, never prompts: rendering and candidate order happen in the dataset.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, Self

import pyarrow as pa

from verl_act.errors import DataError
from verl_act.parquet_file import is_parquet, read_parquet, read_parquet_schema, write_parquet

logger = logging.getLogger(__name__)


class Turn(NamedTuple):
    """One earlier exchange: what the agent saw, and what it then did."""

    observation: str
    action: str


@dataclass(frozen=True, slots=True)
class Context:
    """All that an agent may know at one state; the only thing a prompt is rendered from.

    `history` is complete, oldest first; how much of it a prompt shows is the template's business.
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
            # Files repeat the same texts in row after row: in memory each stands once.
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
    """A record that is a `Context` and further flat columns."""

    context: Context

    def to_row(self) -> dict[str, Any]:
        flat = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "context"}
        return {**flat, **self.context.to_row()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        flat = {field.name: row[field.name] for field in fields(cls) if field.name != "context"}
        return cls(context=Context.from_row(row), **flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(_ContextRecord):
    """One step of an expert trajectory.

    `plan_length` is the number of actions that the environment's planner still needs at this state, before `action`;
    None where the environment cannot tell. `inferable` says whether `action` follows from the context alone.
    `success` is the outcome of the whole trajectory; `reward` and `done` are this step's.
    `verified` means that a replay on the real environment gave the same observations and outcome. `admissible` says
    whether the environment took `action`, which its list need not hold word for word; None where nobody asked it, as in
    files from before this column.
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
    plan_length: int | None
    verified: bool
    admissible: bool | None = None

    @property
    def state_id(self) -> str:
        """Names this state in every later file."""
        return f"{self.trajectory_id}#{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What the initial policy replied at one expert state, unparsed, so that a better parser needs no new sampling."""

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
    """An expert action and an alternative at the same state (paper section 3, D_critic), or several alternatives.

    `margin` is the remaining plan length after the alternative minus that after the expert's action: positive means
    that the expert's is better; the smallest, where there are several. None where the environment has no planner.
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
    """Shown in the same question. Files from before this column have none."""
    alternative_source: str
    """`policy` (sampled from `model`), `admissible` (a random admissible action) or `preference` (preference data)."""
    alternative_admissible: bool
    further_admissible: tuple[bool, ...] = ()
    """The same of each of `further_alternatives`; empty in files from before this column."""
    model: str
    sampling: str
    margin: int | None
    inferable: bool

    @property
    def alternatives(self) -> tuple[str, ...]:
        """All that stand against the expert's action: one in a pair, more in a choice of several."""
        return (self.alternative_action, *self.further_alternatives)

    @property
    def judged_admissible(self) -> dict[str, bool]:
        """Alternative -> whether its state takes it, for those of which the file says so."""
        further = dict(zip(self.further_alternatives, self.further_admissible, strict=False))
        return {**further, self.alternative_action: self.alternative_admissible}

    def to_row(self) -> dict[str, Any]:
        row = super(Pair, self).to_row()  # the class with slots is not the one that `super()` would look in
        lists = {name: list(getattr(self, name)) for name in _FURTHER}
        return {**row, **lists}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        lists = {name: tuple(() if row.get(name) is None else row[name]) for name in _FURTHER}
        return super(Pair, cls).from_row({**row, **lists})


_FURTHER = ("further_alternatives", "further_admissible")


def pair_id(state_id: str, expert_action: str, *alternatives: str) -> str:
    """A stable 16-digit id: the same texts give the same id on every machine."""
    digest = hashlib.sha256("\x1f".join((state_id, expert_action, *alternatives)).encode())
    return digest.hexdigest()[:16]


_CONTEXT_COLUMNS = [
    pa.field("goal", pa.string(), nullable=False),
    pa.field(
        "history",
        pa.list_(
            pa.struct(
                [pa.field("observation", pa.string(), nullable=False), pa.field("action", pa.string(), nullable=False)]
            )
        ),
        nullable=False,
    ),
    pa.field("observation", pa.string(), nullable=False),
    pa.field("admissible_actions", pa.list_(pa.string()), nullable=False),
]


def is_env_name(name: str) -> bool:
    """Whether rewards and metrics can name an environment so: `name` is a part of `act/<env>/choice`."""
    return bool(name) and name.isprintable() and not any(character.isspace() or character == "/" for character in name)


ENV_NAME = "a name without '/', spaces or line breaks, since rewards and metrics call its rows act/<env>/choice"
"""What an environment's name must be, for the messages that refuse one."""


def _columns(name: str, version: int, *columns: pa.Field) -> pa.Schema:
    return pa.schema(columns, metadata={b"verl_act.schema": f"{name}/{version}".encode()})


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_ROWS_AT_ONCE = 256
_ADDED_LATER = {"verl_act.added": "later"}
"""Marks a nullable column that files of the same version may lack."""

_TASK_COLUMNS = [_required(name, pa.string()) for name in ("env", "split", "task_id", "task_type")]

TRAJECTORY = _columns(
    "trajectory",
    1,
    *_TASK_COLUMNS,
    _required("trajectory_id", pa.string()),
    _required("step", pa.int32()),
    *_CONTEXT_COLUMNS,
    _required("action", pa.string()),
    pa.field("thought", pa.string()),
    _required("reward", pa.float32()),
    _required("done", pa.bool_()),
    _required("success", pa.bool_()),
    _required("source", pa.string()),
    _required("inferable", pa.bool_()),
    pa.field("plan_length", pa.int32()),
    _required("verified", pa.bool_()),
    pa.field("admissible", pa.bool_(), metadata=_ADDED_LATER),
)

SFT = _columns(
    "sft",
    1,
    _required("state_id", pa.string()),
    _required("source", pa.string()),
    pa.field(
        "messages",
        pa.list_(
            pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
        ),
        nullable=False,
    ),
)
"""Rows for verl's SFT trainer; `source` is `expert` or `reflection`."""

REFLECTION = _columns(
    "reflection",
    1,
    _required("state_id", pa.string()),
    _required("action", pa.string()),
    _required("outcome", pa.string()),
    _required(
        "alternatives",
        pa.list_(
            pa.struct(
                [pa.field("action", pa.string(), nullable=False), pa.field("outcome", pa.string(), nullable=False)]
            )
        ),
    ),
    _required("reply", pa.string()),
    _required("reflection", pa.string()),
    _required("model", pa.string()),
)
"""What a model wrote about an expert action and the alternatives, all tried; `reflection` is `reply` without tags."""

ALTERNATIVES = _columns(
    "alternatives",
    1,
    _required("state_id", pa.string()),
    _required("replies", pa.list_(pa.string())),
    _required("model", pa.string()),
    _required("sampling", pa.string()),
)

PAIR = _columns(
    "pair",
    1,
    _required("pair_id", pa.string()),
    *_TASK_COLUMNS,
    _required("state_id", pa.string()),
    _required("step", pa.int32()),
    *_CONTEXT_COLUMNS,
    _required("expert_action", pa.string()),
    _required("alternative_action", pa.string()),
    pa.field("further_alternatives", pa.list_(pa.string()), metadata=_ADDED_LATER),
    _required("alternative_source", pa.string()),
    _required("alternative_admissible", pa.bool_()),
    pa.field("further_admissible", pa.list_(pa.bool_()), metadata=_ADDED_LATER),
    _required("model", pa.string()),
    _required("sampling", pa.string()),
    pa.field("margin", pa.int32()),
    _required("inferable", pa.bool_()),
)

TASK = _columns(
    "task",
    1,
    *_TASK_COLUMNS,
    _required("seed", pa.int64()),
)
"""Tasks to play in the live environment: the rows of the multi-turn stages and of the evaluation panels."""


_WRITTEN_BY = {
    "trajectory": "collect-expert or import-trajectories",
    "task": "make-tasks",
    "alternatives": "sample-alternatives",
    "pair": "build-pairs or import-preferences",
    "reflection": "reflect",
    "sft": "make-sft",
}
"""The commands that write a file of each schema."""


def schema_name(schema: pa.Schema) -> str:
    """`name/version` as stored in the file, or `none`."""
    return (schema.metadata or {}).get(b"verl_act.schema", b"none").decode(errors="replace")


def written_by(schema: pa.Schema) -> str:
    """The commands that write a file of `schema`, as a sentence."""
    return f"`python -m verl_act {_WRITTEN_BY[schema_name(schema).split('/')[0]]}` writes such a file."


def missing_columns(names: Iterable[str], schema: pa.Schema) -> list[str]:
    """The columns of `schema` that a file with the columns `names` lacks and must have."""
    there = set(names)
    return [column.name for column in schema if not column.metadata and column.name not in there]


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write `rows` to `path` (parquet), aside first and then renamed: a killed writer leaves no half file.

    Raises `DataError` where a row does not fit the schema, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        table = pa.Table.from_pylist(list(rows), schema=schema)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(partial, table)
        os.replace(partial, path)
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: {_unwritable(rows)} holds half a surrogate pair, which is no text ({error}). Mend or leave out "
            "that row; nothing was written."
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
    """The first row and column that cannot be encoded."""
    for number, row in enumerate(rows):
        for name, value in row.items():
            try:
                json.dumps(value, ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                return f"row {number}, column {name!r}"
    return "a row"


def read_table(path: str | os.PathLike[str], schema: pa.Schema) -> pa.Table:
    """Read a parquet file that must hold `schema` (further columns are ignored).

    Raises `DataError` naming the file, and the first column or row at fault.
    """
    path = Path(path)
    name = schema_name(schema)
    if not path.is_file():
        raise DataError(f"{path}: no such file. It should hold {name} rows; {written_by(schema)}")
    if not is_parquet(path):
        raise DataError(f"{path}: is not a parquet file, as {name} rows are stored. {written_by(schema)}")
    found = read_parquet_schema(path)
    if schema_name(found) not in (name, "none"):
        raise DataError(
            f"{path}: holds {schema_name(found)} rows where {name} is needed. "
            "Pass the file that the stage before this one wrote, or write it again with this version."
        )
    if lost := missing_columns(found.names, schema):
        raise DataError(
            f"{path}: lacks the columns {', '.join(lost)} of {name} (it has {', '.join(found.names)}). "
            f"{written_by(schema)}"
        )
    missing = [column for column in schema if column.name not in found.names]
    table = read_parquet(path, columns=[name for name in schema.names if name in found.names])
    try:
        for column in missing:
            nulls = pa.nulls(table.num_rows, column.type)
            table = table.add_column(schema.get_field_index(column.name), column, nulls)
        for column in schema:
            # Without rows first: types that can never become the column's.
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
    """Before the cast, which would refuse them too, but without naming the row."""
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            row = table[column.name].is_null().to_pylist().index(True)
            raise DataError(f"{path}: row {row}, column {column.name!r} is null, but every row needs it.")
        # Chunk by chunk: all the texts of a column may be too many bytes for one.
        chunks = table[column.name].chunks if column.type == pa.list_(pa.string()) else []
        if any(chunk.flatten().null_count for chunk in chunks):
            row = next(row for row, texts in enumerate(table[column.name].to_pylist()) if None in (texts or ()))
            raise DataError(f"{path}: row {row}, column {column.name!r} holds a null, but every entry must be a text.")


def _refuse_env_names(path: Path, envs: pa.ChunkedArray) -> None:
    for env in envs.unique().to_pylist():
        if not is_env_name(str(env)):
            row = envs.to_pylist().index(env)
            raise DataError(f"{path}: row {row}, column 'env' is {env!r}; give {ENV_NAME}.")


def read_steps(paths: Iterable[str | os.PathLike[str]]) -> list[Step]:
    """All steps of the trajectory files, in file and row order; one that comes again is left out and logged.

    Raises `DataError` where two differ that have one `state_id`: stages know a state by it.
    """
    found: dict[str, tuple[Step, str | os.PathLike[str]]] = {}
    again = 0
    for path in paths:
        for row in _rows(path, TRAJECTORY):
            step = Step.from_row(row)
            known, first = found.setdefault(step.state_id, (step, path))
            again += known is not step
            if known != step:
                raise DataError(
                    f"{path}: state {step.state_id} is another one in {first}. They are of different experts' runs or "
                    "environment settings: use one of them, or give the trajectories of one another `trajectory_id`."
                )
    if again:
        logger.warning("%s: left out %d steps that come twice.", ", ".join(map(str, paths)), again)
    return [step for step, _ in found.values()]


def steps_to_learn(steps: Iterable[Step]) -> list[Step]:
    """The steps whose action the environment did not refuse. A published trajectory may win in spite of refused ones,
    such as `think: ...`: they are not the expert's answer to their state.
    """
    return [step for step in steps if step.admissible is not False]


def read_pairs(paths: Iterable[str | os.PathLike[str]]) -> list[Pair]:
    """All pairs of the pair files, in file and row order."""
    return [Pair.from_row(row) for path in paths for row in _rows(path, PAIR)]


def _rows(path: str | os.PathLike[str], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """The rows of a file, few at a time: a state of ScienceWorld is thousands of Python objects."""
    for batch in read_table(path, schema).to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from batch.to_pylist()
