"""Cross-cutting: bad input on the command line: one sentence, status 2, and nothing half-written.

Some commands run as their own processes, as a user would run them; the others, whose error is one of ours, in this one.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.errors import ActError
from verl_act.manifest import FILE_NAME, make_manifest, read_manifest, write_manifest
from verl_act.schema import PAIR, TRAJECTORY, Step, read_steps, write_rows


def run(*arguments: object, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m verl_act ARGUMENTS`; `largest_file` (bytes) stands for a disk that is full."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "verl_act", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=600)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Status 2, and as the last line one error that has `words`."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    for word in words:
        assert word in message


def refused_here(words: Sequence[object], *named: str) -> None:
    """The command raises one of our errors, a line with `named`; `main` shows it and ends with status 2."""
    result = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(result.exception, ActError), result.output
    message = str(result.exception)
    assert "\n" not in message
    for word in named:
        assert word in message


def collect(games: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    settings = f"data={games}"
    return run("data", "expert", "--out", out, "--env-settings", settings, *more, "alfworld", "train")


def damaged_games(games: Path, folder: Path, name: str, damage: Callable[[Path], object]) -> Path:
    """A copy of two games; the file `name` of the first is damaged."""
    copy = folder / "games"
    split = copy / "json_2.1.1" / "train"
    split.mkdir(parents=True)
    for number, game in enumerate(sorted(path.parent for path in games.rglob("train/**/game.tw-pddl"))[:2]):
        target = split / game.parent.name / game.name
        target.mkdir(parents=True)
        for file in game.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        if not number:
            damage(target / name)
    return copy


def test_a_corrupt_game_is_named(games: Path, tmp_path: Path) -> None:
    """It is left out, as the stock loader does; the other game is played."""
    copy = damaged_games(games, tmp_path, "game.tw-pddl", lambda path: path.write_bytes(path.read_bytes()[:500]))
    result = collect(copy, tmp_path / "out")
    assert result.returncode == 0 and "game.tw-pddl" in result.stderr and "Traceback" not in result.stderr
    assert len({step.task_id for step in read_steps([tmp_path / "out" / "trajectories.parquet"])}) == 1


def test_missing_games_are_named(tmp_path: Path) -> None:
    refused(collect(tmp_path / "nowhere", tmp_path / "out"), "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["pairs", "alternatives", "audit"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda path, whole: None, ["no such file"], id="missing"),
        pytest.param(lambda path, whole: path.write_bytes(whole[:2000]), [], id="truncated"),
        pytest.param(lambda path, whole: path.write_text("a,b\n1,2\n"), [], id="csv"),
        pytest.param(
            lambda path, whole: pq.write_table(pq.read_table(path.with_name("whole")).drop(["observation"]), path),
            ["observation"],
            id="without a column",
        ),
    ],
)
def test_a_bad_table_is_named(
    command: str, spoil: Callable[[Path, bytes], object], words: list[str], trajectories: Path, tmp_path: Path
) -> None:
    whole = trajectories.read_bytes()
    (tmp_path / "whole").write_bytes(whole)
    table = tmp_path / "table.parquet"
    spoil(table, whole)
    option = "--pairs" if command == "audit" else "--trajectories"
    out = [] if command == "audit" else ["--out", tmp_path / "out"]
    more: list[object] = {
        "pairs": ["--source", "admissible"],
        "alternatives": ["--model", tmp_path],
    }.get(command, [])
    # An audit refuses a file that never was one of pairs before it looks at columns.
    expected = [word for word in words if command != "audit" or word != "observation"]
    refused_here(["data", command, *out, *more, option, table], "table.parquet", *expected)
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer_is_named(trajectories: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    words = ["data", "alternatives", "--out", tmp_path / "out", "--model", model, "--trajectories", trajectories]
    refused_here(words, str(model), "tokenizer")
    assert not (tmp_path / "out").exists()


def test_pairs_that_do_not_survive_are_an_error(games: Path, steps: list[Step], tmp_path: Path) -> None:
    """Only states that allow no judgement, and only judgements that can be made are asked for."""
    steps = [replace(step, tied_actions=()) for step in steps if not step.inferable]
    write_rows(tmp_path / "unknowable.parquet", [step.to_row() for step in steps], TRAJECTORY)
    words = ["data", "pairs", "--out", tmp_path / "out", "--trajectories", tmp_path / "unknowable.parquet"]
    words += ["--env-settings", f"data={games}", "--source", "admissible", "--inferable-only"]
    refused_here(words, "unknowable.parquet", f"states_left_out {len(steps)}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "expert", "--out", "OUT", "--env-settings", "dta=1", "alfworld", "train"],
        ["data", "games", "--out", "OUT", "--counts", "trian=3"],
        ["run", "alfworld/quickstart", "--out", "OUT", "critics.config=[]"],
        ["run", "alfworld/quickstrat", "--out", "OUT"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_key_is_named(arguments: list[str], tmp_path: Path) -> None:
    wrong = {"dta", "trian", "critics", "alfworld/quickstrat"}
    words = [tmp_path / "out" if word == "OUT" else word for word in arguments]
    refused_here(words, next(word for word in wrong if any(word in argument for argument in arguments)))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(games: Path, trajectories: Path, tmp_path: Path) -> None:
    settings = f"data={games}"
    commands = {
        "games": ["data", "games", "--counts", "train=6"],
        "expert": ["data", "expert", "--env-settings", settings, "alfworld", "train"],
        "pairs": [
            *("data", "pairs", "--trajectories", trajectories, "--env-settings", settings),
            *("--source", "admissible"),
        ],
        "tasks": ["data", "tasks", "--splits", "train", "--env-settings", settings, "alfworld"],
    }
    stages = {"games": "make_games", "expert": "collect_expert", "pairs": "build_pairs", "tasks": "make_tasks"}
    for name, (group, command, *options) in commands.items():
        out = tmp_path / name
        out.mkdir()
        earlier = make_manifest(stages[name], settings={"run": "an earlier one"})
        write_manifest(out, earlier)
        refused(run(group, command, "--out", out, *options, largest_file=500), "could not be written")
        assert [path.name for path in out.iterdir()] == [FILE_NAME]
        assert read_manifest(out) == earlier
    # Finished results are kept, so that the same command resumes when there is space.
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".journal")} == set(commands)


def test_a_folder_that_may_not_be_written_is_named(games: Path, tmp_path: Path) -> None:
    """A file stands where the folder should go."""
    (tmp_path / "file").write_text("mine")
    result = collect(games, tmp_path / "file" / "out")
    refused(result, "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_somebodys_files_is_refused_before_the_work(games: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = collect(games, tmp_path)
    refused(result, str(tmp_path), "Choose a new folder")
    assert "task" not in result.stderr, "no game has been played"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_empty_pairs_are_refused_by_the_audit(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.parquet", [], PAIR)
    refused_here(["data", "audit", "--pairs", tmp_path / "pairs.parquet"], "pairs.parquet")
