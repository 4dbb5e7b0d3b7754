"""A command that is interrupted comes to its own end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import pathlib, signal, sys, time

def end(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("ended")
    sys.exit(1)

signal.signal(signal.{caught}, end)
print("ready", flush=True)
time.sleep(60)
"""
RUNS = """
import sys
import verl_act.process as process
process.GRACE_SECONDS = float(sys.argv[1])
process.run_to_its_end([sys.executable, "-c", *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    ("caught", "everyone", "grace"),
    [("SIGINT", True, "30"), ("SIGTERM", False, "0.1")],
    ids=["Ctrl-C", "a signal to its parent alone"],
)
def test_an_interrupted_command_is_waited_for(caught: str, everyone: bool, grace: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", RUNS, grace, COMMAND.format(caught=caught), str(tmp_path / "end")]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        (os.killpg if everyone else os.kill)(parent.pid, signal.SIGINT)
        parent.wait(60)
    assert (tmp_path / "end").read_text() == "ended"
