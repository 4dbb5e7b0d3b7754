"""A verl run as one stage: progress on the terminal, checkpoints to go on from, and at the end a model folder.

verl works in `<output>.work` (checkpoints, log, metrics). When it is done, `output` gets the exported model, the
metrics of all attempts as one file, and the log; a killed run leaves the work folder, from whose newest whole
checkpoint the next attempt resumes. `discard_work` deletes it once the stage is marked as done.

Steps are read from verl's metrics file. Nothing is concluded from text of the log that a model's reply may contain: an
event is a line of Ray's or vLLM's own, with the prefix that Ray gives to each line of a process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf
from tqdm import tqdm

from verl_act.chain.command_line import hydra_value
from verl_act.chain.stages import Stage
from verl_act.errors import ConfigError, DataError, EngineError
from verl_act.manifest import Manifest, digest, make_manifest, write_manifest
from verl_act.names import one_line
from verl_act.output_folder import atomic_folder, reserved
from verl_act.process import dies_with_parent
from verl_act.text_files import read_json
from verl_act.upstream_gaps.damaged_checkpoints import CONTENTS, TRACKER, step_of, tidy
from verl_act.upstream_gaps.merge_lora import merge_lora

logger = logging.getLogger(__name__)

_SHOWN = {
    "critic/score/mean": "score",
    "actor/entropy": "entropy",
    "response_length/mean": "response_length",
    "train/loss": "loss",
}
_HOW = re.compile(
    r"(gpu_memory_utilization|micro_batch_size_per_gpu|max_token_len_per_gpu|max_num_seqs|max_num_batched_tokens"
    r"|\w+_offload|enforce_eager|free_cache_engine|save_freq|test_freq|logger)="
)
"""Settings that decide what a run takes or tells, not what it learns: it may go on with others after it was killed."""
_CHANGES = 5
_TAIL = 40
_COLOR = r"(?:\x1b\[[\d;]*m)?"


def _of(process: str) -> str:
    """A pattern of the prefix that Ray gives to each line of a process."""
    return rf"{_COLOR}\({process}(?: pid=\d+)?(?:, ip=[\w.:]+)?\){_COLOR} "


_LOST = re.compile(
    rf"{_of('vLLMHttpServer')}(?:{_of('EngineCore')})?{_COLOR}(?:ERROR [\d-]+ [\d:]+ \[[\w./]+:\d+\]{_COLOR} )?"
    r"(?:[\w.]+\.)?EngineDeadError: EngineCore encountered an issue"
    rf"|{_of('AgentLoopWorker[A-Za-z]*')}(?:[\w.]+\.)?RayTaskError\(EngineDeadError\): ray::vLLMHttpServer\."
)
"""After this a run takes no step any more and does not end: verl replaces failed rollouts for ever. These processes
print no replies, as those of the reward and the trainer do."""
_KILLED = re.compile(rf"{_of('raylet')}.*killed due to memory pressure \(OOM\)")
"""Ray's word of processes on one of its nodes, of this run or of another job. Where it was one that others of this run
wait for, they do so for ever; an environment's is replaced."""
_STEP = re.compile(rf"(?:{_of('TaskRunner[A-Za-z0-9]*')})?step:(\d{{1,9}}) - ")
"""Read only where verl's metrics file is on another machine."""
_TOTAL = re.compile(rf"{_of('TaskRunner[A-Za-z0-9]*')}(?:INFO:\S+ \S+:)?Total training steps: (\d{{1,9}})$")
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0
_RAYS_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They take a minute to notice that their node is gone, and hold nothing that anybody waits for."""
_STANDSTILL_SECONDS = 900.0
"""From a killed process on; a step that comes in this time shows that the run goes on."""


def train(stage: Stage, manifest: Manifest | None = None) -> float:
    """Run verl to its last step and export the model; the seconds that this took, those of killed attempts with them.

    `manifest` is that of the stage; the output gets it, with the seconds. Raises `EngineError` with the end of the log
    where it fails, and `ConfigError` where the output is not of this stage, or another process is writing it.
    """
    work = stage.output.with_name(f"{stage.output.name}.work")
    with reserved(stage.output, stage.name):
        _prepare(work, stage)
        tidy(work / "checkpoints", _contents(stage.command), _kept(stage.command))
        if not _last_step_saved(work, stage.command):  # resumed there, verl would take one step more
            _run(work, stage)
        return _export(work, stage, manifest or make_manifest(stage.name, settings={}))


def _run(work: Path, stage: Stage) -> None:
    """One attempt of verl, in `work`: from its last checkpoint, if there is one, to the end."""
    attempt = _attempts(work)
    (work / f"started-{attempt}").touch()
    environment = {
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str((work / f"metrics-{attempt}.jsonl").absolute()),
        "PYTHONUNBUFFERED": "1",
        "HYDRA_FULL_ERROR": "1",
    }
    command = [
        *stage.command,
        f"trainer.logger={hydra_value(_loggers(stage.command))}",
        f"trainer.default_local_dir={hydra_value(str(work / 'checkpoints'))}",
        f"hydra.run.dir={hydra_value(str(work / 'hydra'))}",
    ]
    if "verl.trainer.main_ppo" in command:  # on a Ray cluster that runs already, its workers have another environment
        path = hydra_value(environment["VERL_FILE_LOGGER_PATH"])
        command.append(f"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={path}")
    log = work / f"log-{attempt}.txt"
    status = _watch(command, environment, log, stage.name)
    if status or not _exported_models(work / "checkpoints"):
        tail = "\n".join(log.read_text(errors="replace", encoding="utf-8").splitlines()[-_TAIL:])
        what = f"failed with status {status}" if status else "left no exported model (is trainer.save_freq set?)"
        raise EngineError(f"stage {stage.name!r} {what}. The end of {log}:\n{tail}")


def _contents(command: Sequence[str]) -> list[str]:
    """What a checkpoint of this run holds: as the command says, or our configurations."""
    own = _values(command, "actor_rollout_ref.actor.checkpoint.save_contents", "checkpoint.save_contents")
    return list(OmegaConf.create(own[-1])) if own and own[-1].startswith("[") else list(CONTENTS)


def _kept(command: Sequence[str]) -> int | None:
    """How many checkpoints verl keeps; None for all."""
    kept = ["2", *_values(command, "trainer.max_actor_ckpt_to_keep", "trainer.max_ckpt_to_keep")][-1]
    return max(1, int(kept)) if kept.isdecimal() else None


def _values(command: Sequence[str], *keys: str) -> list[str]:
    """What the words KEY=VALUE of the command say for these keys."""
    split = (word.lstrip("+").partition("=") for word in command)
    return [value for key, _, value in split if key in keys]


def _export(work: Path, stage: Stage, manifest: Manifest) -> float:
    """Put the last model, the metrics of all attempts and the last one's log into the stage's output; the seconds of
    all attempts.
    """
    attempts = _attempts(work)
    seconds = sum(_lasted(work, number) for number in range(attempts))
    model = _exported_models(work / "checkpoints")[-1]
    metrics = _merged_metrics(work)
    if not metrics:
        logger.warning(
            "%s: the run left no metrics in %s, and the report will have no curves. Did it run on a machine that does "
            "not share this folder?",
            stage.name,
            work,
        )
    try:
        merge_lora(model.parent)
        with atomic_folder(stage.output) as folder:
            shutil.copytree(model, folder / "model")
            (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
            shutil.copy(work / f"log-{attempts - 1}.txt", folder / "log.txt")
            write_manifest(folder, replace(manifest, seconds=round(seconds, 1)))
    except DataError as error:
        raise DataError(f"{error} The trained model stays in {model}: the same command resumes there.") from error
    exported, logged = step_of(model), max((line["step"] for line in map(json.loads, metrics.splitlines())), default=0)
    if exported < logged:
        logger.warning(
            "%s: the model is that of step %d, and verl trained to step %d without saving it, as it does where "
            "trainer.total_training_steps asks for more than trainer.total_epochs give. Raise the epochs.",
            stage.name,
            exported,
            logged,
        )
    return seconds


def discard_work(stage: Stage) -> None:
    """Delete what is left of a finished stage's run. Half deleted, it must not be taken for one to go on from."""
    work = stage.output.with_name(f"{stage.output.name}.work")
    trash = work.with_name(f"{work.name}.deleted")
    shutil.rmtree(trash, ignore_errors=True)
    if work.exists():
        os.replace(work, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _loggers(command: Sequence[str]) -> list[str]:
    """Those that the command asks for, and the two that the chain reads."""
    asked = _values(command, "trainer.logger")
    wanted = OmegaConf.to_container(OmegaConf.create(asked[-1])) if asked else []
    own = list(wanted) if isinstance(wanted, list) else [str(wanted)]
    return [*own, *(name for name in ("console", "file") if name not in own)]


def _attempts(work: Path) -> int:
    return len(list(work.glob("started-*")))


def _lasted(work: Path, attempt: int) -> float:
    """Seconds from an attempt's start to the last line of its log: a killed one could not write them down."""
    log = work / f"log-{attempt}.txt"
    return log.stat().st_mtime - (work / f"started-{attempt}").stat().st_mtime if log.exists() else 0.0


def _last_step_saved(work: Path, command: Sequence[str]) -> bool:
    """Whether a killed attempt had saved the last step that the command asks for, and its model."""
    wanted = _values(command, "trainer.total_training_steps")
    saved = work / "checkpoints" / TRACKER
    done = bool(wanted) and saved.is_file() and saved.read_text(encoding="utf-8").strip() == wanted[-1]
    return done and any(f"global_step_{wanted[-1]}" in path.parts for path in _exported_models(work / "checkpoints"))


def _prepare(work: Path, stage: Stage) -> None:
    """Leave in `work` only what an attempt with these arguments and these contents of its inputs has left there.

    Raises `ConfigError` where checkpoints of another attempt would be lost.
    """
    # A missing input is verl's to report: the command need not read it.
    inputs = {str(path): digest(path) for path in stage.inputs if path.exists()}
    wanted = {"arguments": [word for word in stage.command[1:] if not _HOW.search(word)], "inputs": inputs}
    stamp = work / "stage.json"
    try:
        found = read_json(stamp) if stamp.exists() else {}
        if not isinstance(found, dict):
            raise DataError(f"{stamp}: is {type(found).__name__}, not an object.")
    except DataError as error:
        raise DataError(f"{error} What is in {work} cannot be resumed; delete that folder to start anew.") from error
    if found != wanted and work.exists():
        if saved := sorted((work / "checkpoints").glob("global_step_*"), key=step_of):
            raise ConfigError(
                f"stage {stage.name!r} has checkpoints up to {saved[-1]} from another configuration or other data "
                f"({_changes(found, wanted)}). Give the former settings to go on from there, or delete {work} to start "
                "anew, or choose another --out."
            )
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(wanted), encoding="utf-8")


