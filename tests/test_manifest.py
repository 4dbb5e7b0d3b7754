"""A folder with a manifest is whole, and says whether it is up to date."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from verl_act import manifest as manifest_module
from verl_act.envs.registry import REGISTERED, get_env
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import (
    FILE_NAME,
    digest,
    make_manifest,
    read_manifest,
    up_to_date,
    write_manifest,
)
from verl_act.output_folder import atomic_folder, finish_replacement


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


def test_the_versions_of_an_environments_packages_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(get_env("webshop"), name="own", packages=("pytest", "not-installed-here"))
    assert "pytest" not in make_manifest("stage", settings={}).versions
    monkeypatch.setitem(REGISTERED, spec.name, spec)
    versions = make_manifest("stage", settings={}).versions
    assert versions["pytest"] == pytest.__version__ and "not-installed-here" not in versions


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


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package as if it lay in `tmp_path`, where nothing is known of a commit yet."""
    monkeypatch.setattr(manifest_module, "__file__", str(tmp_path / "verl_act" / "manifest.py"))
    manifest_module.versions_of.cache_clear()
    yield tmp_path
    manifest_module.versions_of.cache_clear()


def commit(folder: Path) -> str:
    """Make the folder a git checkout with one commit."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    told = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    manifest_module.versions_of.cache_clear()
    return told.stdout.strip()


def test_the_commit_of_a_checkout_is_told_and_decides_nothing(at: Path) -> None:
    before = make_manifest("stage", settings={})
    assert "verl_act commit" not in before.versions and "verl_act" in before.versions
    head = commit(at)
    after = make_manifest("stage", settings={})
    assert after.versions["verl_act commit"] == head != ""
    assert after.key() == before.key()


def test_a_checkout_above_an_installed_package_is_not_its_own(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(at)
    monkeypatch.setattr(manifest_module, "__file__", str(at / "site-packages" / "verl_act" / "manifest.py"))
    assert "verl_act commit" not in make_manifest("stage", settings={}).versions


@pytest.mark.parametrize("broken", ["no git", "no commit"])
def test_a_manifest_is_made_where_the_commit_cannot_be_told(
    broken: str, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "no git":
        commit(at)
        monkeypatch.setenv("PATH", "")
    else:
        subprocess.run(["git", "-C", str(at), "init", "-q"], check=True)
    assert "verl_act commit" not in make_manifest("stage", settings={}).versions


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
        write_manifest(folder, make_manifest("stage", settings={}))
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "file").write_text("second")
        raise RuntimeError
    assert (target / "file").read_text() == "first"
    with atomic_folder(target) as folder:
        (folder / "other").write_text("third")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_amid_the_replacement_leaves_a_whole_folder(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the first rename, at the second, and before the old folder is removed."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    def rename(source: Path, target: Path) -> None:
        done.append(source)
        if len(done) > renames:
            raise Killed
        source.rename(target)

    folder, done = tmp_path / "out", list[Path]()
    for content in ("old", "new"):
        with monkeypatch.context() as patch, suppress(Killed), atomic_folder(folder, replace_any=True) as partial:
            (partial / "file").write_text(content)
            if content == "new":
                patch.setattr(os, "replace", rename)
                patch.setattr(shutil, "rmtree", killed)
    finish_replacement(folder)
    assert (folder / "file").read_text() == ("new" if renames else "old")
    with atomic_folder(folder, replace_any=True) as partial:
        (partial / "file").write_text("newest")
    assert (folder / "file").read_text() == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "s"}', '{"stage": "s", "settings": {}, "surprise": 1}'])
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(DataError, match=FILE_NAME):
        read_manifest(tmp_path)


def test_what_others_have_written_is_never_replaced(tmp_path: Path) -> None:
    for name, content in (("thesis.txt", "years of work"), (FILE_NAME, '{"version": 3, "files": []}')):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match=str(folder)), atomic_folder(folder):
            raise AssertionError("refused before the work")
        assert (folder / name).read_text() == content
    with atomic_folder(tmp_path / "thesis", replace_any=True) as partial:
        (partial / "new").touch()
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["new"]


def test_the_working_folder_may_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with atomic_folder(".") as folder:
        (folder / "file").touch()
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_foreign_manifest_is_content(tmp_path: Path) -> None:
    """Model folders of other tools have files of that name."""
    digests = set()
    for content in ('{"version": 3}', "[1]", "3", "not JSON"):
        (tmp_path / FILE_NAME).write_text(content)
        digests.add(digest(tmp_path))
    assert len(digests) == 4


def test_the_digest_of_a_folder_sees_what_lies_behind_links(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(folder)
    digests = [digest(folder)]
    for content in ("a", "b"):
        (elsewhere / "file").write_text(content)
        digests.append(digest(folder))
    assert len(set(digests)) == 3
