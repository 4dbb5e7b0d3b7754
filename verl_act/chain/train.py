"""Run verl as one stage: progress on the terminal, checkpoints to resume from, and finally a model folder.

verl writes to `<output>.work` (checkpoints, log, metrics). When it is done, `output` gets the exported model, the
metrics of all attempts in one file, and the log. After a kill, the next attempt resumes from the newest complete
checkpoint in the work folder, which `discard_work` deletes once the stage is recorded as done.

Steps are read from verl's metrics file. The log may contain a model's replies, so only lines that start with the prefix
that Ray gives to a process count as events of Ray or vLLM.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import psutil
from tqdm import tqdm

from verl_act.chain.hydra_overrides import flat
from verl_act.chain.stages import TrainingStage
from verl_act.errors import ConfigError, DataError, EngineError
from verl_act.manifest import Manifest, digest, make_manifest, write_manifest
from verl_act.names import one_line
from verl_act.output_folder import atomic_folder, reserved
from verl_act.process import GRACE_SECONDS, dies_with_parent
from verl_act.run_folder import (
    ENTROPY,
    LOSS,
    RESPONSE_LENGTH,
    SCORE,
    TRAINING_LOG,
    TRAINING_METRICS,
    TrainingFolder,
    metrics_by_step,
)
from verl_act.text_files import read_json, write_json_lines
from verl_act.upstream_gaps.damaged_checkpoints import CONTENTS, TRACKER, checkpoints_in, exported_models, step_of, tidy
from verl_act.upstream_gaps.merge_lora import merge_lora

logger = logging.getLogger(__name__)

_PROGRESS_METRICS = {
    SCORE: "score",
    ENTROPY: "entropy",
    RESPONSE_LENGTH: "response_length",
    LOSS: "loss",
}
_MAY_CHANGE_ON_RESUME = re.compile(
    r".*(gpu_memory_utilization|micro_batch_size_per_gpu|max_token_len_per_gpu|max_num_seqs|max_num_batched_tokens"
    r"|_offload|enforce_eager|free_cache_engine|save_freq|test_freq|logger)"
)
"""Settings that may change on resume: they affect memory, speed and logging, not what is learned."""
_TOTAL_STEPS = "trainer.total_training_steps"
_MAX_CHANGES = 5
_LOG_TAIL_LINES = 40
_COLOR = r"(?:\x1b\[[\d;]*m)?"


def _ray_prefix(process: str) -> str:
    """Pattern of the prefix that Ray puts before each line of a process."""
    return rf"{_COLOR}\({process}(?: pid=\d+)?(?:, ip=[\w.:]+)?\){_COLOR} "


_ENGINE_DIED = re.compile(
    rf"{_ray_prefix('vLLMHttpServer')}(?:{_ray_prefix('EngineCore')})?"
    rf"{_COLOR}(?:ERROR [\d-]+ [\d:]+ \[[\w./]+:\d+\]{_COLOR} )?"
    r"(?:[\w.]+\.)?EngineDeadError: EngineCore encountered an issue"
    rf"|{_ray_prefix('AgentLoopWorker[A-Za-z]*')}(?:[\w.]+\.)?RayTaskError\(EngineDeadError\): ray::vLLMHttpServer\."
)
"""After this line a run makes no more steps but does not end, because verl retries failed rollouts forever. These
processes print no replies, unlike those of the reward and the trainer."""
_OUT_OF_MEMORY = re.compile(rf"{_ray_prefix('raylet')}.*killed due to memory pressure \(OOM\)")
"""Ray has killed processes on one of its nodes, of this run or of another job. The run may then wait for one of them
forever; an environment's process is restarted."""
_STEP = re.compile(rf"(?:{_ray_prefix('TaskRunner[A-Za-z0-9]*')})?step:(\d{{1,9}}) - ")
"""Used only if verl writes its metrics file on another machine."""
_TOTAL = re.compile(rf"{_ray_prefix('TaskRunner[A-Za-z0-9]*')}(?:INFO:\S+ \S+:)?Total training steps: (\d{{1,9}})$")
_PHASES = {
    "train and validate dataloader initialized": "loading the model",
    "actor and ref model engine initialized": "starting the engine",
    "all initialize finished, ready to fit": "first rollouts",
}
"""What verl logs -> what it does next, before the first step."""
_PHASE = re.compile(rf"{_ray_prefix('TaskRunner[A-Za-z0-9]*')}INFO:\S+ \S+:({'|'.join(_PHASES)})")
_POLL_SECONDS = 0.2
_RAY_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They take a minute to notice that their node has gone, and hold no resources."""
STANDSTILL_SECONDS = 900.0
"""Time after a killed process in which the run must complete a step; otherwise it is stopped."""


def train(stage: TrainingStage, manifest: Manifest | None = None) -> float:
    """Run verl to its last step and export the model. Returns the seconds of all attempts, including killed ones.

    `manifest` is the stage's; it is written to the output, with the seconds. Raises `EngineError` with the end of the
    log if verl fails, and `ConfigError` if the output is not from this stage or another process is writing it.
    """
    with reserved(stage.output, stage.name):
        _prepare(stage)
        tidy(stage.folder.checkpoints, _contents(stage), max_checkpoints(stage))
        if not _last_step_saved(stage):  # resumed from it, verl would train one step more
            _run(stage)
        return _export(stage, manifest or make_manifest(stage.name, settings={}))


def _run(stage: TrainingStage) -> None:
    """Run verl once, from the last checkpoint if there is one. Raises `EngineError` if it fails."""
    folder, attempt = stage.folder, stage.folder.attempts
    folder.started(attempt).touch()
    metrics, log = folder.metrics(attempt).absolute(), folder.log(attempt)
    environment = {
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "PYTHONUNBUFFERED": "1",
        "HYDRA_FULL_ERROR": "1",
    }
    further: dict[str, Any] = {
        "trainer.logger": _loggers(stage),
        "trainer.default_local_dir": str(folder.checkpoints),
    }
    if stage.trainer != "dpo":
        further["hydra.run.dir"] = str(folder.hydra)
    if stage.trainer == "ppo":  # workers of an existing Ray cluster do not inherit the environment
        further["++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"] = str(metrics)
    status = watch(stage, stage.argv(further), environment, log)
    if status or not exported_models(folder.checkpoints):
        tail = "\n".join(log.read_text(errors="replace", encoding="utf-8").splitlines()[-_LOG_TAIL_LINES:])
        taken, total = max(metrics_by_step(folder.attempts_metrics), default=0), stage.override(_TOTAL_STEPS)
        if status:
            what = f"failed with status {status}"
        elif total and taken < total:
            what = (
                f"ended after {taken} of {total} steps and had saved none, because its rows gave no more "
                "(trainer.total_epochs, data.train_batch_size; data.filter_overlong_prompts leaves some out); raise "
                "trainer.total_epochs or lower trainer.save_freq"
            )
        else:
            what = "left no exported model (is trainer.save_freq set?)"
        raise EngineError(f"stage {stage.name!r} {what}. The end of {log}:\n{tail}")


def _contents(stage: TrainingStage) -> list[str]:
    """Contents of this run's checkpoints: the stage's, or the default of this package's configurations."""
    keys = ("actor_rollout_ref.actor.checkpoint.save_contents", "checkpoint.save_contents")
    configured = stage.override(*keys)
    return list(configured) if isinstance(configured, list) else list(CONTENTS)


