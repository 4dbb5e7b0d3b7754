"""Records survive a file; damaged and foreign files are refused with the file, the column and the row."""

import random
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import make_pair, make_step

from verl_act.data_prep.pairs.import_preferences import import_preferences
from verl_act.envs.base import EnvSpec
from verl_act.errors import ConfigError, DataError
from verl_act.schema import (
    ALTERNATIVES,
    PAIR,
    TASK,
    TRAJECTORY,
    Alternatives,
    Context,
    pair_id,
    read_pairs,
    read_steps,
    read_table,
    schema_name,
    write_rows,
)
from verl_act.settings.data import PreferencesSettings


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    pairs = [make_pair(0), make_pair(1, margin=None, alternative_action="ｌｏｏｋ ünder 床")]
    steps = [make_step(0, admissible=False), make_step(1, thought="It is on the desk.", plan_length=None)]
    replies = Alternatives(state_id="s#1", replies=("one", ""), model="m", sampling="{}")
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in pairs], PAIR)
    write_rows(tmp_path / "steps.parquet", [step.to_row() for step in steps], TRAJECTORY)
    write_rows(tmp_path / "alternatives.parquet", [replies.to_row()], ALTERNATIVES)
    assert read_pairs([tmp_path / "pairs.parquet"] * 2) == pairs * 2
    assert read_steps([tmp_path / "steps.parquet"]) == steps
    table = read_table(tmp_path / "alternatives.parquet", ALTERNATIVES)
    assert [Alternatives.from_row(row) for row in table.to_pylist()] == [replies]
    assert schema_name(pq.read_schema(tmp_path / "pairs.parquet")) == "pair/1"


def test_lists_of_a_context_may_be_arrays(tmp_path: Path) -> None:
    pair = make_pair()
    write_rows(tmp_path / "pairs.parquet", [pair.to_row()], PAIR)
    row = pq.read_table(tmp_path / "pairs.parquet").to_pandas().iloc[0].to_dict()
    assert Context.from_row(row) == pair.context


def test_pair_ids_are_stable_and_differ() -> None:
    assert pair_id("game#1", "look", "go") == "58f5a4bba0ef4c72"
    assert (
        len({pair_id("game#1", "look", "go"), pair_id("game#1", "go", "look"), pair_id("game#11", "look", "go")}) == 3
    )


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [make_pair(number).to_row() for number in range(20)]
    for name in ("one", "two"):
        write_rows(tmp_path / name, rows, PAIR)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def _without_column(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["margin"]), path)


def _with_null(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[1]["expert_action"] = None
    loose = pa.schema([field.with_nullable(True) for field in PAIR], metadata=PAIR.metadata)
    pq.write_table(pa.Table.from_pylist(rows, schema=loose), path)


def _with_null_in_list(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[2]["admissible_actions"][1] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIR), path)


