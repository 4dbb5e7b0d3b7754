"""A training stage with scripts in the place of verl: how it is started, watched, ended, resumed and exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from recipe_stages import training
from script_stages import trainer
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from verl_act.chain import load_recipe
from verl_act.chain import train as train_module
from verl_act.chain.stages import TrainingStage
from verl_act.chain.train import train
from verl_act.errors import ConfigError, DataError, EngineError
from verl_act.manifest import make_manifest, write_manifest

SAVES = """
import json, pathlib, struct, sys, time, zipfile

def save(folder, step):
    checkpoint = pathlib.Path(folder, f"global_step_{step}")
    export = checkpoint / "huggingface"
    export.mkdir(parents=True)
    for name in ("model", "optim", "extra_state"):
        with zipfile.ZipFile(checkpoint / f"{name}_world_size_1_rank_0.pt", "w") as archive:
            archive.writestr("it/data.pkl", name)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (checkpoint / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    with zipfile.ZipFile(checkpoint / "data_0.pt", "w") as archive:
        archive.writestr("it/data.pkl", "loader")
    pathlib.Path(folder, "latest_checkpointed_iteration.txt").write_text(str(step))
    return export
"""
"""A checkpoint with the names of verl's SFT trainer."""
TRAINER = """
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
saved = pathlib.Path(folder, "latest_checkpointed_iteration.txt")
taken = int(saved.read_text()) if saved.exists() else 0
(save(folder, taken + 1) / "steps").write_text(str(taken + 1))
sys.exit(taken + 1 < 3)
"""
"""Stands where verl would: takes one step, goes on from its checkpoints, and dies before the third."""


def test_checkpoints_of_other_data_are_neither_gone_on_from_nor_lost(tmp_path: Path) -> None:
    data = tmp_path / "pairs.parquet"
    data.write_text("first")
    stage = trainer("critic", SAVES + TRAINER, tmp_path / "critic", [data, tmp_path / "gone"])

    def attempt(**overrides: Any) -> int:
        with pytest.raises(EngineError, match=r"'critic' .*status 1"):
            train(replace(stage, overrides=overrides))
        return len(list((tmp_path / "critic.work" / "checkpoints").glob("global_step_*")))

    assert attempt() == 1
    data.write_text("other")
    with pytest.raises(ConfigError, match=rf"global_step_1 .*{data} has changed.* delete .*critic\.work"):
        train(stage)
    data.write_text("first")
    with pytest.raises(ConfigError, match=r"actor\.lr was None and is 2"):
        train(replace(stage, overrides={"actor.lr": 2}))
    assert attempt(**{"actor_rollout_ref.rollout.gpu_memory_utilization": 0.4}) == 2, "it goes on"
    shutil.rmtree(tmp_path / "critic.work")
    assert [attempt(), attempt()] == [1, 2], "it begins anew, then goes on"
    train(stage)
    assert (stage.output / "model" / "steps").read_text() == "3"


ENDS_EARLY = """
import os, pathlib
pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"]).write_text('{"step": 1, "data": {}}\\n')
"""
"""Stands where verl would: its rows give one step, and it saves every twenty."""


def test_rows_for_fewer_steps_than_asked_for_are_named(tmp_path: Path) -> None:
    asked = {"trainer.total_training_steps": 2}
    with pytest.raises(EngineError, match=r"after 1 of 2 steps .* raise trainer\.total_epochs"):
        train(trainer("critic", ENDS_EARLY, tmp_path / "critic", overrides=asked))
    with pytest.raises(EngineError, match=r"save_freq set"):
        train(trainer("action", ENDS_EARLY, tmp_path / "action"))


MEGATRON = """
import pathlib, sys
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
for step in (8, 10):
    export = pathlib.Path(folder, f"global_step_{step}", "actor", "model", "huggingface")
    export.mkdir(parents=True)
    (export / "config.json").write_text(str(step))
"""


def test_the_last_export_of_megatron_becomes_the_model(tmp_path: Path) -> None:
    stage = trainer("critic", MEGATRON, tmp_path / "critic")
    train(stage)
    assert (stage.folder.model / "config.json").read_text() == "10"


LEAVES_ITS_ENGINE = """
import os, pathlib, subprocess, sys, time
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **quiet)
pathlib.Path(folder, "global_step_1", "huggingface").mkdir(parents=True)
pathlib.Path(folder, "..", "..", "engine").write_text(str(engine.pid))
metrics = pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"])
metrics.write_text('{"step": 1, "data": {"actor/entropy": 0.5}}\\n')
time.sleep(1)
"""
"""Stands where verl would: takes a step and ends, and a process of its own goes on."""


def test_what_a_run_leaves_is_ended_before_the_next_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "GRACE_SECONDS", 0.5)
    stage = trainer("critic", LEAVES_ITS_ENGINE, tmp_path / "critic")
    train(stage)
    engine = int((tmp_path / "engine").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(engine) and psutil.Process(engine).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine of a run that is over still holds its memory"
        time.sleep(0.05)


KILLED_AT_ITS_END = """
(folder,) = (word.partition("=")[2].strip('"') for word in sys.argv if word.startswith("trainer.default_local_dir="))
save(folder, len(list(pathlib.Path(folder).glob("global_step_*"))) + 3)
time.sleep(1)
print("saved", flush=True)
sys.exit(137)
"""
"""Stands where verl would: saves its last step and is killed before it ends; started again, it would take another."""


def test_a_run_killed_after_its_last_checkpoint_takes_no_step_more(tmp_path: Path) -> None:
    steps = {"trainer.total_training_steps": 3}
    stage = trainer("critic", SAVES + KILLED_AT_ITS_END, tmp_path / "critic", overrides=steps)
    with pytest.raises(EngineError, match="status 137"):
        train(stage)
    seconds = train(stage)
    assert 0.9 < seconds < 60, "of the attempt that was killed"
    assert (stage.output / "model").is_dir() and (stage.output / "log.txt").read_text() == "saved\n"


def verl_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, metrics: str = "", *changes: str
) -> tuple[list[str], Path]:
    """Train the quickstart's critic below `folder`, with a stand-in for verl; the command, and the metrics' file."""
    stage = training(load_recipe("alfworld/quickstart", changes), folder)["critic"]
    seen: list[tuple[list[str], Path]] = []

    def verl(stage: TrainingStage, command: list[str], environment: dict[str, str], log: Path) -> int:
        seen.append((command, Path(environment["VERL_FILE_LOGGER_PATH"])))
        seen[0][1].write_text(metrics)
        log.write_text("")
        (log.parent / "checkpoints" / "global_step_1" / "actor" / "huggingface").mkdir(parents=True)
        return 0

    monkeypatch.setattr("verl_act.chain.train.watch", verl)
    train(stage)
    return seen[0]


