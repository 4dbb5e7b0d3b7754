"""A folder with a manifest is whole, and says whether it is up to date."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from verl_act.errors import DataError
from verl_act.manifest import FILE_NAME, atomic_folder, digest, make_manifest, read_manifest, up_to_date, write_manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("content")
    return path


def test_a_manifest_comes_back(source: Path, tmp_path: Path) -> None:
    manifest = make_manifest("stage", settings={"a": 1, "path": source}, inputs=[source], counts={"rows": 2}, seed=3)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    stored = json.loads((tmp_path / FILE_NAME).read_text())
    assert stored["key"] == manifest.key()
    assert stored["inputs"] == {str(source): digest(source)}
    assert {"python", "verl_act", "pyarrow"} <= set(stored["versions"])


def test_what_decides_the_output_decides_whether_it_is_up_to_date(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    made = make_manifest("stage", settings={"a": 1}, inputs=[source], seed=3)
    assert not up_to_date(folder, made)
    write_manifest(folder, made)
    elsewhere = source.rename(tmp_path / "moved.txt")
    assert up_to_date(folder, make_manifest("stage", settings={"a": 1}, inputs=[elsewhere], seed=3, counts={"rows": 9}))
    for other in (
        replace(made, stage="other"),
        replace(made, seed=4),
        replace(made, schema_version=2),
        make_manifest("stage", settings={"a": 2}, inputs=[elsewhere], seed=3),
    ):
        assert not up_to_date(folder, other)
    elsewhere.write_text("changed")
    assert not up_to_date(folder, make_manifest("stage", settings={"a": 1}, inputs=[elsewhere], seed=3))


def test_the_digest_of_a_folder_is_that_of_its_manifest_or_content(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("one")
    before = digest(folder)
    (folder / "inner" / "file").write_text("two")
    assert digest(folder) != before
    manifest = make_manifest("stage", settings={})
    write_manifest(folder, manifest)
    assert digest(folder) == manifest.key()
    with pytest.raises(DataError, match="nothing"):
        digest(tmp_path / "nothing")


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "file").write_text("first")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "file").write_text("second")
        raise RuntimeError
    assert (target / "file").read_text() == "first"
    with atomic_folder(target) as folder:
        (folder / "other").write_text("third")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "s"}', '{"stage": "s", "settings": {}, "surprise": 1}'])
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(DataError, match=FILE_NAME):
        read_manifest(tmp_path)