def max_checkpoints(stage: TrainingStage) -> int | None:
    """Number of checkpoints that verl keeps; None for all."""
    keys = ("trainer.max_actor_ckpt_to_keep", "trainer.max_ckpt_to_keep")
    return None if stage.sets_null(*keys) else stage.override(*keys) or 2


def _export(stage: TrainingStage, manifest: Manifest) -> float:
    """Write the last model, the metrics of all attempts and the last log to the stage's output.

    Returns the seconds of all attempts. Raises `DataError` where the disk is full.
    """
    trained = stage.folder
    seconds = sum(_duration(trained, attempt) for attempt in range(trained.attempts))
    model = exported_models(trained.checkpoints)[-1]
    metrics = metrics_by_step(trained.attempts_metrics)
    if not metrics:
        logger.warning(
            "%s: the run left no metrics in %s, so the report will have no curves. Did it run on a machine that does "
            "not share this folder?",
            stage.name,
            trained.work,
        )
    try:
        merge_lora(model.parent)
        with atomic_folder(stage.output) as folder:
            shutil.copytree(model, TrainingFolder(folder).model)
            lines = ({"step": step, "data": data} for step, data in metrics.items())
            write_json_lines(folder / TRAINING_METRICS, lines)
            shutil.copy(trained.log(trained.attempts - 1), folder / TRAINING_LOG)
            write_manifest(folder, replace(manifest, seconds=round(seconds, 1)))
    except DataError as error:
        raise DataError(f"{error} The trained model stays in {model}: the same command resumes there.") from error
    exported, logged = step_of(model), max(metrics, default=0)
    if exported < logged:
        logger.warning(
            "%s: the exported model is from step %d, but verl trained to step %d without saving. This happens if "
            "trainer.total_training_steps exceeds what trainer.total_epochs provides. Raise the epochs.",
            stage.name,
            exported,
            logged,
        )
    return seconds


