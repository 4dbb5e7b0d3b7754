"""A verl run as one stage: progress on the terminal, checkpoints to go on from, and at the end a model folder.

verl works in `<output>.work` (checkpoints, log, metrics). When it is done, `output` gets the exported model, the
metrics of all attempts as one file, and the log; a killed run leaves the work folder, from which verl resumes by
itself. `discard_work` deletes it once the stage is marked as done.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf
from tqdm import tqdm

from verl_act.chain.command_line import hydra_value
from verl_act.chain.stages import Stage
from verl_act.errors import ConfigError, DataError, EngineError
from verl_act.manifest import digest
from verl_act.merge_lora import merge_lora
from verl_act.names import one_line
from verl_act.output_folder import atomic_folder
from verl_act.process import dies_with_parent
from verl_act.text_files import read_json

logger = logging.getLogger(__name__)

_STEP = re.compile(r"\bstep:(\d+) - (.*)")
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
_LOST = "EngineDeadError"
"""After this a run takes no step any more and does not end: verl replaces failed rollouts for ever."""
_KILLED = "killed due to memory pressure (OOM)"
"""Ray's word of processes on one of its nodes, of this run or of another job. Where it was one that others of this run
wait for, they do so for ever; an environment's is replaced."""
_GRACE_SECONDS = 30.0
_RAYS_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They take a minute to notice that their node is gone, and hold nothing that anybody waits for."""
_STANDSTILL_SECONDS = 900.0
"""From a killed process on; a step that comes in this time shows that the run goes on."""


def train(stage: Stage) -> float:
    """Run verl to its last step and export the model; the seconds that this took, those of killed attempts with them.

    Raises `EngineError` with the end of the log where it fails.
    """
    work = stage.output.with_name(f"{stage.output.name}.work")
    _prepare(work, stage)
    if not _last_step_saved(work, stage.command):  # resumed there, verl would take one step more
        _run(work, stage)
    return _export(work, stage)


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
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
        what = f"failed with status {status}" if status else "left no exported model (is trainer.save_freq set?)"
        raise EngineError(f"stage {stage.name!r} {what}. The end of {log}:\n{tail}")


def _export(work: Path, stage: Stage) -> float:
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
    merge_lora(model.parent)
    with atomic_folder(stage.output, replace_any=True) as folder:
        shutil.copytree(model, folder / "model")
        (folder / "metrics.jsonl").write_text(metrics)
        shutil.copy(work / f"log-{attempts - 1}.txt", folder / "log.txt")
    exported, logged = _step_of(model), max((line["step"] for line in map(json.loads, metrics.splitlines())), default=0)
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
    asked = [word.partition("=")[2] for word in command if word.startswith("trainer.logger=")]
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
    wanted = [word.partition("=")[2] for word in command if word.startswith("trainer.total_training_steps=")]
    saved = work / "checkpoints" / "latest_checkpointed_iteration.txt"
    done = bool(wanted) and saved.is_file() and saved.read_text().strip() == wanted[-1]
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
        if saved := sorted((work / "checkpoints").glob("global_step_*"), key=_step_of):
            raise ConfigError(
                f"stage {stage.name!r} has checkpoints up to {saved[-1]} from another configuration or other data "
                f"({_changes(found, wanted)}). Give the former settings to go on from there, or delete {work} to start "
                "anew, or choose another --out."
            )
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(wanted))


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
    """Run `command` into `log`; the exit status. One bar shows the steps and the figures to watch."""
    with (
        log.open("w", buffering=1) as stream,  # each line at once, for who looks on
        tqdm(desc=f"{one_line(name)} (starting)", unit="step") as progress,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=dies_with_parent,
        ) as process,
    ):
        assert process.stdout is not None
        standstill: threading.Timer | None = None
        itself, seen = psutil.Process(process.pid), set[psutil.Process]()
        for line in process.stdout:
            stream.write(line)
            if _LOST in line:
                process.terminate()
            if _KILLED in line and standstill is None:
                standstill = threading.Timer(_STANDSTILL_SECONDS, process.terminate)
                standstill.start()
            if found := _STEP.search(line):
                with suppress(psutil.NoSuchProcess):
                    seen |= {*itself.children(recursive=True)}
                if standstill:
                    standstill.cancel()
                    standstill = None
                progress.set_description(one_line(name))
                progress.n = int(found[1])
                progress.set_postfix(_figures(found[2]))
        if standstill:
            standstill.cancel()
        status = process.wait()
        _end(seen)
        return status


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


def _figures(text: str) -> dict[str, str]:
    pairs = (entry.split(":", 1) for entry in text.split(" - ") if ":" in entry)
    found = {name: value.removeprefix("np.float64(").rstrip(")") for name, value in pairs}
    return {short: f"{float(found[name]):.3f}" for name, short in _SHOWN.items() if name in found}


def _merged_metrics(work: Path) -> str:
    """The metrics of all attempts, one line a step; of a step done again each figure is the last one."""
    by_step: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob("metrics-*.jsonl"), key=lambda path: int(path.stem.split("-")[1])):
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that a killed attempt was writing
            # verl logs what validation finds after a resume, and after an SFT step, in a line of its own.
            by_step.setdefault(entry["step"], {}).update(entry["data"])
    return "".join(json.dumps({"step": step, "data": by_step[step]}) + "\n" for step in sorted(by_step))


def _exported_models(checkpoints: Path) -> list[Path]:
    """Oldest first. The RL trainer keeps a folder for each of its models, the SFT trainer has one model."""
    found = [*checkpoints.glob("global_step_*/actor/huggingface"), *checkpoints.glob("global_step_*/huggingface")]
    return sorted(found, key=_step_of)


def _step_of(model: Path) -> int:
    """The step of a model below its `global_step_` folder."""
    return next(int(part.removeprefix("global_step_")) for part in model.parts[::-1] if part.startswith("global_step_"))