OUT_OF_MEMORY = (
    "\x1b[33m(raylet)\x1b[0m 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed"
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "said",
    [
        "\x1b[36m(vLLMHttpServer pid=7)\x1b[0m ERROR 11-30 03:14:43 [async_llm.py:744] "
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)",
        "(AgentLoopWorkerTQ pid=7, ip=10.0.0.2) ray.exceptions.RayTaskError(EngineDeadError): "
        "ray::vLLMHttpServer.generate() (pid=8)",
        OUT_OF_MEMORY,
    ],
)
def test_a_run_that_has_lost_a_part_is_ended(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run would wait for ever. Why it was ended stands at the end of its log, which the error shows."""
    monkeypatch.setattr("verl_act.chain.train.STANDSTILL_SECONDS", 1.0)
    code = f"import time; print({said!r}, flush=True); time.sleep(600)"
    stage = trainer("critic", code, tmp_path / "critic")
    with pytest.raises(EngineError, match=rf"'critic' .*status -15(.|\n)*{re.escape(said)}"):
        train(stage)


def test_a_run_that_goes_on_after_a_kill_for_memory_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment's process, which the pool replaces, or another job's on the same cluster."""
    monkeypatch.setattr("verl_act.chain.train.STANDSTILL_SECONDS", 2.0)
    step = """pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"]).write_text('{"step": 1, "data": {"a": 1}}\\n')"""
    shared = f"import os, pathlib, time; print({OUT_OF_MEMORY!r}, flush=True); {step}; time.sleep(4)"
    line = "(TaskRunnerV1 pid=7) step:1 - a:1"
    elsewhere = f"import time; print({OUT_OF_MEMORY!r}, flush=True); print({line!r}, flush=True); time.sleep(4)"
    for code in (shared, elsewhere):
        stage = trainer("critic", code, tmp_path / "critic")
        with pytest.raises(EngineError, match=r"trainer.save_freq"):
            train(stage)


QUOTED = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."


@pytest.mark.timeout(60)
def test_what_a_reply_quotes_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_act.chain.train.STANDSTILL_SECONDS", 0.5)
    replies = [
        QUOTED,
        f"(TaskRunnerV1 pid=7) {QUOTED}",
        f"(RewardLoopWorker pid=7) [response] (vLLMHttpServer pid=7) {QUOTED}",
        f"(RewardLoopWorker pid=7) a\r(vLLMHttpServer pid=7) {QUOTED}",
        f"(RewardLoopWorker pid=7) a\u2028(vLLMHttpServer pid=7) {QUOTED}",
        f"(TaskRunnerV1 pid=7) {OUT_OF_MEMORY}",
        *("step:1 - a:b:c - critic/score/mean:odd", "step:99999999999999999999 - ", "step:x - critic/score/mean:1"),
    ]
    metrics = ["[1]", "{", "null", '{"step": "x", "data": 1}', '{"step": 2, "data": {"critic/score/mean": "odd"}}']
    code = (
        f"import os, pathlib, time; print({chr(10).join(replies)!r}, flush=True);"
        f"pathlib.Path(os.environ['VERL_FILE_LOGGER_PATH']).write_text({chr(10).join([*metrics, ''])!r}); time.sleep(2)"
    )
    stage = trainer("critic", code, tmp_path / "critic")
    with pytest.raises(EngineError, match=r"trainer.save_freq"):
        train(stage)


def test_the_bar_shows_what_verl_does_before_the_first_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import time
for event in (
    "train and validate dataloader initialized, train dataset size: 40",
    "actor and ref model engine initialized",
    "all initialize finished, ready to fit",
):
    print(f"(TaskRunnerV1 pid=7) INFO:2026-11-30 03:14:43,839:{event}", flush=True)
    time.sleep(0.5)
"""
    with pytest.raises(EngineError, match=r"trainer.save_freq"):
        train(trainer("critic", code, tmp_path / "critic"))
    shown = re.findall(r"critic \((.*?)\)", capfd.readouterr().err)
    assert list(dict.fromkeys(shown)) == ["starting", "loading the model", "starting the engine", "first rollouts"]


def test_the_bar_shows_all_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step = """path.write_text('{"step": 3, "data": {"critic/score/mean": 0.25}}\\n')"""
    code = f"""
import os, pathlib, time
path = pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"])
print("(TaskRunnerV1 pid=7) INFO:2026-11-30 03:14:43,839:Total training steps: 6", flush=True)
time.sleep(0.5)
{step}
time.sleep(0.5)
"""
    stage = trainer("critic", code, tmp_path / "critic")
    with pytest.raises(EngineError, match=r"trainer.save_freq"):
        train(stage)
    assert re.search(r"critic: +50%.*3/6 .*score=0\.250", capfd.readouterr().err)


def test_a_recipes_own_loggers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "training.critic.overrides.trainer.logger=[wandb, console]"
    for changes, loggers in (([], '["console","file"]'), ([own], '["wandb","console","file"]')):
        command, _ = verl_runs(tmp_path / str(len(changes)), monkeypatch, "", *changes)
        assert f"trainer.logger={loggers}" in [word.replace(" ", "") for word in command]


def test_a_model_older_than_the_last_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verl_runs(tmp_path / "whole", monkeypatch, '{"step": 1, "data": {}}\n')
    assert not caplog.text
    verl_runs(tmp_path / "short", monkeypatch, '{"step": 1, "data": {}}\n{"step": 3, "data": {}}\n')
    assert "the exported model is from step 1, but verl trained to step 3" in caplog.text


def test_figures_of_one_step_in_several_lines_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": 1, "data": {"train/loss": 2.0, "val/loss": 3.0}}, {"step": 1, "data": {"val/loss": 4.0}}]
    verl_runs(tmp_path, monkeypatch, "".join(json.dumps(line) + "\n" for line in lines))
    (kept,) = map(json.loads, (tmp_path / "critic" / "metrics.jsonl").read_text().splitlines())
    assert kept == {"step": 1, "data": {"train/loss": 2.0, "val/loss": 4.0}}


@pytest.mark.parametrize("name", ["lr=1e-5", "runs (1)", "a,b", "José"])
def test_any_folder_can_be_the_output(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, metrics = verl_runs(tmp_path / name, monkeypatch)
    overrides = command[command.index("verl.trainer.main_ppo") + 1 :]
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides, return_hydra_config=True)
    work = tmp_path / name / "critic.work"
    assert config.trainer.default_local_dir == str(work / "checkpoints")
    assert config.hydra.run.dir == str(work / "hydra")
    assert config.data.train_files[0].startswith(str(tmp_path / name))
    # As `run_ppo` makes the environment of Ray's workers, also those of a cluster that runs already.
    merged = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.get("runtime_env", {}))
    assert str(metrics) == merged.env_vars.VERL_FILE_LOGGER_PATH
    assert "NCCL_DEBUG" in merged.env_vars or "NCCL_DEBUG" in os.environ
    assert metrics.is_absolute() and metrics.parent == work


def test_a_run_without_metrics_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verl_runs(tmp_path / "with", monkeypatch, '{"step": 1, "data": {}}\n')
    assert not caplog.text
    verl_runs(tmp_path / "without", monkeypatch)
    assert "critic: the run left no metrics" in caplog.text


def test_the_output_of_another_stage_is_not_trained_over(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest("evaluate", settings={}))
    with pytest.raises(ConfigError, match="'evaluate'"):
        train(trainer("critic", "", tmp_path))


def test_a_full_disk_at_the_export_loses_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = SAVES + TRAINER.replace("sys.exit(taken + 1 < 3)", "print('a log')")
    stage = trainer("critic", code, tmp_path / "critic", overrides={"trainer.total_training_steps": 1})

    def full(*_: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", full)
        with pytest.raises(DataError, match=f"{stage.output}.*critic.work"):
            train(stage)
    assert not stage.output.exists()
    train(stage)
    assert (stage.output / "model" / "steps").read_text() == "1" and (stage.output / "log.txt").read_text() == "a log\n"