def discard_work(stage: TrainingStage) -> None:
    """Delete the work folder of a finished stage. It is renamed first, so that a half deleted one is never resumed."""
    work = stage.folder.work
    trash = work.with_name(f"{work.name}.deleted")
    shutil.rmtree(trash, ignore_errors=True)
    if work.exists():
        os.replace(work, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _loggers(stage: TrainingStage) -> list[str]:
    """The loggers of the stage, and the two that the chain reads."""
    configured = stage.override("trainer.logger") or []
    loggers = list(configured) if isinstance(configured, list) else [str(configured)]
    return [*loggers, *(name for name in ("console", "file") if name not in loggers)]


def _duration(folder: TrainingFolder, attempt: int) -> float:
    """Seconds from an attempt's start to the last line of its log, which exist for a killed attempt too."""
    log = folder.log(attempt)
    return log.stat().st_mtime - folder.started(attempt).stat().st_mtime if log.exists() else 0.0


def _last_step_saved(stage: TrainingStage) -> bool:
    """Whether an earlier attempt has saved the stage's last step, and its model."""
    total, checkpoints = stage.override(_TOTAL_STEPS), stage.folder.checkpoints
    saved = checkpoints / TRACKER
    done = total is not None and saved.is_file() and saved.read_text(encoding="utf-8").strip() == str(total)
    return done and total in map(step_of, exported_models(checkpoints))


def _prepare(stage: TrainingStage) -> None:
    """Create the work folder, or clear it if it is from other settings or other input contents.

    Raises `ConfigError` if that would delete checkpoints.
    """
    work = stage.folder.work
    # A missing input is left for verl to report: it may not read it.
    inputs = {str(path): digest(path) for path in stage.inputs if path.exists()}
    recorded = stage.recorded()
    decisive = {key: value for key, value in recorded["overrides"].items() if not _MAY_CHANGE_ON_RESUME.fullmatch(key)}
    current = {"trainer": stage.trainer, "config": recorded["config"], "overrides": decisive, "inputs": inputs}
    stamp = stage.folder.stamp
    try:
        previous = read_json(stamp) if stamp.exists() else {}
        if not isinstance(previous, dict):
            raise DataError(f"{stamp}: is {type(previous).__name__}, not an object.")
    except DataError as error:
        raise DataError(f"{error} {work} cannot be resumed; delete that folder to start over.") from error
    if previous != current and work.exists():
        if saved := checkpoints_in(stage.folder.checkpoints):
            raise ConfigError(
                f"stage {stage.name!r} has checkpoints up to {saved[-1]} from another configuration or other data "
                f"({_changes(previous, current)}). Restore the earlier settings to resume, delete {work} to start "
                "over, or choose another --out."
            )
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(current), encoding="utf-8")