def _changes(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two stamps."""
    before, now = found.get("arguments", []), wanted["arguments"]
    inputs = found.get("inputs", {})
    changes = [
        *(f"now {word}" for word in now if word not in before),
        *(f"then {word}" for word in before if word not in now),
        *(f"{path} has changed" for path, digest_then in inputs.items() if wanted["inputs"].get(path) != digest_then),
    ]
    return "; ".join([*changes[:_CHANGES], *(["..."] if len(changes) > _CHANGES else [])]) or "their order"


def _watch(command: list[str], environment: dict[str, str], log: Path, name: str) -> int:
    """Run `command` into `log`; the exit status. One bar shows the steps, the time left and the figures to watch."""
    total = _values(command, "trainer.total_training_steps")[-1:]
    with (
        log.open("wb") as stream,
        tqdm(desc=f"{one_line(name)} (starting)", unit="step", total=_number(*total)) as progress,
        subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=dies_with_parent
        ) as process,
    ):
        run = _Run(process, log, Path(environment["VERL_FILE_LOGGER_PATH"]), progress, name)
        try:
            while (status := process.poll()) is None:
                run.look()
                time.sleep(_POLL_SECONDS)
            run.look()
        except Exception:  # such as a disk that takes no more; verl would train on, unwatched
            process.terminate()
            raise
    _end(run.seen)
    return status


class _Run:
    """What is seen of a running verl: its steps, on the bar, and events after which it would wait for ever."""

    def __init__(self, process: subprocess.Popen, log: Path, metrics: Path, progress: tqdm, name: str) -> None:
        self._process, self._progress, self._name = process, progress, name
        self._log, self._metrics = _Tail(log), _Tail(metrics)
        self._step: int | None = None
        self._killed: float | None = None
        """When Ray said that it has killed a process; None once a step came after it."""
        self.seen: set[psutil.Process] = set()

    def look(self) -> None:
        for line in self._log.lines():
            if _LOST.match(line):
                self._process.terminate()
            elif _KILLED.match(line):
                self._killed = self._killed or time.monotonic()
            elif self._step is None and (told := _TOTAL.match(line)):
                self._progress.total = self._progress.total or int(told[1])
            elif not self._metrics.path.exists() and (step := _STEP.match(line)):
                self._advance(int(step[1]), {})
        for line in self._metrics.lines():
            with suppress(ValueError, KeyError, TypeError):  # not a line of verl's
                entry = json.loads(line)
                self._advance(int(entry["step"]), dict(entry["data"]))
        if self._killed is not None and time.monotonic() > self._killed + _STANDSTILL_SECONDS:
            self._process.terminate()

    def _advance(self, step: int, figures: dict[str, Any]) -> None:
        with suppress(psutil.NoSuchProcess):
            self.seen |= {*psutil.Process(self._process.pid).children(recursive=True)}
        self._killed = None
        if self._step is None:  # the time left is reckoned from here, not from the start of engines
            self._progress.set_description(one_line(self._name))
            self._progress.initial, self._progress.start_t = step, time.time()
        self._step = self._progress.n = step
        shown = {short: figures[name] for name, short in _SHOWN.items() if isinstance(figures.get(name), int | float)}
        self._progress.set_postfix({short: f"{value:.3f}" for short, value in shown.items()})


class _Tail:
    """What a file has got since it was last read, in whole lines. Only a newline ends one: a reply may hold others."""

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
        *whole, self._rest = (self._rest + read).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


def _number(text: str = "") -> int | None:
    return int(text) if text.isdecimal() else None


def _end(processes: set[psutil.Process]) -> None:
    """Wait for what a run has started to end, and then kill it: the next stage wants the memory of its accelerators.

    Ray does not wait for its workers, and vLLM's engine does not notice that they are gone.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    while (alive := list(filter(_runs, processes))) and time.monotonic() < deadline:
        if {_name(process) for process in alive} <= _RAYS_AGENTS:
            break
        time.sleep(0.2)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _name(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def _runs(process: psutil.Process) -> bool:
    """Not so a process that has ended and that nobody has asked about, as in a container without an init."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _merged_metrics(work: Path) -> str:
    """The metrics of all attempts, one line a step; of a step done again each figure is the last one."""
    by_step: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob("metrics-*.jsonl"), key=lambda path: int(path.stem.split("-")[1])):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the line that a killed attempt was writing
                entry = json.loads(line)
                # verl logs what validation finds after a resume, and after an SFT step, in a line of its own.
                by_step.setdefault(int(entry["step"]), {}).update(entry["data"])
    return "".join(json.dumps({"step": step, "data": by_step[step]}) + "\n" for step in sorted(by_step))


def _exported_models(checkpoints: Path) -> list[Path]:
    """Oldest first. The RL trainer keeps a folder for each of its models, the SFT trainer has one model."""
    found = [*checkpoints.glob("global_step_*/actor/huggingface"), *checkpoints.glob("global_step_*/huggingface")]
    return sorted(found, key=step_of)