def _with_other_type(path: Path) -> None:
    rows = [{**row, "step": "two"} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _with_texts_for_lists(path: Path) -> None:
    rows = [{**row, "history": str(row["history"])} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _cut_out(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\0" * 400 + content[600:])


def _other_schema(path: Path) -> None:
    write_rows(path, [make_step().to_row()], TRAJECTORY)


def _newer_version(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"verl_act.schema": b"pair/2"}), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "pairs.parquet"),
        (_without_column, "margin of pair/1"),
        (_with_null, "row 1, column 'expert_action'"),
        (_with_null_in_list, "row 2, column 'admissible_actions'"),
        (_with_texts_for_lists, "column 'history' .*string.*list"),
        (_with_other_type, "column 'step' .*string.*int32"),
        (_cut_short, "pairs.parquet"),
        (_cut_out, "pairs.parquet"),
        (_other_schema, "trajectory/1.*pair/1"),
        (_newer_version, "pair/2.*pair/1"),
    ],
)
def test_a_bad_file_is_named(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_rows(path, [make_pair(number).to_row() for number in range(3)], PAIR)
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs([path])
    assert str(path) in str(caught.value)


def test_text_is_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_text("pair_id,env\n")
    with pytest.raises(DataError, match=r"pairs.parquet.*data pairs"):
        read_pairs([tmp_path / "pairs.parquet"])


def flipped(path: Path, bit: int) -> Path:
    """A copy of the file in which one bit is the other one."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    copy = path.with_name("flipped.parquet")
    copy.write_bytes(content)
    return copy


@pytest.mark.parametrize("schema", [PAIR, TRAJECTORY], ids=["pairs", "trajectories"])
def test_a_bit_that_flipped_is_noticed(schema: pa.Schema, tmp_path: Path) -> None:
    make = make_pair if schema is PAIR else make_step
    path = tmp_path / "rows.parquet"
    write_rows(path, [make(number).to_row() for number in range(40)], schema)
    whole, bits = read_table(path, schema), 8 * path.stat().st_size
    noticed, tries = 0, 400
    for bit in random.Random(0).sample(range(bits), tries):
        copy = flipped(path, bit)
        try:
            assert read_table(copy, schema).equals(whole), f"bit {bit} changed the rows and nothing was said"
        except DataError as error:
            assert str(copy) in str(error)
            noticed += 1
    assert noticed > 0.9 * tries


def test_the_column_and_rows_of_a_damaged_page_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_rows(path, [make_pair(number).to_row() for number in range(40)], PAIR)
    column = pq.read_metadata(path).row_group(0).column(0)
    copy = flipped(path, 8 * (column.dictionary_page_offset + column.total_compressed_size - 1))
    with pytest.raises(DataError, match=r"flipped.parquet: .* in column 'pair_id', rows 0 to 39"):
        read_pairs([copy])


def test_a_damaged_file_without_our_digest_raises_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    table = pa.Table.from_pylist([make_pair(number).to_row() for number in range(40)], schema=PAIR)
    pq.write_table(table, path, compression="none", use_dictionary=False)
    assert read_table(path, PAIR).equals(table), "files of others, and from before, are read"
    for bit in random.Random(1).sample(range(8 * path.stat().st_size), 400):
        with suppress(DataError):
            read_table(flipped(path, bit), PAIR)


def test_bytes_that_are_no_text_are_named_by_column_and_row(tmp_path: Path) -> None:
    path = tmp_path / "tasks.parquet"
    ids = pa.Array.from_buffers(pa.string(), 2, pa.array([b"game-1", b"game-\xff"]).buffers())
    words = pa.array(["x", "x"])
    rows = {"env": words, "split": words, "task_id": ids, "task_type": words, "seed": pa.array([0, 0])}
    pq.write_table(pa.table(rows), path)
    with pytest.raises(DataError, match=r"tasks.parquet: .*row 1, column 'task_id'"):
        read_table(path, TASK)


def test_other_programs_read_and_rewrite_our_files(tmp_path: Path) -> None:
    path, expected = tmp_path / "pairs.parquet", [make_pair(number) for number in range(3)]
    write_rows(path, [pair.to_row() for pair in expected], PAIR)
    assert pd.read_parquet(path)["pair_id"].tolist() == [pair.pair_id for pair in expected]
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["pair_id"] == [pair.pair_id for pair in expected]
    pq.write_table(pq.read_table(path).slice(1), tmp_path / "fewer.parquet")
    assert read_pairs([tmp_path / "fewer.parquet"]) == expected[1:]


def test_a_trajectory_file_from_before_a_column_is_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.parquet"
    write_rows(path, [make_step(0, admissible=True).to_row()], TRAJECTORY)
    pq.write_table(pq.read_table(path).drop_columns(["admissible"]), path)
    assert read_steps([path]) == [make_step(0, admissible=None)]


def test_rows_that_do_not_fit_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "tasks.parquet"
    good = {"env": "alfworld", "split": "train", "task_id": "a", "task_type": "b", "seed": 0}
    write_rows(path, [good], TASK)
    before = path.read_bytes()
    for bad in ({**good, "seed": "zero"}, {**good, "env": None}):
        with pytest.raises(DataError, match="task/1"):
            write_rows(path, [bad], TASK)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_rows(path, [make_pair().to_row()], PAIR)
    before = path.read_bytes()
    many = [make_pair(number).to_row() for number in range(20_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match="written"):
            write_rows(path, many, PAIR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_surrogate_pair_is_refused_by_row_and_column(tmp_path: Path) -> None:
    rows = [make_step(0).to_row(), make_step(1, thought="\ud83d").to_row()]
    with pytest.raises(DataError, match=r"steps.parquet: row 1, column 'thought'"):
        write_rows(tmp_path / "steps.parquet", rows, TRAJECTORY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", ["maze/easy", "", "my maze", "maze\n", "maze\x00"])
def test_an_env_name_that_no_data_source_can_hold_is_refused(env: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_rows(path, [make_pair(0).to_row(), make_pair(1, env=env).to_row()], PAIR)
    with pytest.raises(DataError, match=r"pairs.parquet: row 1, column 'env'"):
        read_pairs([path])
    with pytest.raises(ConfigError, match="EnvSpec: name"):
        EnvSpec(name=env, make=dict, tasks=list, experts={}, splits=())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--env"):
        import_preferences(PreferencesSettings(files=[path], env=env), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("env", ["alfworld", "my-maze_2.0", "Irrgarten-für-Anfänger", "迷宮"])
def test_other_env_names_are_taken(env: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.parquet", [make_pair(env=env).to_row()], PAIR)
    (pair,) = read_pairs([tmp_path / "pairs.parquet"])
    assert pair.env == EnvSpec(name=env, make=dict, tasks=list, experts={}, splits=()).name == env  # type: ignore[arg-type]
