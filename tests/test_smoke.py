"""The verdict on a smoke run, from folders as a run leaves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from verl_act.chain.recipe import embedded_models
from verl_act.errors import DataError
from verl_act.manifest import make_manifest, write_manifest
from verl_act.preflight.smoke import FILE_NAME, main, smoke_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stage = tmp_path / "critic"
    shutil.copytree(embedded_models()["alfworld"], stage / "model")
    write_manifest(stage, make_manifest("critic", settings={}, seconds=61.5))
    write_metrics(stage, **{"actor/grad_norm": 0.2, "training/rollout_probs_diff_mean": 0.001})
    evaluation = tmp_path / "evaluation" / "critic"
    evaluation.mkdir(parents=True)
    (evaluation / "manifest.json").write_text("{}")
    return tmp_path


def write_metrics(stage: Path, **data: float) -> None:
    lines = [{"step": step, "data": data} for step in (0, 1, 2)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_sound_run_passes_and_leaves_its_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run) == 0
    report = json.loads((run / FILE_NAME).read_text())
    assert report["passed"] and report["stages"]["critic"]["steps"] == 2
    assert report["stages"]["critic"]["seconds"] == 61.5
    assert report["stages"]["critic"]["metrics"]["actor/grad_norm"] == 0.2
    assert report["packages"]["verl"] and report["devices"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("passed")


@pytest.mark.parametrize(
    ("metric", "value"), [("actor/grad_norm", float("nan")), ("training/rollout_probs_diff_mean", 0.4)]
)
def test_a_metric_that_cannot_be_right_fails(metric: str, value: float, run: Path) -> None:
    write_metrics(run / "critic", **{metric: value})
    report = smoke_report(run)
    assert not report["passed"] and len(report["problems"]) == 1 and report["problems"][0].startswith("critic: ")


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
