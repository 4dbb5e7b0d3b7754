"""Cross-cutting: the quickstarts, cut short: every stage on real engines, verl and vLLM, to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import embedded_models
from transformers import AutoTokenizer

from verl_act.chain import load_recipe
from verl_act.evaluate.metric_registry import METRICS
from verl_act.schema import read_pairs

REASONING = sorted((Path(__file__).parents[1] / "examples" / "reasoning").iterdir())
GAMES = "games.counts={train: 16, valid_seen: 3, valid_unseen: 3}"
TASKS = "expert.limits={train: 16, dev: 4, test: 4}"
SHORT = (
    "evaluate={max_turns: 4, limit: 16, task_limit: 3, reasoning_max_tokens: 4}",
    f"evaluate.reasoning={[*map(str, REASONING)]}",
    "training.critic.overrides.data.val_max_samples=16",
    "training.critic.overrides.data.train_batch_size=8",
    "training.critic.overrides.actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "training.action.overrides.data.val_max_samples=16",
    "training.action.overrides.data.train_batch_size=8",
    "training.action.overrides.actor_rollout_ref.actor.ppo_mini_batch_size=8",
)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "recipe", ["alfworld/quickstart", "alfworld/quickstart_episodes", "scienceworld/quickstart", "webshop/quickstart"]
)
def test_a_quickstart_runs_to_its_report(recipe: str, tmp_path: Path) -> None:
    env = recipe.partition("/")[0]
    splits = load_recipe(recipe).valid_splits
    if env not in embedded_models():
        pytest.skip(f"its model is made by `make embedded-model-{env}`")
    command = [sys.executable, "-m", "verl_act", "run", recipe, "--out", str(tmp_path), "--steps", "2"]
    few = GAMES if env == "alfworld" else TASKS
    run = subprocess.run([*command, few, *SHORT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    tokenizer = AutoTokenizer.from_pretrained(embedded_models()[env])
    for name in ("initial", "critic", "action"):
        folder = tmp_path / "evaluation" / name
        counts = json.loads((folder / "manifest.json").read_text())["counts"]
        assert counts["episode_errors"] == counts["without_room"] == 0 and counts["choices"] > 0, name
        recorded = {kind: _records(folder / f"{kind}.jsonl") for kind in ("episodes", "choices", "reasoning")}
        assert counts["episodes"] == len(recorded["episodes"]) == 6, name
        assert [record["split"] for record in recorded["reasoning"]] == ["maths"] * 10 + ["science"] * 10
        assert all(0 < len(tokenizer.tokenize(record["reply"])) <= 4 for record in recorded["reasoning"])
        assert all(record["log_probability"] < 0 for record in recorded["choices"]), "how sure vLLM says the model was"
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        for split in splits:
            assert {"success", "score", "next_action", "choice"} <= set(metrics[split]), (name, split)
    pairs = read_pairs([tmp_path / "pairs" / "train" / "pairs.parquet"])
    assert {pair.env for pair in pairs} == {env} and any(pair.alternative_source == "policy" for pair in pairs)
    measured = [pair.margin is not None for pair in pairs]
    assert not any(measured) if env == "scienceworld" else all(measured)
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    assert table.startswith("| split | metric | initial | critic | action |")
    for metric in ("success", "next_action", "choice"):
        assert f"| {splits[0]} | {METRICS[metric].full_title} |" in table
    page, numbers = (tmp_path / f"report.{kind}" for kind in ("html", "md"))
    assert page.read_text().lower().startswith("<!doctype html>")
    assert "Not finished" not in numbers.read_text()


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
