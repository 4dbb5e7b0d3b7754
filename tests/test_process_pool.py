"""Worker processes of data commands: what hangs or dies costs one task, and nothing outlives the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import failing_env
import psutil
import pytest
from installed_env import install
from processes import started_processes
from samples import make_pair, make_step

from verl_act.data_prep.expert.collect_expert import DROPPED, TRAJECTORIES, Dropped, Played
from verl_act.data_prep.imports.replay_published import Replayed, ReplayResult
from verl_act.data_prep.pairs.pairing import Paired
from verl_act.data_prep.sft.reflect import TrajectoryOutcomes
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.process_pool import Failure, process_pool
from verl_act.errors import DataError, EnvError
from verl_act.journal import Journal, SavedResults
from verl_act.schema import Turn, read_pairs, read_steps
from verl_act.settings.data import GamesSettings

TESTS = Path(__file__).parent


def test_a_job_that_fails_costs_no_other(tmp_path: Path) -> None:
    once = f"is killed once:{tmp_path / 'killed'}"
    jobs = ["a", *failing_env.FAILURES, once, "b", "x" * 2_000_000, "c"]
    with process_pool(failing_env.Failing(), 2, timeout=3) as run:
        results = list(run(jobs))
        (nested,) = run(["again"])
    kinds = {job: result.kind for job, result in zip(jobs, results, strict=True) if isinstance(result, Failure)}
    assert kinds == failing_env.FAILURES
    assert [result for result in results if not isinstance(result, Failure)] == [
        "A",
        once.upper(),
        "B",
        jobs[-2].upper(),
        "C",
    ]
    assert nested == "AGAIN"
    reasons = dict(zip(jobs, results, strict=True))
    for job, told in {
        "hangs in reset": "--task-timeout",
        "exits": "exit status 3",
        "crashes": "SIGSEGV",
        "is killed": "memory",
        "may not": "PermissionError: [Errno 13] Permission denied: '/its/own/file'",
        "leaves": "SystemExit: it has had enough",
        "raises": "IndexError: a bug in the environment",
    }.items():
        assert told in reasons[job].reason


def test_errors_of_the_user_end_the_command() -> None:
    with pytest.raises(DataError, match="wrong settings"), process_pool(failing_env.Failing(), 1) as run:
        list(run(["a", "data error"]))
    with pytest.raises(EnvError, match="exit status 5"), process_pool(failing_env.Unstartable(), 1) as run:
        list(run(["a"]))
    assert not started_processes("spawn_main")


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """Environment variables with which a command finds `failing_env`."""
    (tmp_path / "site").mkdir()
    install(failing_env, tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), str(TESTS), os.environ.get("PYTHONPATH", os.getcwd())])
    return {**os.environ, "PYTHONPATH": path}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "verl_act", *arguments]


def collected(out: Path) -> tuple[list[str], dict[str, str]]:
    """The tasks that were won, and the kind of failure of each of the others."""
    won = [step.task_id for step in read_steps([out / TRAJECTORIES]) if step.step == 0]
    dropped = map(json.loads, (out / DROPPED).read_text().splitlines())
    return won, {task["task_id"]: task["kind"] for task in dropped}


def test_a_task_that_fails_costs_no_other_trajectory(site: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--out", str(out), "--task-timeout", "3", "failing", "train"]
    run = subprocess.run(command("data", "expert", *options), env=site, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert collected(out) == (list(failing_env.GOOD), failing_env.FAILURES)


def test_pairs_and_reflections_lose_a_trajectory_that_fails(site: dict[str, str], tmp_path: Path) -> None:
    """Their trajectories were collected where these tasks did not fail."""
    spared = tmp_path / "spared"
    spared.mkdir()
    for task in failing_env.FAILURES:
        (spared / task).touch()
    settings = f"spared={spared}"
    expert, out = tmp_path / "expert", tmp_path / "pairs"
    collect = command("data", "expert", "--out", str(expert), "--env-settings", settings, "failing", "train")
    subprocess.run(collect, env=site, check=True, timeout=600)
    (spared / "hangs in reset").unlink()
    (spared / "raises").unlink()
    (spared / "exits").unlink()
    options = ["--trajectories", str(expert / TRAJECTORIES), "--env-settings", settings, "--task-timeout", "3"]
    build = command("data", "pairs", "--out", str(out), *options, "--source", "admissible")
    run = subprocess.run(build, env=site, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    left = {pair.task_id for pair in read_pairs([out / "pairs.parquet"])}
    assert left == {*failing_env.GOOD, *failing_env.FAILURES} - {"hangs in reset", "raises", "exits"}
    assert "trajectories_failed 3" in run.stdout


def descendants(process: psutil.Process, workers: int = 2) -> list[psutil.Process]:
    """All of them, once that many worker processes work, or are about to."""
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
        with suppress(psutil.NoSuchProcess):
            if len(started_processes("spawn_main", process)) >= workers:
                time.sleep(1)
                return process.children(recursive=True)
    raise AssertionError("it ended before it had workers")


def still_alive(processes: Sequence[psutil.Process], seconds: float = 10) -> list[psutil.Process]:
    """Those that live after so many seconds."""
    until = time.monotonic() + seconds
    alive = list(processes)
    while alive and time.monotonic() < until:
        time.sleep(0.05)
        alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return alive


RECIPES = {
    "games": {"env": "alfworld", "games": {"counts": {"train": 3000, "valid_seen": 6}}, "valid_splits": ["valid_seen"]},
    "expert": {"env": "failing", "train_split": "good", "valid_splits": ["train"], "env_settings": {"seconds": 1.0}},
}


SHARED = {"workers": 2, "model": "none", "training": {"critic": {}, "action": {"data": "steps"}}}


@pytest.mark.parametrize(
    ("stage", "dies", "by"),
    [
        ("games", "chain", signal.SIGKILL),
        ("expert", "chain", signal.SIGTERM),
        ("expert", "command", signal.SIGKILL),
        ("expert", "all", signal.SIGINT),
    ],
)
def test_nothing_outlives_a_chain(stage: str, dies: str, by: int, site: dict[str, str], tmp_path: Path) -> None:
    """Whichever of its processes ends, and by which signal; Ctrl-C is SIGINT for all of them."""
    (tmp_path / "recipe.yaml").write_text(json.dumps({**RECIPES[stage], **SHARED}))
    run = subprocess.Popen(
        command("run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")),
        env=site,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores it in what it starts in the background, such as these tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    chain, started = psutil.Process(run.pid), []
    try:
        started = descendants(chain)
        if dies == "all":
            os.killpg(run.pid, by)
        else:
            (chain if dies == "chain" else chain.children()[0]).send_signal(by)
        _, told = run.communicate(timeout=15)
        assert not still_alive(started)
        assert by != signal.SIGINT or "spawn_main" not in told, "no tracebacks of the workers"
    finally:
        for process in (*started, chain):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def killed_when(ready: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    """Kill the command as soon as `ready` says so, which must be before it ends."""
    while not ready():
        assert run.poll() is None, "it was to be killed before its end"
        time.sleep(0.02)
    run.kill()
    run.wait()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_collection_resumes_and_gives_the_same_bytes(
    workers: str, site: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    settings = [f"log={log}", "--env-settings", "seconds=0.05"]
    options = ["--workers", workers, "--limit", "30", "--env-settings", *settings, "failing", "good"]
    collect = command("data", "expert", "--out", str(tmp_path / "out"), *options)
    log.touch()
    run = subprocess.Popen(collect, env=site, stderr=subprocess.DEVNULL, text=True)
    killed_when(lambda: len(log.read_text().splitlines()) > 30, run)
    before = log.read_text().splitlines()
    log.write_text("")
    subprocess.run(collect, env=site, check=True, timeout=600)
    after = log.read_text().splitlines()
    assert len(set(before) & set(after)) <= 4, "only what was not finished is played again"
    assert len(set(before) | set(after)) == 30
    whole = command("data", "expert", "--out", str(tmp_path / "whole"), *options)
    subprocess.run(whole, env=site, check=True, timeout=600)
    for name in (TRAJECTORIES, DROPPED):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".out.*"))


def test_killed_games_resume_and_give_the_same_bytes(site: dict[str, str], tmp_path: Path) -> None:
    options = ["--counts", "train=24", "--counts", "valid_seen=6", "--size", "small", "--workers", "2"]
    make = command("data", "games", "--out", str(tmp_path / "out"), *options)

    def saved() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob(".out.journal/*"))

    killed_when(lambda: saved() > 5, subprocess.Popen(make, env=site, stderr=subprocess.DEVNULL, text=True))
    subprocess.run(make, env=site, check=True, timeout=600)
    make_games(GamesSettings(counts={"train": 24, "valid_seen": 6}, workers=0, size="small"), tmp_path / "whole")
    files = [sorted((tmp_path / name / "json_2.1.1").rglob("*.*")) for name in ("out", "whole")]
    assert [path.relative_to(tmp_path / "out") for path in files[0]] == [
        path.relative_to(tmp_path / "whole") for path in files[1]
    ]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True) if one.is_file())


def test_saved_results_come_back_as_they_were(tmp_path: Path) -> None:
    step = replace(make_step(2), reward=0.1, thought='"ä"\n<think>', plan_length=None)
    pair = make_pair(1)
    results = {
        "trajectory": (Played, [step, replace(step, step=3)]),
        "dropped": (Played, Dropped("not won", "it gave up")),
        "pairs": (Paired, ([pair], Counter(states=3, replies=0))),
        "outcomes": (TrajectoryOutcomes, ([(step, Turn("seen", "go"), [Turn("", "wait")])], Counter(states=1))),
        "replayed": (ReplayResult, Replayed([step], 2)),
        "refused": (ReplayResult, Dropped("does not win", "at all")),
    }
    kept = Journal(tmp_path / "out", "key")
    for what, (kind, result) in results.items():
        SavedResults(kept, what, kind).add(7, result)
    kept.close()
    kept = Journal(tmp_path / "out", "key")
    for what, (kind, result) in results.items():
        assert SavedResults(kept, what, kind).get(7) == result, what
        assert SavedResults(kept, what, kind).get(6) is None
    kept.close()
