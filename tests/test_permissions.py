"""Cross-cutting: a user who may not read or write something, other locales: a sentence, never a traceback."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Root may read and write everything, unless it has lost these capabilities.
UNPRIVILEGED = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.getuid() == 0 else []


def run(*arguments: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [*UNPRIVILEGED, sys.executable, "-m", "verl_act", *map(str, arguments)]
    own = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **environment}
    return subprocess.run(command, capture_output=True, check=False, env=own, cwd=folder, timeout=600)


def refused(result: subprocess.CompletedProcess[bytes], *words: str) -> None:
    message = result.stderr.decode(errors="replace")
    assert result.returncode == 2, message
    assert "Traceback" not in message
    for word in words:
        assert word in message.strip().splitlines()[-1], message


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that may not be written."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    return folder


def test_alfworld_needs_no_writable_home(closed: Path, tmp_path: Path) -> None:
    games = tmp_path / "games"
    made = run("data", "games", "--out", games, "--counts", "train=1", "--size", "small", HOME=str(closed))
    assert made.returncode == 0, made.stderr.decode()
    assert not list(closed.iterdir())
    settings = f"data={games}"
    refused(
        run("data", "tasks", "alfworld", "--out", closed / "out", "--splits", "train", "--env-settings", settings),
        str(closed),
        "could not be written: Permission denied",
    )


def test_an_import_makes_no_data_folder(tmp_path: Path) -> None:
    code = "import os, verl_act.envs.alfworld; print(os.environ.get('ALFWORLD_DATA'))"
    for given in ({}, {"ALFWORLD_DATA": str(tmp_path / "misspelled")}):
        own = {**os.environ, "HOME": str(tmp_path), **given}
        own = {key: value for key, value in own.items() if key != "ALFWORLD_DATA" or given}
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, check=True)
        assert shown.stdout.strip() == str(given.get("ALFWORLD_DATA"))
        assert not list(tmp_path.iterdir())


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: alfworld/quickstart\n")
    recipe.chmod(0)
    refused(run("run", recipe, "--out", tmp_path / "out", "--check"), "mine.yaml", "read", "Permission denied")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("")
    folder.chmod(0)
    result = run("data", "import", "alfworld", folder / "questions.jsonl", "--out", tmp_path / "out")
    folder.chmod(0o755)
    refused(result, "questions.jsonl", "Permission denied")


@pytest.mark.parametrize("out", ["", "file", "file/out"])
def test_an_output_that_cannot_be_a_folder_is_refused(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(run("run", "alfworld/quickstart", "--out", out, "seed=1", folder=tmp_path), "file" if out else "")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_working_folder_that_was_deleted_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os, sys; os.rmdir({str(gone)!r}); from verl_act.__main__ import main; main()"
    command = [sys.executable, "-c", code, "run", "alfworld/quickstart", "--out", str(tmp_path / "out"), "--check"]
    own = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(command, capture_output=True, check=False, cwd=gone, env=own)
    refused(result, "the working folder was deleted")


def test_other_locales_and_odd_paths(tmp_path: Path) -> None:
    """An error about the path, and a table of what is planned, through an ASCII terminal."""
    folder = tmp_path / "100% [größe] = 1, zwei"
    folder.mkdir()
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    made = run("data", "games", "--out", folder / "games", "--counts", "train=1", "--size", "small", **ascii_only)
    assert made.returncode == 0, made.stderr.decode(errors="replace")
    settings = f"data={folder / 'games'}"
    played = run(
        "data", "expert", "alfworld", "train", "--out", folder / "expert", "--env-settings", settings, **ascii_only
    )
    assert played.returncode == 0, played.stderr.decode(errors="replace")
    table = folder / "expert" / "trajectories.parquet"
    wrong = run("data", "audit", "--pairs", table, **ascii_only)
    refused(wrong, "trajectories.parquet")
    (folder / "räder.yaml").write_text("base: alfworld/quickstart\nmodel: größe\nworkers: -1\n", encoding="utf-8")
    checked = run("run", folder / "räder.yaml", "--out", folder / "out", "--check", **ascii_only)
    refused(checked, "workers")


def text_without_encoding(file: Path) -> Iterator[str]:
    """Calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [str(word.value) for word in node.args[not method :][:1] if isinstance(word, ast.Constant)]
        other = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name | ast.Subscript)
        reads = name == "read_text" and method and not node.args
        opens = name == "open" and "b" not in "".join(modes) and not other
        if name == "write_text" or reads or opens:
            yield f"{file}:{node.lineno}"


def test_text_files_have_an_encoding() -> None:
    package = Path(__file__).parent.parent / "verl_act"
    files = [Path(folder, name) for folder, _, names in os.walk(package, followlinks=True) for name in names]
    code = [file for file in files if file.suffix == ".py"]
    assert len(code) > 100
    assert not [place for file in code for place in text_without_encoding(file)]
