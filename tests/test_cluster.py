"""Cross-cutting: a Ray cluster of two nodes, by Ray's own utilities: sampling and training spread over it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from processes import clean_environment
from ray.cluster_utils import Cluster
from samples import embedded_models, first_shard
from small_run import SMALL_RUN

from verl_act.data_prep.alternatives.sample_alternatives import SHARD_STATES
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.schema import ALTERNATIVES, read_steps, read_table
from verl_act.settings.data import ExpertSettings, GamesSettings, TasksSettings

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Expert states for three shards."""
    folder = tmp_path_factory.mktemp("states")
    make_games(GamesSettings(counts={"train": 80}, size="small", seed=3, workers=0), folder / "games")
    settings = {"data": str(folder / "games")}
    collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), folder / "expert")
    path = folder / "expert" / "trajectories.parquet"
    assert 2 * SHARD_STATES < len(read_steps([path])) <= 3 * SHARD_STATES
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes with a CPU each: one engine fits on each of them."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()


def command(out: Path, trajectories: Path, *options: str) -> list[str]:
    words = [sys.executable, "-m", "verl_act", "data", "alternatives", "--out", str(out)]
    words += [
        "--trajectories",
        str(trajectories),
        "--model",
        str(embedded_models()["alfworld"]),
        "--template",
        "compact",
    ]
    return [*words, "--n", "1", "--temperature", "0", "--max-tokens", "8", "--max-model-len", "1024", *options]


def sample(out: Path, trajectories: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words, env = command(out, trajectories, *options), clean_environment(**environment)
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=1000, check=False)


def engines() -> list[psutil.Process]:
    """vLLM's processes below the cluster's, which are this process's own."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("VLLM"):
                found.append(process)
    return found


def rows(out: Path) -> list[dict]:
    return read_table(out / "alternatives.parquet", ALTERNATIVES).to_pylist()


def test_a_run_killed_on_one_engine_goes_on_over_the_cluster(trajectories: Path, cluster: str, tmp_path: Path) -> None:
    """One engine's first shard and two nodes' other two are what one engine samples alone."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    here = sample(alone, trajectories)
    assert here.returncode == 0, here.stderr
    with subprocess.Popen(command(out, trajectories), env=clean_environment(), start_new_session=True) as first:
        while not first_shard(out):
            assert first.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    kept = first_shard(out)
    again = sample(out, trajectories, "--workers", "2", "--gpus-per-worker", "0", RAY_ADDRESS=cluster)
    assert again.returncode == 0, again.stderr
    # What the progress bar shows first is where it begins.
    assert re.findall(r"sampling alternatives: +\d+%\|[^|]*\| (\d+)/", again.stderr)[0] == str(SHARD_STATES)
    assert rows(out)[:SHARD_STATES] == kept
    assert rows(out) == rows(alone)
    assert [row["state_id"] for row in rows(out)] == [step.state_id for step in read_steps([trajectories])]
    _, left = psutil.wait_procs(engines(), timeout=60)
    assert not left, "the engines outlive the work"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node by the commands of the guide; the variables of a shell that knows its address."""
    home = tmp_path_factory.mktemp("home")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # short, for the sockets in it
        env = clean_environment(HOME=str(home), RAY_TMPDIR=folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        ray = str(Path(sys.executable).with_name("ray"))
        head = ["--head", "--port", address.split(":")[1], "--node-ip-address", "127.0.0.1", "--num-cpus", "1"]
        try:
            for words in (["get-auth-token", "--generate"], ["start", *head, "--include-dashboard", "false"]):
                subprocess.run([ray, *words], env=env, check=True, capture_output=True, timeout=200)
            yield {"HOME": str(home), "RAY_ADDRESS": address}
        finally:
            # `ray stop` would end every Ray on the machine.
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.environ().get("RAY_TMPDIR") == folder:
                        process.kill()


def doctor(**variables: str) -> dict[str, str]:
    """The doctor's findings in Ray's workers."""
    code = """
import dataclasses, json
from verl_act.doctor.registered import in_ray_workers
from verl_act.doctor.checks import examine
print(json.dumps([dataclasses.asdict(finding) for finding in examine([("ray", in_ray_workers)])]))
"""
    env = clean_environment(**variables)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=400, check=True
    )
    (finding,) = json.loads(done.stdout.splitlines()[-1])
    return finding


def test_the_doctor_looks_at_every_node(cluster: str) -> None:
    found = doctor(RAY_ADDRESS=cluster)
    assert found["state"] == "ok" and found["detail"].startswith("2 nodes: agent loop act_env")


def test_a_cluster_with_a_token(started: dict[str, str]) -> None:
    found = doctor(**started, RAY_AUTH_MODE="token")
    assert found["state"] == "ok" and found["detail"].startswith("1 node: agent loop act_env")


def test_a_cluster_whose_token_is_missing(started: dict[str, str], tmp_path: Path) -> None:
    found = doctor(**{**started, "HOME": str(tmp_path)})
    assert found["state"] == "wrong" and started["RAY_ADDRESS"] in found["detail"]
    assert "RAY_AUTH_MODE=token" in found["remedy"]


def test_one_trainer_over_two_nodes(pairs: Path, games: Path, tmp_path: Path) -> None:
    """Two steps on choices and live episodes: a process of the trainer and an engine on each node."""
    make_tasks(TasksSettings(env="alfworld", splits=["train"], env_settings={"data": str(games)}), tmp_path / "tasks")
    files = f"[{pairs},{tmp_path / 'tasks' / 'tasks.parquet'}]"
    logical = {"num_cpus": 16, "num_gpus": 1}  # verl's actors reserve many CPUs each, and count GPUs
    nodes = Cluster(initialize_head=True, head_node_args={**logical, "include_dashboard": False})
    words = [sys.executable, "-m", "verl.trainer.main_ppo", "+act=action", *SMALL_RUN, "trainer.nnodes=2"]
    words += [
        f"data.train_files={files}",
        f"data.val_files={files}",
        "data.act.mix.weights=[1,1]",
        "data.act.episode.max_turns=2",
        "data.act.episode.actors=2",
        f"+data.act.episode.env_settings.data={games}",
        f"actor_rollout_ref.model.path={embedded_models()['alfworld']}",
    ]
    words += [f"ray_kwargs.ray_init.{name}=null" for name in ("address", *logical)] + ["trainer.total_training_steps=2"]
    words.append(f"trainer.default_local_dir={tmp_path / 'checkpoints'}")  # the nodes have another working folder
    try:
        nodes.add_node(**logical)
        nodes.wait_for_nodes()
        env = clean_environment(RAY_ADDRESS=nodes.address)
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    finally:
        nodes.shutdown()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # Ray passes each line on once for every node's log.
    assert {int(step) for step in re.findall(r"step:(\d+) - ", done.stdout)} == {1, 2}
    lengths = re.findall(r"train/act/alfworld/episode/steps/mean:(?:np\.float64\()?([\d.]+)", done.stdout)
    assert lengths and all(1 <= float(length) <= 2 for length in lengths)
    assert "train/act/alfworld/choice/acc/mean:" in done.stdout
    shards = {path.name for path in (tmp_path / "checkpoints").glob("global_step_2/actor/model_*.pt")}
    assert shards == {f"model_world_size_2_rank_{rank}.pt" for rank in range(2)}
