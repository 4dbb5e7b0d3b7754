"""The quickstarts of ScienceWorld and WebShop, cut short: every stage on real engines, verl and vLLM, to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_act.chain.recipe import embedded_models
from verl_act.schema import read_pairs

SHORT = (
    "expert.limits={train: 16, dev: 4, test: 4}",
    "evaluate={max_turns: 4, limit: 16, tasks: 3}",
    "critic.overrides.data.val_max_samples=16",
    "critic.overrides.data.train_batch_size=8",
    "critic.overrides.actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "critic.overrides.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "action.overrides.data.val_max_samples=16",
    "action.overrides.data.train_batch_size=8",
    "action.overrides.actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "action.overrides.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("env", ["scienceworld", "webshop"])
def test_a_quickstart_runs_to_its_report(env: str, tmp_path: Path) -> None:
    if env not in embedded_models():
        pytest.skip(f"its model is made by `make embedded-model-{env}`")
    command = [sys.executable, "-m", "verl_act", "chain", f"{env}/quickstart", "--out", str(tmp_path), "--steps", "2"]
    run = subprocess.run([*command, *SHORT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    for name in ("initial", "critic", "action"):
        folder = tmp_path / "evaluation" / name
        counts = json.loads((folder / "manifest.json").read_text())["counts"]
        assert counts["episodes"] == 3 and counts["episode_errors"] == 0 and counts["choices"] > 0, name
        figures = json.loads((folder / "figures.json").read_text())
        for part in ("episodes", "next_action", "choice"):
            assert set(figures[part]) == {"dev", "test"}, (name, part)
        assert all({"success", "score"} <= set(split) for split in figures["episodes"].values()), name
    pairs = read_pairs([tmp_path / "pairs" / "train" / "pairs.parquet"])
    assert {pair.env for pair in pairs} == {env} and any(pair.alternative_source == "policy" for pair in pairs)
    measured = [pair.margin is not None for pair in pairs]
    assert not any(measured) if env == "scienceworld" else all(measured)
    assert (tmp_path / "report.html").stat().st_size > 10_000
