"""Text files that users give, in every encoding, line end and container that is read, and those that are refused."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from verl_act import text_files
from verl_act.chain.recipe import load_recipe
from verl_act.data_prep.imports.published import read_published
from verl_act.data_prep.pairs.import_preferences import rows_of as preferences
from verl_act.envs.alfworld.game import read_game
from verl_act.envs.alfworld.game_index import list_games
from verl_act.envs.importer import Published
from verl_act.errors import DataError
from verl_act.evaluate.reasoning import read_questions
from verl_act.text_files import (
    list_values,
    object_values,
    read_json,
    read_rows,
    read_text,
    text_suffix,
)

ROWS = [{"task": "grün\u2028eins", "n": 1}, {"task": "zwei", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
SHAPES = {
    "lines": LINES,
    "lines without a last line end": LINES.rstrip("\n"),
    "empty lines between": "\n" + LINES.replace("\n", "\n\n"),
    "a list": json.dumps(ROWS, ensure_ascii=False),
    "a list over several lines": "\n " + json.dumps(ROWS, indent=2),
    "columns": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns over several lines": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=1),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_rows_are_the_same_however_they_are_stored(
    tmp_path: Path, shape: str, mark: bytes, end: bytes, packed: bool
) -> None:
    data = mark + SHAPES[shape].encode().replace(b"\n", end)
    path = tmp_path / "rows.jsonl"  # neither suffix nor container is read from the name
    path.write_bytes(gzip.compress(data) if packed else data)
    assert list(read_rows(path)) == ROWS
    text = SHAPES[shape]
    assert read_text(path) == text


def test_one_object_is_a_row_unless_it_holds_columns(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    message = {"role": "user", "content": "Hi."}
    for row in ({"chosen": [message], "rejected": [message]}, {"a": "text", "b": []}, {"a": [1], "b": [1, 2]}, {}):
        path.write_text(json.dumps(row, indent=1))
        assert list(read_rows(path)) == [row]
        path.write_text(json.dumps(row) + "\n" + json.dumps(row))
        assert list(read_rows(path)) == [row, row]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a": 1}\n\n{"a": \xff}\n', "line 3: byte 0xff"),
        (b'{"a": 1}\n{"a"\n', "line 2: is not JSON"),
        (b'{"a"\n{"a": 1}\n', "line 1: is not JSON"),
        (b"[1,\n2,\n", r"line 3: is not JSON \(Expecting value at column 1\), at entry 2"),
        (b'[{"a": 1},\n{"a": "b', r"line 2: is not JSON \(Unterminated string .* column 7\), at entry 1"),
        (b"[1 2]", "line 1: is not JSON .*',' delimiter at column 4"),
        (b"[1]\n[2]", "line 2: is not JSON .*Extra data at column 1"),
        (b"[1, " + b"[" * 100_000, "line 1: is not JSON .*deep.*, at entry 1"),
        (b'[1,\n"\xe4"]', "line 2: byte 0xe4"),
        (b'{"a": 1}\n{"a": ' + b"[" * 100_000, "line 2: is not JSON .*deep"),
        (b'{"a": 1}\n' + b"9" * 5000, "line 2: is not JSON .*digits"),
        ('{"a": "ä"}'.encode("utf-16"), "UTF-16"),
        (gzip.compress(LINES.encode() * 999, mtime=0)[:-20], "gzip"),
        (gzip.compress(LINES.encode() * 999, mtime=0)[:40] + b"?" * 40, "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"bad\.json\b.*{problem}"):
        list(read_rows(path))


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_a_list_is_the_same_whatever_was_read_at_once(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    values = [1.5e300, -20, {"a": ["grün\u2028", "\ud800", '\\"']}, True, None, [], {}, 10**30, "😀"]
    path = tmp_path / "list.json"
    for ascii_only in (True, False):
        text = json.dumps(values, indent=1, ensure_ascii=ascii_only).replace("\ud800", "x")
        path.write_text(text)
        assert list(list_values(path)) == json.loads(text)
        path.write_text(f'{{"first": {text}, "second": 2}}')
        assert dict(object_values(path)) == {"first": json.loads(text), "second": 2}


@pytest.mark.parametrize(
    "read", [read_rows, lambda path: read_published(path, "actions"), preferences], ids=["rows", "published", "pairs"]
)
def test_a_list_is_read_in_the_same_memory_whatever_its_length(
    read: Callable[[Path], Iterator[object]], tmp_path: Path
) -> None:
    row = {"task_id": "t", "actions": ["look"], "remark": "x" * 10_000}
    peaks = []
    for count in (500, 2000):
        (tmp_path / "rows.json").write_text(json.dumps([row] * count))
        tracemalloc.start()
        assert sum(1 for _ in read(tmp_path / "rows.json")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 5_000_000


def test_a_bad_line_can_be_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a"\n{"a": 1}\n{"a": "\xff"}\n')
    rows = list(read_rows(path, lambda error: str(error).partition(": ")[0]))
    assert rows == [f"{path}, line 1", {"a": 1}, f"{path}, line 3"]


def test_no_file_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path)
    (tmp_path / "empty").write_bytes(b"\xef\xbb\xbf")
    assert list(read_rows(tmp_path / "empty")) == []
    with pytest.raises(DataError, match="line 1: is not JSON"):
        read_json(tmp_path / "empty")


def test_the_suffix_is_that_of_the_text() -> None:
    names = ("a.jsonl", "b.JSON", "c.jsonl.gz", "d.CSV.GZ", "e.gz", "f")
    assert [text_suffix(name) for name in names] == [".jsonl", ".json", ".jsonl", ".csv", "", ""]


def windows(path: Path, text: str) -> Path:
    """A file as Windows' editors save it: with a byte order mark and CRLF."""
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    return path


def test_every_reader_takes_byte_order_marks_and_crlf(games: Path, tmp_path: Path) -> None:
    row = '{"task_id": "t", "actions": ["look"]}\n'
    published = list(read_published(windows(tmp_path / "rows.jsonl", row * 2), "actions"))
    assert len(published) == 2 and all(isinstance(entry, Published) for entry in published)
    for name, text in {
        "questions.csv": 'problem,answer\n"Two,\nand two?",4\n',
        "questions.jsonl": '{"problem": "Two?", "answer": "2"}\n',
        "questions.json": '[{"problem": "Two?",\n "answer": "2"}]',
    }.items():
        assert len(read_questions([windows(tmp_path / name, text)])) == 1
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert len(read_questions([tmp_path / f"{name}.gz"])) == 1
    assert load_recipe(str(windows(tmp_path / "recipe.yaml", "base: alfworld/quickstart\n"))).env == "alfworld"
    assert len(list(list_values(windows(tmp_path / "list.json", '[{"name": "tea"},\n{"name": "pot"}]')))) == 2
    assert dict(object_values(windows(tmp_path / "map.json", '{"B00": ["green"]}'))) == {"B00": ["green"]}
    source = next(games.glob("json_2.1.1/train/*/*/game.tw-pddl")).parent
    folder = tmp_path / source.relative_to(games)
    shutil.copytree(source, folder)
    for name in ("game.tw-pddl", "traj_data.json"):
        windows(folder / name, (folder / name).read_text())
    assert len(list_games("train", tmp_path).tasks) == 1
    assert read_game(folder / "game.tw-pddl").problem == read_game(source / "game.tw-pddl").problem
