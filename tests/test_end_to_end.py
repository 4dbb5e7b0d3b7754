"""Cross-cutting: real verl, vLLM and Ray on this CPU: two steps of every kind of training, and a killed chain.

The model is a random one of a few ten thousand parameters: what is tested is that everything fits together.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from samples import first_shard

from verl_act.chain import load_recipe
from verl_act.chain.plan import run_plan
from verl_act.chain.train import train
from verl_act.data_prep.embedded.make_embedded_model import make_embedded_model
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.run_folder import RunFolder
from verl_act.schema import ALTERNATIVES, read_table
from verl_act.settings.data import EmbeddedModelSettings, ExpertSettings, GamesSettings, PairsSettings, TasksSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

SMALL: dict[str, Any] = dict(
    vocabulary=512,
    layers=1,
    width=64,  # vLLM's CPU attention wants heads of 32 at least
    heads=2,
    key_value_heads=1,
    feed_forward=64,
    steps=20,
    batch_size=8,
    held_out=16,
)
BATCH = {
    "data.train_batch_size": 4,
    "data.max_response_length": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 16,
    "actor_rollout_ref.rollout.n": 4,
    "trainer.total_training_steps": 2,
    "trainer.save_freq": 2,
    "trainer.test_freq": 2,
    "trainer.val_before_train": False,
}
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain's folder with all of its data, and a model beside them."""
    out = tmp_path_factory.mktemp("world")
    make_games(GamesSettings(counts={"train": 12, "valid_seen": 3}, seed=7, workers=0, size="small"), out / "games")
    settings = {"data": str(out / "games")}
    for split in ("train", "valid_seen"):
        expert = out / "expert" / split
        collect_expert(ExpertSettings(env="alfworld", split=split, env_settings=settings, workers=0), expert)
        build_pairs(
            PairsSettings(
                trajectories=[expert / "trajectories.parquet"],
                alternatives=[],
                env_settings=settings,
                source="admissible",
                workers=0,
            ),
            out / "pairs" / split,
        )
    make_tasks(TasksSettings(env="alfworld", splits=["train"], env_settings=settings), out / "tasks" / "train")
    make_tasks(TasksSettings(env="alfworld", splits=["valid_seen"], env_settings=settings), out / "tasks" / "eval")
    make_embedded_model(
        EmbeddedModelSettings(trajectories=[out / "expert" / "train" / "trajectories.parquet"], **SMALL),
        out / "policy",
    )
    return out


