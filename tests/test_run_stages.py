"""Which stages are done again, and what is left of a run that was killed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from recipe_stages import write_recipe
from script_stages import Script, Trainer, script, trainer

from verl_act.chain import run_recipe
from verl_act.chain.run_stages import run_stages
from verl_act.chain.stages import Stage
from verl_act.errors import DataError, EngineError
from verl_act.run_folder import RunFolder


def run_data_stages(recipe: str, out: Path, capfd: pytest.CaptureFixture[str], *changes: str) -> dict[str, bool]:
    """Run the chain up to the first stage that needs its (missing) model; stage -> whether it was done again."""
    with pytest.raises(EngineError, match=r"'alternatives' .*status 2"):
        run_recipe(recipe, out, changes)
    shown = capfd.readouterr()
    assert "no model here (config.json is missing)" in shown.err
    done = re.findall(r"\[\d+/\d+\] ([\w ]+): (up to date|done)", shown.out)
    return {name: what == "done" for name, what in done}


def test_only_what_depends_on_a_change_is_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {
        "base": "alfworld/quickstart",
        "model": str(tmp_path / "nowhere"),
        "valid_splits": ["valid_seen"],
        "games": {"counts": {"train": 6, "valid_seen": 2, "valid_unseen": 0}},
        "workers": 1,
    }
    recipe, out = write_recipe(tmp_path, yaml.safe_dump(settings)), tmp_path / "out"
    games, train, valid = "games", "expert train", "expert valid_seen"
    assert run_data_stages(recipe, out, capfd) == {games: True, train: True, valid: True}
    fewer = run_data_stages(recipe, out, capfd, "expert.limits={train: 3}")
    assert fewer == {games: False, train: True, valid: False}
    shutil.rmtree(out / "expert" / "valid_seen")
    lost = run_data_stages(recipe, out, capfd, "expert.limits={train: 3}")
    assert lost == {games: False, train: False, valid: True}


TRAINS = (
    "import pathlib, sys; word = next(word for word in sys.argv if 'default_local_dir' in word);"
    "folder = word.partition('=')[2].strip('\"');"
    "model = pathlib.Path(folder, 'global_step_1', 'huggingface'); model.mkdir(parents=True);"
    "(model / 'weights').write_text(sys.argv[1])"
)
"""Stands where verl would: its model is its first argument."""
MEASURES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def trained(out: Path, name: str, begins: str | None = None, settings: str = "") -> Trainer:
    inputs = [out / begins / "model"] if begins else []
    return trainer(name, TRAINS, out / name, inputs, [name + settings])


def measured(out: Path, name: str, settings: str = "") -> Script:
    output = out / f"figures of {name}"
    return script(f"evaluate {name}", MEASURES, output, [out / name / "model"], [str(output), settings])


def test_a_model_may_be_deleted_once_it_is_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ran(*planned: Stage) -> list[str]:
        run_stages(planned, RunFolder(tmp_path))
        return re.findall(r"\] (.+): done", capfd.readouterr().out)

    def delete(*names: str) -> None:
        for name in names:
            shutil.rmtree(tmp_path / name / "model")

    critic, il = trained(tmp_path, "critic"), trained(tmp_path, "critic+il", "critic")
    after = [measured(tmp_path, "critic"), measured(tmp_path, "critic+il")]
    assert len(ran(critic, il, *after)) == 4
    delete("critic", "critic+il")
    assert ran(critic, il, *after) == []
    assert not (tmp_path / "critic" / "model").exists()
    # What is new, or asked otherwise, and what it begins with.
    rl = trained(tmp_path, "critic+rl", "critic")
    assert ran(critic, il, rl, *after) == ["critic", "critic+rl"]
    delete("critic")
    otherwise = measured(tmp_path, "critic+il", "greedy")
    assert ran(critic, il, rl, after[0], otherwise) == ["critic", "critic+il", "evaluate critic+il"]
    # A model that has come out otherwise is measured anew; those after it come out the same here.
    other = trained(tmp_path, "critic", settings=" with more steps")
    delete("critic", "critic+il", "critic+rl")
    assert ran(other, il, rl, after[0], otherwise) == ["critic", "critic+il", "critic+rl", "evaluate critic"]
    # An output that is gone is made again.
    (tmp_path / "figures of critic").unlink()
    delete("critic", "critic+il")
    assert ran(other, il, rl, after[0], otherwise) == ["critic", "evaluate critic"]


def test_an_input_that_no_stage_made_is_not_taken_for_deleted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("x")
    output = tmp_path / "figures"
    stage = script("evaluate", MEASURES, output, [data], [str(output), ""])
    run_stages([stage], RunFolder(tmp_path))
    data.unlink()
    with pytest.raises(DataError, match=str(data)):
        run_stages([stage], RunFolder(tmp_path))


RUNS_ITS_GAMES = """
import pathlib, sys
from script_stages import script
from verl_act.chain.run_stages import run_stages
from verl_act.run_folder import RunFolder
out = pathlib.Path(sys.argv[1])
run_stages([script("games", sys.argv[2], out / "games", arguments=[str(out)])], RunFolder(out))
"""
MAKES_GAMES = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1])
with (out / "begun").open("a") as file:
    file.write("x")
while not (out / "go").exists():
    time.sleep(0.05)
(out / "games").mkdir()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_runs_a_stage_and_the_other_waits(killed: bool, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUNS_ITS_GAMES, str(tmp_path), MAKES_GAMES]
        with (tmp_path / name).open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def wait_for(*texts: str) -> None:
        logs = [tmp_path / name for name in ("begun", "first", "second")]
        while not all(text in "".join(log.read_text() for log in logs if log.exists()) for text in texts):
            time.sleep(0.05)

    with start("first") as first:
        wait_for("x")
        with start("second") as second:
            wait_for("[1/1] games: waiting, process")
            assert (tmp_path / "begun").read_text() == "x"
            if killed:
                first.kill()
                wait_for("xx")  # the lock died with it
            (tmp_path / "go").touch()
            assert second.wait() == 0
    assert ("done in" if killed else "[1/1] games: up to date") in (tmp_path / "second").read_text()
    assert (tmp_path / "begun").read_text() == ("xx" if killed else "x")


def test_where_files_cannot_be_locked_that_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    run_stages([script("it", "pass", tmp_path)], RunFolder(tmp_path))
    assert "it: done" in capsys.readouterr().out
    assert any("no lock" in record.message and "one process at a time" in record.message for record in caplog.records)


def test_a_stages_work_is_deleted_after_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while deleting, the next run must neither train again nor export what is half deleted."""
    code = (
        "import pathlib, sys; word = next(word for word in sys.argv if 'default_local_dir' in word);"
        "folder = word.partition('=')[2].strip('\"');"
        "model = pathlib.Path(folder, 'global_step_1', 'huggingface'); model.mkdir(parents=True);"
        "(model / 'weights').write_text('whole')"
    )
    stage = trainer("critic", code, tmp_path / "critic")

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("verl_act.chain.train.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages([stage], RunFolder(tmp_path))
    assert (stage.output / "model" / "weights").read_text() == "whole"
    left = {path.name for path in tmp_path.iterdir()}
    run_stages([stage], RunFolder(tmp_path))
    assert "critic.work.deleted" in left and {path.name for path in tmp_path.iterdir()} == {".done", "critic"}
    assert (stage.output / "model" / "weights").read_text() == "whole"


WRITES = """
import pathlib, sys
from verl_act.manifest import make_manifest, write_manifest
from verl_act.output_folder import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    for name in ("a.txt", "inner/b.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    write_manifest(folder, make_manifest("it", settings={}))
"""
"""Stands where a command would that writes a folder."""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: shutil.rmtree(out),
        lambda out: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in out.iterdir()],
        lambda out: (out / "inner" / "b.txt").unlink(),
        lambda out: (out / "a.txt").write_text("a"),
        lambda out: (out / "a.txt").write_text("b.txt"),
        lambda out: (out / "manifest.json").unlink(),
        lambda out: (out / "manifest.json").write_text('{"stage"'),
        lambda out: (out / ".." / ".done" / "it" / "manifest.json").write_text('{"stage"'),
    ],
    ids=["deleted", "emptied", "half emptied", "cut", "changed", "no manifest", "cut manifest", "cut record"],
)
def test_a_stage_whose_output_is_not_as_it_left_it_is_run_again(
    spoil: Callable[[Path], object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it"
    stage = script("it", WRITES, out, arguments=[str(out)])

    def outcome() -> str:
        run_stages([stage], RunFolder(tmp_path))
        return re.sub(r".*\[1/1\] it: (up to date|done).*", r"\1", capfd.readouterr().out, flags=re.DOTALL)

    assert [outcome(), outcome()] == ["done", "up to date"]
    (out / "notes.txt").touch()
    assert outcome() == "up to date", "files that were added are of no concern"
    (out / "notes.txt").unlink()
    spoil(out)
    assert [outcome(), outcome()] == ["done", "up to date"]
    assert (out / "inner" / "b.txt").read_text() == "inner/b.txt" and (out / "a.txt").read_text() == "a.txt"


def test_somebodys_files_in_the_place_of_an_output_are_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "it"
    stage = script("it", WRITES, out, arguments=[str(out)])
    run_stages([stage], RunFolder(tmp_path))
    (out / "manifest.json").unlink()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(EngineError, match="'it' failed"):
        run_stages([stage], RunFolder(tmp_path))
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_damaged_model_is_trained_again_where_it_is_needed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ran(*planned: Stage) -> list[str]:
        run_stages(planned, RunFolder(tmp_path))
        return re.findall(r"\] (.+): done", capfd.readouterr().out)

    critic, measures = trained(tmp_path, "critic"), measured(tmp_path, "critic")
    assert ran(critic, measures) == ["critic", "evaluate critic"]
    (tmp_path / "critic" / "model" / "weights").write_text("cut")
    (tmp_path / "critic" / "log.txt").unlink()
    assert ran(critic, measures) == []
    assert ran(critic, measured(tmp_path, "critic", "other questions")) == ["critic", "evaluate critic"]
