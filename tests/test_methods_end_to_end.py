"""Cross-cutting: a comparison of methods on verl's SFT trainer and vLLM, on this CPU. For RL: test_end_to_end.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from verl_act.chain import load_recipe
from verl_act.chain.method_stages import only, run_methods
from verl_act.parse import parse_action
from verl_act.run_folder import RunFolder
from verl_act.schema import REFLECTION, SFT, read_pairs, read_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

METHODS = ("Prompting", "IL", "Self-reflection")
MODEL = load_recipe("alfworld/methods_thinking").model_path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of three methods, two steps each."""
    folder = tmp_path_factory.mktemp("methods")
    sft = {"data.train_batch_size": 4, "data.micro_batch_size_per_gpu": 4, "trainer.total_training_steps": 2}
    recipe = {
        "base": "alfworld/methods_thinking",
        "valid_splits": ["valid_seen"],
        "games": {"counts": {"train": 12, "valid_seen": 3, "valid_unseen": 0}},
        "alternatives": {"n": 2, "max_tokens": 32},
        "training": {name: {"overrides": {**sft, "trainer.save_freq": 2}} for name in ("il", "reflection")},
        "evaluate": {"max_turns": 3, "limit": 8},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_methods(only(load_recipe(str(folder / "recipe.yaml")), METHODS), RunFolder(folder / "out"), [4])
    return folder / "out"


@pytest.mark.parametrize("name", ["il", "reflection"])
def test_imitation_through_verls_sft_trainer(name: str, out: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = out / "seed-4" / name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["data"][key]) for line in lines for key in ("train/loss", "train/grad_norm"))
    assert lines[0]["data"]["train/loss"] > 0
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert all(weight.isfinite().all() for weight in model.parameters())
    before = AutoModelForCausalLM.from_pretrained(MODEL)
    assert any((new != old).any() for new, old in zip(model.parameters(), before.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template


def test_reflections_are_the_models_own_on_real_outcomes(out: Path) -> None:
    rows = read_table(out / "reflections" / "reflections.parquet", REFLECTION).to_pylist()
    pairs = read_pairs([out / "pairs" / "train" / "pairs.parquet"])
    alternatives = {(pair.state_id, pair.alternative_action) for pair in pairs}
    assert rows
    for row in rows:
        assert row["outcome"] and row["model"] == MODEL
        # The thought that led the model itself to the expert's action.
        assert parse_action(row["reply"]).action == row["action"]
        assert row["reflection"] in " ".join(row["reply"].split())
        assert all(
            (row["state_id"], other["action"]) in alternatives and other["outcome"] for other in row["alternatives"]
        )
    counts = json.loads((out / "reflections" / "manifest.json").read_text())["counts"]
    told = sum(counts.get(kind, 0) for kind in ("reflections", "cut", "other_action", "empty"))
    assert len(rows) == counts["reflections"] and told == counts["states"] == len({pair.state_id for pair in pairs})
    sources = [row["source"] for row in read_table(out / "seed-4" / "rows-reflection" / "sft.parquet", SFT).to_pylist()]
    assert sources.count("reflection") == len(rows) < sources.count("expert") + len(rows)


def test_the_table_and_the_page(out: Path) -> None:
    table = (out / "methods" / "methods.md").read_text()
    assert "| IL | il 2 | Prompting | 4 |" in table
    whole = json.loads((out / "methods" / "methods.json").read_text())
    shared = whole["shared"]["pairs train"]
    assert f"| pairs train | {shared['seconds']:.0f} | " in table and f"pairs {shared['counts']['pairs']} |" in table
    assert {"games", "expert train", "alternatives", "reflections"} <= set(whole["shared"])
    assert {entry["metric"] for entry in whole["entries"]} >= {"success", "choice", "next_action", "useful_tokens"}
    seconds = whole["methods"]["IL"]["seconds"]["4"]
    assert set(seconds) == {"il", "evaluation"} and all(taken > 1 for taken in seconds.values())
    assert "Comparison of methods" in (out / "report.html").read_text()
    header = (out / "report.md").read_text()
    assert "environment: alfworld" in header and "; seed: 4\n" in header


def test_a_second_run_finds_everything_done(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_methods(only(load_recipe(str(out.parent / "recipe.yaml")), METHODS), RunFolder(out), [4])
    shown = capsys.readouterr().out
    assert ": done in" not in shown and shown.count("up to date") > 15