def write_recipe(folder: Path, policy: Path, **changes: Any) -> str:
    """A recipe of our own on top of the quickstart, small in every respect."""
    overrides = {**BATCH, **changes.pop("overrides", {})}
    recipe = {
        "base": "alfworld/quickstart",
        "model": str(policy),
        "valid_splits": ["valid_seen"],
        "alternatives": {"n": 2, "max_tokens": MAX_TOKENS},
        "evaluate": {"max_turns": 3, "limit": 8},
        **changes,
    }
    reference = {"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 16}
    recipe["training"] = {
        "critic": {"overrides": {**overrides, **reference}},
        "action": {"overrides": overrides, **recipe.pop("action", {})},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@dataclass
class Trained:
    """What a training stage left."""

    output: Path

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        lines = (self.output / "metrics.jsonl").read_text().splitlines()
        return {entry["step"]: entry["data"] for entry in map(json.loads, lines)}

    def check(self, steps: list[int], source: str, *validated: str) -> None:
        """Every step was taken and taught something, validation knows our figures, and the model can be loaded."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        metrics = self.metrics
        assert [step for step in sorted(metrics) if step] == steps
        for step in steps:
            for name in ("actor/grad_norm", "critic/score/mean", "actor/pg_loss", "response_length/mean"):
                assert math.isfinite(metrics[step][name]), (step, name, metrics[step][name])
        for name in ("acc", "adm", "fmt", "score", *validated):
            key = re.compile(rf"val-(core|aux)/{source}/valid_seen/{name}/mean@1")
            assert any(key.fullmatch(found) for found in metrics[steps[-1]]), (name, sorted(metrics[steps[-1]]))
            if name != "score":
                assert math.isfinite(metrics[steps[-1]][f"train/{source}/{name}/mean"]), "tiers while training"
        model = AutoModelForCausalLM.from_pretrained(self.output / "model")
        assert all(weight.isfinite().all() for weight in model.parameters())
        assert AutoTokenizer.from_pretrained(self.output / "model").chat_template


def train_action_stage(world: Path, folder: Path, **changes: Any) -> Trained:
    """The action stage of a chain whose critic stage is left out."""
    overrides = {"actor_rollout_ref.model.path": str(world / "policy"), **changes.pop("overrides", {})}
    recipe = load_recipe(write_recipe(folder, world / "policy", overrides=overrides, **changes))
    (stage,) = (stage for stage in run_plan(recipe, RunFolder(world)) if stage.name == "action")
    (world / "action").mkdir(exist_ok=True)  # replaced as a whole
    train(stage)
    output = folder / "action"
    (world / "action").rename(output)
    return Trained(output)


@pytest.mark.nightly
def test_action_ppo(world: Path, tmp_path: Path) -> None:
    trained = train_action_stage(
        world,
        tmp_path,
        action={"config": ["act=action_ppo"]},
        overrides={
            "actor_rollout_ref.rollout.n": 1,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
            "critic.model.path": str(world / "policy"),
            "critic.ppo_mini_batch_size": 4,
            "critic.ppo_micro_batch_size_per_gpu": 4,
        },
    )
    trained.check([1, 2], "act/alfworld/action")
    for step in (1, 2):
        assert math.isfinite(trained.metrics[step]["critic/vf_loss"])
        assert math.isfinite(trained.metrics[step]["critic/grad_norm"])


class RunningChain:
    """`verl-act run` in a process of its own, its terminal in a file."""

    def __init__(self, recipe: str, out: Path, log: Path, *arguments: str) -> None:
        self.log = log
        self.seen: dict[int, psutil.Process] = {}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "verl_act", "run", recipe, "--out", str(out), *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=out.parent,
            )
        self.itself = psutil.Process(self.process.pid)

    def watch(self) -> None:
        """Remember every descendant, also of a child that will be gone by the time it is asked."""
        with suppress(psutil.NoSuchProcess):
            self.seen.update({child.pid: child for child in self.itself.children(recursive=True)})

    def wait(self, until: Callable[[], bool], seconds: float = 1200) -> bool:
        """Whether `until` came true before the chain ended."""
        deadline = time.monotonic() + seconds
        for look in count():
            if time.monotonic() > deadline:
                break
            if look % 20 == 0:  # it asks every process of the machine
                self.watch()
            if self.process.poll() is not None:
                return False
            if until():
                return True
            time.sleep(0.05)
        raise AssertionError(f"nothing came of it in {seconds} s: {self.tail()}")

    def kill(self) -> None:
        """As the out-of-memory killer would."""
        self.watch()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def survivors(self, seconds: float, expected: Set[str] = frozenset()) -> list[str]:
        """The processes of a chain that is gone which are still there after so many seconds, `expected` ones aside."""
        deadline = time.monotonic() + seconds
        while True:
            names = []
            for process in self.seen.values():
                with suppress(psutil.NoSuchProcess):
                    if process.status() != psutil.STATUS_ZOMBIE and process.name() not in expected:
                        names.append(process.name())
            if not names or time.monotonic() > deadline:
                return names
            time.sleep(0.5)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def outcomes(self) -> dict[str, str]:
        """Stage -> "up to date" or "done"."""
        return dict(re.findall(r"\[\d+/\d+\] ([\w ]+): (up to date|done)", self.log.read_text(errors="replace")))


TAKEN = list(range(1, 7))
RAYS_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They take about a minute to notice that their node is gone."""


@dataclass
class Interrupted:
    """One chain in three attempts: killed while sampling, while training, and once that had come to its end."""

    out: Path
    attempts: list[RunningChain]
    survivors: list[list[str]]
    """What a killed attempt had left when the next began."""
    sampled: list[dict[str, Any]]
    """The rows that the first attempt had saved."""


@pytest.fixture(scope="module")
def interrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    folder = tmp_path_factory.mktemp("chain")
    recipe = write_recipe(
        folder,
        world / "policy",
        # More than one shard of states to sample at.
        games={"counts": {"train": 60, "valid_seen": 3, "valid_unseen": 0}},
        overrides={"trainer.save_freq": 1, "trainer.test_freq": 3, "trainer.total_training_steps": 9},
    )
    out = folder / "out"
    first = RunningChain(recipe, out, folder / "first.log", "--steps", str(len(TAKEN)))
    attempts = [first]
    try:
        assert first.wait(lambda: bool(first_shard(out / "alternatives"))), first.tail()
        first.kill()
        survivors = [first.survivors(30, RAYS_AGENTS)]
        sampled = first_shard(out / "alternatives")

        second = RunningChain(recipe, out, folder / "second.log", "--steps", str(len(TAKEN)))
        attempts.append(second)
        work = out / "critic.work"
        saved, logged = work / "checkpoints" / "latest_checkpointed_iteration.txt", work / "metrics-0.jsonl"
        # verl writes a step's metrics after its checkpoint, so a kill between the two loses that line.
        assert second.wait(lambda: saved.exists() and '"step":1' in logged.read_text()), second.tail()
        second.kill()
        survivors.append(second.survivors(30, RAYS_AGENTS))

        third = RunningChain(recipe, out, folder / "third.log", "--steps", str(len(TAKEN)))
        attempts.append(third)
        # The stages after it run in test_quickstarts.py.
        assert third.wait((out / "critic" / "model").exists, seconds=1800), third.tail()
        assert third.wait(lambda: "critic" in third.outcomes()), third.tail()
        third.kill()
        survivors.append(third.survivors(30, RAYS_AGENTS))
        yield Interrupted(out, attempts, survivors, sampled)
    finally:
        for chain in attempts:
            chain.watch()
            for process in [chain.itself, *chain.seen.values()]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def test_a_killed_chain_goes_on_where_it_stopped(interrupted: Interrupted) -> None:
    first, second, third = (attempt.outcomes() for attempt in interrupted.attempts)
    assert first == {"games": "done", "expert train": "done", "expert valid_seen": "done"}
    assert second == {
        **dict.fromkeys(first, "up to date"),
        **dict.fromkeys(
            [
                "alternatives",
                "pairs train",
                "pairs valid_seen",
                "audit",
                "tasks train",
                "tasks eval",
                "evaluate initial",
            ],
            "done",
        ),
    }
    assert third == {**dict.fromkeys(second, "up to date"), "critic": "done"}


def test_a_killed_chain_leaves_no_process_behind(interrupted: Interrupted) -> None:
    """Those of a model at once, so that the next attempt has their memory; Ray's agents later."""
    assert interrupted.survivors == [[], [], []]
    assert [chain.survivors(90) for chain in interrupted.attempts] == [[], [], []]


def test_nothing_is_sampled_twice(interrupted: Interrupted) -> None:
    kept = interrupted.sampled
    rows = read_table(interrupted.out / "alternatives" / "alternatives.parquet", ALTERNATIVES).to_pylist()
    assert len(rows) > len(kept) == 256
    assert rows[: len(kept)] == kept
    log = interrupted.attempts[1].log.read_text()
    # What a progress bar shows first is where it begins.
    assert re.findall(r"sampling alternatives: +\d+%\|[^|]*\| (\d+)/", log)[0] == "256"


def test_the_critic_stage_goes_on_from_its_checkpoint(interrupted: Interrupted) -> None:
    critic = Trained(interrupted.out / "critic")
    # The killed attempt's last step may have left its checkpoint and not its metrics, which verl writes afterwards.
    logged = sorted(step for step in critic.metrics if step)
    assert {TAKEN[0], TAKEN[-1]} <= set(logged) <= set(TAKEN) and len(logged) >= len(TAKEN) - 1
    critic.check(logged, "act/alfworld/choice")
    log = (critic.output / "log.txt").read_text()
    assert re.search(r"Setting global step to [1-5]\b|Resuming from .*global_step_[1-5]\b", log), "it began anew"
    assert not (interrupted.out / "critic.work").exists()
