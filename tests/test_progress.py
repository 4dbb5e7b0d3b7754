"""What a command shows while it works: messages beside its bars, those of other packages in a log."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from script_stages import script

from verl_act.chain.run_stages import run_stages
from verl_act.progress import LOG_FILE
from verl_act.run_folder import RunFolder

SPEAK = """
import logging, sys, warnings
from tqdm import tqdm
from verl_act.progress import phase, route_messages
route_messages(), route_messages()
for _ in tqdm(range(2), "working"):
    logging.getLogger("verl_act.envs").warning("ours")
    logging.getLogger("transformers").warning("theirs")
    warnings.warn("deprecated")
logging.getLogger("transformers").setLevel(logging.INFO)
logging.getLogger("transformers").info("quiet")
"""


def spoken(**environment: str) -> str:
    words = [sys.executable, "-c", SPEAK]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, check=True, text=True).stderr


def test_messages_are_lines_of_their_own_beside_a_bar() -> None:
    text = spoken()
    lines = [line for part in text.split("\r") for line in part.splitlines()]
    assert lines.count("ours") == lines.count("theirs") == 2
    assert sum("UserWarning: deprecated" in line for line in lines) == 1, "a place warns once"
    assert "quiet" not in text


def test_messages_of_other_packages_are_in_the_log_of_a_stage(tmp_path: Path) -> None:
    text = spoken(**{LOG_FILE: str(tmp_path / "log.txt")})
    log = (tmp_path / "log.txt").read_text()
    assert text.count("ours") == log.count("verl_act.envs: ours") == 2
    assert "theirs" not in text and "deprecated" not in text
    assert log.count("transformers: theirs") == 2 and "UserWarning: deprecated" in log and "quiet" not in log


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_a_phase_is_shown_once_it_takes_long(seconds: float) -> None:
    """On a terminal, which a pseudo-terminal stands for."""
    words = f"""
import time, verl_act.progress as progress
progress._PATIENCE = 0.1
for _ in progress.phase("reading pairs", 4, "row", range(4)):
    time.sleep({seconds})
"""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    subprocess.run([sys.executable, "-c", words], stderr=follower, check=True)
    os.close(follower)
    os.set_blocking(leader, False)
    try:
        shown = os.read(leader, 10_000).decode()
    except OSError:  # nothing was written
        shown = ""
    os.close(leader)
    assert ("reading pairs" in shown and "3/4" in shown and "row/s" in shown) == bool(seconds)
    assert bool(shown) == bool(seconds)


def test_a_stage_keeps_the_warnings_of_other_packages(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "done").write_text("")
    out = RunFolder(tmp_path)
    run_stages([script("it", SPEAK, tmp_path / "done")], out)
    shown, log = capfd.readouterr(), (out.record("it") / "log.txt").read_text()
    assert "ours" in shown.err and "theirs" not in shown.err and "transformers: theirs" in log
