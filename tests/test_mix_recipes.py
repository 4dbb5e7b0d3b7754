"""Cross-cutting: the recipes of `recipes/mix` as they stand, on real verl, with the embedded model, two steps each."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import verl_example
from samples import make_pair
from verl_runs import ACT, arguments, check_steps, run

from verl_act.chain.recipe import RECIPES
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.schema import PAIR, write_rows
from verl_act.settings.data import TasksSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, games: Path) -> dict[str, str]:
    """What the recipes' variables name."""
    folder = tmp_path_factory.mktemp("mix")
    paths = {"PAIRS": folder / "pairs.parquet", "PAIRS_VAL": folder / "pairs_val.parquet"}
    write_rows(paths["PAIRS"], [make_pair(number).to_row() for number in range(10)], PAIR)
    held_out = [make_pair(number, split="valid_seen").to_row() for number in range(4)]
    write_rows(paths["PAIRS_VAL"], held_out, PAIR)
    for name, count in (("GSM8K", 9), ("GSM8K_VAL", 4)):
        paths[name] = folder / f"{name.lower()}.parquet"
        pq.write_table(pa.Table.from_pylist([gsm8k_row(number) for number in range(count)]), paths[name])
    for name, split in (("TASKS", "train"), ("TASKS_VAL", "valid_seen")):
        make_tasks(
            TasksSettings(env="alfworld", splits=[split], limit=5, env_settings={"data": str(games)}), folder / name
        )
        paths[name] = folder / name / "tasks.parquet"
    return {name: str(path) for name, path in paths.items()}


def gsm8k_row(number: int) -> dict[str, Any]:
    """As verl's own `examples/data_preprocess/gsm8k.py` writes it."""
    question = f"A shelf holds {number} mugs, and 3 more are put on it. How many mugs does it hold?"
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f'{question} Output the final answer after "####".'}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(number + 3)},
        "extra_info": {"split": "train", "index": number, "answer": f"#### {number + 3}", "question": question},
    }


def test_pairs_beside_the_rows_of_an_example_of_verls(files: dict[str, str], tmp_path: Path) -> None:
    """What the example sets stays; our script brings ACT in."""
    script = str(RECIPES / "mix" / "run_pairs_and_gsm8k.sh")
    metrics = run([script, *arguments(tmp_path, **verl_example.SETTINGS, **ACT)], tmp_path, **files)
    check_steps(metrics)
    assert all("actor/kl_loss" in metrics[step] for step in (1, 2)), "their reference model is still there"
    for step in (1, 2):
        assert "train/openai/gsm8k/acc/mean" in metrics[step]
        # Without the tiers of pairs: nothing but its own reward is given to a row.
        assert metrics[step]["train/openai/gsm8k/fmt/mean"] == 0
        assert "train/act/alfworld/choice/adm/mean" in metrics[step]
    assert {"val-core/openai/gsm8k/acc/mean@1", "val-core/act/alfworld/choice/valid_seen/acc/mean@1"} <= set(metrics[2])


@pytest.mark.nightly
def test_choices_beside_live_episodes(files: dict[str, str], games: Path, tmp_path: Path) -> None:
    script = str(RECIPES / "mix" / "run_choices_and_episodes.sh")
    episodes = {
        "data.act.episode.max_turns": 2,
        "+data.act.episode.env_settings.data": games,
        "actor_rollout_ref.rollout.agent.num_workers": 1,
    }
    metrics = run([script, *arguments(tmp_path, **ACT, **episodes)], tmp_path, **files)
    check_steps(metrics)
    for step in (1, 2):
        assert 1 <= metrics[step]["train/act/alfworld/episode/steps/mean"] <= 2
        for name in ("success", "malformed_share", "longest_failed_repeat", "adm", "fmt", "acc"):
            assert math.isfinite(metrics[step][f"train/act/alfworld/episode/{name}/mean"])
        assert "train/act/alfworld/choice/adm/mean" in metrics[step]
        assert "train/act/alfworld/choice/steps/mean" not in metrics[step], "each kind has its own metrics"
    for kind in ("episode", "choice"):
        assert f"val-core/act/alfworld/{kind}/valid_seen/acc/mean@1" in metrics[2]
    assert metrics[2]["val-aux/num_turns/max"] == 4, "two turns, each a prompt and a reply of its own"


@pytest.mark.nightly
def test_a_warm_up_before_a_run_of_somebody_elses(files: dict[str, str], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    script = str(RECIPES / "mix" / "run_warm_up.sh")
    own = {
        "data.train_files": files["GSM8K"],
        "data.val_files": files["GSM8K_VAL"],
        **verl_example.SETTINGS,
        "trainer.total_training_steps": 1,
    }
    # Each writes its metrics to a file of its own.
    command = ["env", f"VERL_FILE_LOGGER_PATH={theirs}/metrics.jsonl", sys.executable, "-m", "verl.trainer.main_ppo"]
    warm_up = arguments(tmp_path, **ACT, **{"trainer.total_training_steps": 1, "trainer.save_freq": 1})
    warm_up = [word for word in warm_up if not word.startswith("trainer.default_local_dir")]
    metrics = run([script, *warm_up, "--", *command, *arguments(theirs, **own)], tmp_path, **files, OUT=str(tmp_path))
    assert "train/act/alfworld/choice/acc/mean" in metrics[1]
    (line,) = (theirs / "metrics.jsonl").read_text().splitlines()
    data = json.loads(line)["data"]
    assert "val-core/openai/gsm8k/reward/mean@1" in data or "val-core/openai/gsm8k/acc/mean@1" in data
    assert not any("act/" in name for name in data), "their run knows nothing of ours"