def _changes(previous: dict[str, Any], current: dict[str, Any]) -> str:
    """The differences between two stamps, as text."""
    before, now = flat(previous), flat(current)
    changes = [
        f"{key.removeprefix('inputs.')} has changed"
        if key.startswith("inputs.")
        else f"{key.removeprefix('overrides.')} was {brief(before.get(key))} and is {brief(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    return "; ".join([*changes[:_MAX_CHANGES], *(["..."] if len(changes) > _MAX_CHANGES else [])])


def watch(stage: TrainingStage, command: list[str], environment: dict[str, str], log: Path) -> int:
    """Run `command` with its output in `log` and a progress bar of steps, time and metrics; return its exit status."""
    title = one_line(stage.name)
    with (
        log.open("wb") as stream,
        tqdm(desc=f"{title} (starting)", unit="step", total=stage.override(_TOTAL_STEPS)) as progress,
        subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=dies_with_parent
        ) as process,
    ):
        run = _RunMonitor(process, log, Path(environment["VERL_FILE_LOGGER_PATH"]), progress, title)
        try:
            while (status := process.poll()) is None:
                run.update()
                time.sleep(_POLL_SECONDS)
            run.update()
        except Exception:  # such as a full disk; otherwise verl would continue unmonitored
            process.terminate()
            raise
    _wait_and_kill(run.processes)
    return status


class _RunMonitor:
    """Follows a running verl: shows its steps on the progress bar, and stops it after events that make it hang."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, metrics: Path, progress: tqdm[Any], name: str
    ) -> None:
        self._process, self._progress, self._name = process, progress, name
        self._log, self._metrics = _Tail(log), _Tail(metrics)
        self._step: int | None = None
        self._killed: float | None = None
        """When Ray reported a killed process; None once a step was completed after it."""
        self.processes: set[psutil.Process] = set()

    def update(self) -> None:
        for line in self._log.lines():
            if _ENGINE_DIED.match(line):
                self._process.terminate()
            elif _OUT_OF_MEMORY.match(line):
                self._killed = self._killed or time.monotonic()
            elif self._step is None and (match := _TOTAL.match(line)):
                self._progress.total = self._progress.total or int(match[1])
            elif self._step is None and (match := _PHASE.match(line)):
                self._progress.set_description(f"{self._name} ({_PHASES[match[1]]})")
            elif not self._metrics.path.exists() and (step := _STEP.match(line)):
                self._advance(int(step[1]), {})
        for line in self._metrics.lines():
            with suppress(ValueError, KeyError, TypeError):  # not a line of verl
                entry = json.loads(line)
                self._advance(int(entry["step"]), dict(entry["data"]))
        if self._killed is not None and time.monotonic() > self._killed + STANDSTILL_SECONDS:
            self._process.terminate()

    def _advance(self, step: int, metrics: dict[str, Any]) -> None:
        with suppress(psutil.NoSuchProcess):
            self.processes |= {*psutil.Process(self._process.pid).children(recursive=True)}
        self._killed = None
        if self._step is None:  # estimate the time left from here, without the start of the engines
            self._progress.set_description(self._name)
            self._progress.initial, self._progress.start_t = step, time.time()
        self._step = self._progress.n = step
        postfix = {
            short: metrics[name]
            for name, short in _PROGRESS_METRICS.items()
            if isinstance(metrics.get(name), int | float)
        }
        self._progress.set_postfix({short: f"{value:.3f}" for short, value in postfix.items()})


class _Tail:
    """Reads complete lines added to a file since the last read. Only a newline ends one: replies may hold others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._rest = b""

    def lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            read = file.read()
        self._position += len(read)
        *complete, self._rest = (self._rest + read).split(b"\n")
        return [line.decode(errors="replace") for line in complete]


def _wait_and_kill(processes: set[psutil.Process]) -> None:
    """Wait for a run's processes to end, then kill those left: the next stage needs the accelerators' memory.

    Ray does not wait for its workers, and vLLM's engine does not notice that they have gone.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while (alive := list(filter(_is_running, processes))) and time.monotonic() < deadline:
        if {_name(process) for process in alive} <= _RAY_AGENTS:
            break
        time.sleep(0.2)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _name(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def _is_running(process: psutil.Process) -> bool:
    """False for a zombie too, as it remains in a container without an init process."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
