"""Step time of a verl run with ACT rows in it, against the same run without ACT.

    python benchmarks/mixed_run.py [--steps 12]

Three runs of verl's GRPO with the embedded model on this machine, in batches of 16 prompts with 2 replies of at most 16
tokens: on rows in verl's layout; on the same rows through our dataset and reward (`+act=mix`); and with a quarter of
pairs, whose prompts are as long. The first two steps of each run are left out. Prints medians and ratios, and writes
`benchmarks/results/mixed_run.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_act.envs.registry import get_env
from verl_act.prompts import get_template
from verl_act.schema import PAIR, Context, Pair, pair_id, write_rows

RESULTS = Path(__file__).parent / "results" / "mixed_run.json"
ROWS = 256
WARM_UP = 2


def pair(number: int) -> Pair:
    context = Context(
        goal=f"put some mug {number} on shelf 1.",
        history=(),
        observation=f"On the desk 1, you see a mug {number}.",
        admissible_actions=("go to shelf 1", f"take mug {number} from desk 1"),
    )
    expert, alternative = context.admissible_actions[::-1]
    return Pair(
        context=context,
        pair_id=pair_id(f"game-{number}#0", expert, alternative),
        env="alfworld",
        split="train",
        task_id=f"game-{number}",
        task_type="pick",
        state_id=f"game-{number}#0",
        step=0,
        expert_action=expert,
        alternative_action=alternative,
        alternative_source="admissible",
        alternative_admissible=True,
        model="",
        sampling="{}",
        margin=None,
        inferable=True,
    )


def foreign(number: int) -> dict[str, Any]:
    """A row in verl's layout whose prompt is as long as that of a pair."""
    one = pair(number)
    candidates = [one.expert_action, one.alternative_action]
    return {
        "data_source": "openai/gsm8k",
        "prompt": get_template("compact").choice_messages(one.context, candidates),
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "extra_info": {"index": number},
    }


def seconds_a_step(folder: Path, overrides: list[str], steps: int) -> list[float]:
    """Run verl; the seconds of every step after the warm-up."""
    metrics = folder / "metrics.jsonl"
    settings = [
        "+act/device=cpu",
        f"actor_rollout_ref.model.path={get_env('alfworld').models['embedded']}",
        "actor_rollout_ref.model.use_remove_padding=false",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.max_model_len=1024",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",
        "algorithm.adv_estimator=grpo",
        "data.train_batch_size=16",
        "data.max_prompt_length=960",
        "data.max_response_length=16",
        f"data.val_files={folder.parent / 'foreign.parquet'}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=100",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "data.val_max_samples=2",
        'trainer.logger=["file"]',
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"hydra.run.dir={folder / 'hydra'}",
    ]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *settings, *overrides]
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics)}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"the run failed; see {folder / 'log.txt'}")
    entries = map(json.loads, metrics.read_text().splitlines())
    return [entry["data"]["timing_s/step"] for entry in entries if entry["step"] > WARM_UP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, help="keep logs and metrics here; by default they are thrown away")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        pairs, rows = out / "pairs.parquet", out / "foreign.parquet"
        write_rows(pairs, [pair(number).to_row() for number in range(ROWS)], PAIR)
        pq.write_table(pa.Table.from_pylist([foreign(number) for number in range(ROWS)]), rows)
        act = ["+act=mix", "data.act.template=compact"]
        runs = {
            "without ACT": [f"data.train_files={rows}"],
            "the same rows, +act=mix": [*act, f"data.train_files={rows}"],
            "a quarter of pairs": [*act, f"data.train_files=[{rows},{pairs}]", "data.act.mix.weights=[3,1]"],
        }
        medians: dict[str, float] = {}
        for place, (name, overrides) in enumerate(runs.items()):
            folder = out / str(place)
            folder.mkdir()
            medians[name] = statistics.median(seconds_a_step(folder, overrides, arguments.steps))
            ratio = medians[name] / medians["without ACT"]
            print(f"{name:<28}{medians[name]:8.2f} s a step{ratio:8.3f} times", flush=True)
    result = {"steps": arguments.steps - WARM_UP, "median_seconds_a_step": medians}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
