"""What a run on one machine opens to the network."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from samples import make_pair
from verl_runs import ACT, arguments

from verl_act.chain.recipe import embedded_models
from verl_act.schema import PAIR, write_rows


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_servers_of_a_run_listen_on_the_loopback_interface(tmp_path: Path) -> None:
    """Ray's, verl's and vLLM's, from its start to its end; the trainer's process group is torch's (docs/gaps.md)."""
    write_rows(tmp_path / "rows.parquet", [make_pair(number).to_row() for number in range(16)], PAIR)
    own = {
        "data.train_files": tmp_path / "rows.parquet",
        "data.val_files": tmp_path / "rows.parquet",
        "actor_rollout_ref.model.path": embedded_models()["alfworld"],
        "trainer.total_training_steps": 1,
        "trainer.test_freq": -1,
    }
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+act=critic", *arguments(tmp_path, **{**ACT, **own})]
    found: set[tuple[str, str]] = set()
    with (
        (tmp_path / "log.txt").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log) as run,
    ):
        while run.poll() is None:
            found |= listening(psutil.Process(run.pid))
            time.sleep(0.2)
    assert run.returncode == 0, (tmp_path / "log.txt").read_text()[-4000:]
    names = {name for name, _ in found}
    assert {"gcs_server", "raylet"} <= names and any("vLLM" in name or "VLLM" in name for name in names), names
    exposed = {name for name, address in found if address.removeprefix("::ffff:") not in ("127.0.0.1", "::1")}
    assert {name.split(".")[0] for name in exposed} <= {"ray::WorkerDict"}, found


def listening(process: psutil.Process) -> set[tuple[str, str]]:
    """The servers below `process` at this moment: its name, the address."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                servers = [at for at in one.net_connections("tcp") if at.status == psutil.CONN_LISTEN]
                found |= {(one.name(), at.laddr.ip) for at in servers}
    return found
