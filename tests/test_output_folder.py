"""A command reserves the folder that it writes, and puts it in place as a whole, wherever that is."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from verl_act import output_folder
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import FILE_NAME, make_manifest, read_manifest, write_manifest
from verl_act.output_folder import atomic_folder, finish_replacement, reserved, reserved_file, work_path, writes_folder

NOBODY = 65534
SMALL = ("-t", "tmpfs", "-o", "size=1m", "none")
HOLD = """
import sys, time
from verl_act.output_folder import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "file").write_text("first")
    print("reserved", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(out: Path) -> Iterator[subprocess.Popen]:
    """It has reserved `out`, and writes it until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "reserved\n"
        yield process
        process.kill()


def write(out: Path, content: str, stage: str = "stage") -> None:
    with reserved(out, stage), atomic_folder(out) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(content)
        write_manifest(folder, make_manifest(stage, settings={"content": content}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with another_process(out) as process:
        with pytest.raises(ConfigError, match=rf"{out}: process {process.pid}\b"):
            write(out, "second")
        process.communicate()  # closes its standard input: it ends
    assert names(tmp_path) == ["out"] and names(out) == ["file"]


def test_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with another_process(out) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ".out.lock" in names(tmp_path)
    write(out, "second")
    assert names(tmp_path) == ["out"]


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    program = "import sys; from verl_act.output_folder import reserved_file\nwith reserved_file('{}'): {}"
    page = tmp_path / "page.html"
    assert subprocess.run([sys.executable, "-c", program.format(page, "pass")], check=True).returncode == 0
    with reserved_file(page):
        refused = subprocess.run(
            [sys.executable, "-c", program.format(page, "pass")], check=False, capture_output=True, text=True
        )
    assert "ConfigError" in refused.stderr and str(page) in refused.stderr and str(os.getpid()) in refused.stderr


def test_the_output_of_another_stage_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "critic"
    write(out, "a model", "critic")

    @writes_folder("evaluate", "an older name of it")
    def evaluate(name: str, out: Path) -> None:
        raise AssertionError("refused before the work")

    with pytest.raises(ConfigError, match=f"{out}.*'critic'.*'evaluate'"):
        evaluate("name", tmp_path / "." / "critic")
    assert (out / "inner" / "file").read_text() == "a model"
    write(out, "an evaluation", "critic")
    (out / FILE_NAME).unlink()
    write_manifest(out, make_manifest("an older name of it", settings={}))
    with pytest.raises(AssertionError, match="refused before"):
        evaluate("name", out)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ConfigError, match=str(tmp_path / "file")):
            write(out, "")


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    write(tmp_path / "out", "first")
    assert (tmp_path / "out" / "inner" / "file").read_text() == "first"
    assert [record.message.count("no lock") for record in caplog.records] == [1]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    if subprocess.run(["mount", *options, folder], check=False, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["tmpfs", "bind"])
def mount_point(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder as a container's volume is."""
    source, folder = tmp_path / "source", tmp_path / "volume"
    source.mkdir()
    folder.mkdir()
    options = {"tmpfs": SMALL, "bind": ["--bind", str(source)]}
    with mounted(folder, *options[request.param]):
        yield folder


def test_a_mount_point_is_filled(mount_point: Path) -> None:
    (mount_point / "lost+found").mkdir()
    write(mount_point, "first")
    assert names(mount_point) == ["inner", "lost+found", FILE_NAME]
    with pytest.raises(RuntimeError), atomic_folder(mount_point) as partial:
        (partial / "file").touch()
        raise RuntimeError
    assert (mount_point / "inner" / "file").read_text() == "first"
    with atomic_folder(mount_point) as partial:
        (partial / "other").touch()
        write_manifest(partial, make_manifest("stage", settings={}))
    assert names(mount_point) == ["lost+found", FILE_NAME, "other"]
    assert set(names(mount_point.parent)) <= {"source", "volume"}
    assert work_path(mount_point, "shards").is_relative_to(mount_point)
    with pytest.raises(ConfigError, match="'stage'"):
        write(mount_point, "second", "another stage")
    with another_process(mount_point), pytest.raises(ConfigError, match=str(mount_point)):
        write(mount_point, "third")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """Also where a library has its own error for it, as `shutil.copytree` and safetensors have."""
    model, disk = tmp_path / "model", tmp_path / "disk"
    model.mkdir()
    disk.mkdir()
    (model / "weights").write_bytes(bytes(2**21))
    fills = [
        lambda partial: shutil.copytree(model, partial / "model"),
        lambda partial: (partial / "file").write_bytes(bytes(2**21)),
        lambda partial: save_file({"weights": np.zeros(2**21)}, partial / "model.safetensors"),
    ]
    with mounted(disk, *SMALL):
        for out in (disk, disk / "out"):
            write(out, "first")
            for fill in fills:
                with pytest.raises(DataError, match=str(out)), atomic_folder(out) as partial:
                    fill(partial)
            assert (out / "inner" / "file").read_text() == "first"
        assert names(disk) == ["inner", FILE_NAME, "out"] and names(out) == ["inner", FILE_NAME]


def test_a_folder_in_a_parent_that_is_read_only_is_filled() -> None:
    parent = Path(tempfile.mkdtemp())
    out = parent / "out"
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    parent.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(NOBODY)
        write(out, "first")
        write(out, "second")
        with pytest.raises(PermissionError, match=str(parent)):
            write(parent / "other", "third")
    finally:
        if is_root:
            os.seteuid(0)
    assert names(parent) == ["out"] and names(out) == ["inner", FILE_NAME]
    assert (out / "inner" / "file").read_text() == "second"
    parent.chmod(0o777)
    shutil.rmtree(parent)


@pytest.mark.parametrize("answer", [errno.EBUSY, errno.EXDEV, errno.EPERM])
def test_a_folder_that_turns_out_not_to_be_renamed_is_filled(
    answer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of a container's image, for one."""
    out = tmp_path / "out"
    write(out, "first")

    def rename(source: Path, target: Path) -> None:
        if Path(source) == out:
            raise OSError(answer, os.strerror(answer), str(source))
        source.rename(target)

    monkeypatch.setattr(os, "replace", rename)
    write(out, "second")
    assert (out / "inner" / "file").read_text() == "second"
    assert names(tmp_path) == ["out"] and names(out) == ["inner", FILE_NAME]


@pytest.mark.parametrize("changes", range(7))
def test_a_kill_while_a_folder_is_filled_leaves_none_that_seems_whole(
    changes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each change; the next command finishes what was begun."""

    class Killed(BaseException):
        pass

    out, done = tmp_path / "out", list[str]()
    write(out, "first")
    monkeypatch.setattr(output_folder, "cannot_be_renamed", lambda folder: folder == out and out.is_dir())

    def counted(change):  # type: ignore[no-untyped-def]
        def act(*arguments, **options):  # type: ignore[no-untyped-def]
            if "partial" not in str(arguments[0]) or "partial" not in done:
                if len(done) >= changes:
                    raise Killed
                done.append("partial" if "partial" in str(arguments[0]) else "other")
            return change(*arguments, **options)

        return act

    with monkeypatch.context() as patch, suppress(Killed), reserved(out, "stage"), atomic_folder(out) as partial:
        (partial / "new").write_text("second")
        write_manifest(partial, make_manifest("stage", settings={}))
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(Path, "unlink", counted(Path.unlink))
    whole = (["inner", FILE_NAME], [FILE_NAME, "new"])
    if read_manifest(out) is not None:
        assert [name for name in names(out) if not name.startswith(".")] in whole
    finish_replacement(out)
    assert [name for name in names(out) if not name.startswith(".")] == whole[bool(changes)]
    write(out, "third")
    assert names(out) == ["inner", FILE_NAME] and names(tmp_path) == ["out"]


def test_of_two_commands_with_one_out_one_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "verl_act", "data", "games", "--out", tmp_path / "games", "--size", "small"]
    seeds = (3, 4)
    processes = [
        subprocess.Popen([*command, "--counts", "train=12", "--seed", str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in seeds
    ]
    ends = {
        seed: (process.communicate()[1], process.returncode) for seed, process in zip(seeds, processes, strict=True)
    }
    (winner,) = [seed for seed, (_, status) in ends.items() if status == 0]
    (loser,) = [seed for seed, (_, status) in ends.items() if status == 2]
    assert str(tmp_path / "games") in ends[loser][0] and "Traceback" not in ends[loser][0]
    manifest = read_manifest(tmp_path / "games")
    assert manifest is not None and manifest.seed == winner and manifest.counts["train"]["games"] == 12
    assert len(list((tmp_path / "games").rglob("game.tw-pddl"))) == 12
    assert names(tmp_path) == ["games"]
