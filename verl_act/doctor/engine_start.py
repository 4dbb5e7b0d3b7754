"""Checks that a vLLM engine starts on this machine and answers; on one device, if it has several."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from verl_act.envs.base import ASSETS
from verl_act.errors import EngineError, InstallationError
from verl_act.preflight.software import vllm_is_cpu_build

_QUESTION = "You are in the middle of a room. Your task is to: look at bowl under the desklamp."
_ONE_GPU = {"data_parallel_size": 1, "enforce_eager": True, "gpu_memory_utilization": 0.1}
"""The model is not compiled and no graph captured, which takes minutes; room beside a program that uses the GPU."""


def engine_start(seconds: float | None = None) -> str:
    """Start a vLLM engine with the embedded model and get one reply, in a subprocess because vLLM writes to stdout.

    Fails after `seconds`. The default is 180 on a CPU, where the engine is ready within a minute on two busy cores, and
    600 elsewhere: the first start compiles kernels.
    """
    seconds = seconds or (180 if vllm_is_cpu_build() else 600)
    free = "or lower VLLM_CPU_KVCACHE_SPACE" if vllm_is_cpu_build() else "which nvidia-smi shows in use"
    remedy = f"vLLM's messages on stderr say why; free memory, {free}."
    code = f"from verl_act.doctor.engine_start import report_start; report_start({seconds})"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = process.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise InstallationError(f"the process of a vLLM engine ended with status {process.returncode}.", remedy)
    result = json.loads(lines[-1])
    if "error" in result:
        raise InstallationError(result["error"], remedy)
    return str(result["detail"])


def report_start(seconds: float) -> None:
    """Run in the subprocess of `engine_start`; the last line on stdout is the result as JSON."""
    try:
        result = {"detail": _start(seconds)}
    except EngineError as error:
        result = {"error": str(error).partition(". ")[0] + "."}
    print(json.dumps(result), flush=True)


def _start(seconds: float) -> str:
    from verl_act.engine import Engine
    from verl_act.settings.model import ModelSettings, Sampling

    started = time.monotonic()
    options = {} if vllm_is_cpu_build() else _ONE_GPU
    settings = ModelSettings(model=str(ASSETS / "embedded_model"), max_model_len=512, engine_options=options)
    with Engine(settings, seconds) as engine:
        ready = time.monotonic() - started
        message = {"role": "user", "content": _QUESTION}
        (reply,) = engine.run(engine.reply([message], Sampling(temperature=0, max_tokens=8)))
    return f"started in {ready:.0f} s with the embedded model, which answers {reply!r}"
