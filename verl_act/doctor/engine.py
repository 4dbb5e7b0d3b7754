"""Whether a vLLM engine starts on this machine, and answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from tempfile import TemporaryFile

from verl_act.doctor.finding import Fault
from verl_act.errors import EngineError

PATIENCE = 180
"""Seconds; on two busy cores an engine takes about one minute."""
_QUESTION = "You are in the middle of a room. Your task is to: look at bowl under the desklamp."
_REMEDY = "vLLM's messages on stderr say why; free memory, or lower VLLM_CPU_KVCACHE_SPACE on a CPU."


def engine_start() -> str:
    """Start one with the embedded model and take one reply; in a process of its own, for a start may never end."""
    command = [sys.executable, "-c", "from verl_act.doctor.engine import report_start; report_start()"]
    with TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, start_new_session=True) as process:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                raise Fault(f"vLLM has not started within {PATIENCE} s.", _REMEDY) from None
            finally:
                # vLLM's engine process may hang at the end of a failed start, where Python collects its ZeroMQ context
                # before the sockets; and who has started it waits for ever.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        lines = said.read().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise Fault(f"the process of a vLLM engine ended with status {process.returncode}.", _REMEDY)
    outcome = json.loads(lines[-1])
    if "error" in outcome:
        raise Fault(outcome["error"], _REMEDY)
    return outcome["detail"]


def report_start() -> None:
    """What `engine_start` asks for; the last line on stdout says how it went."""
    try:
        outcome = {"detail": _start()}
    except EngineError as error:
        outcome = {"error": str(error).partition(". ")[0] + "."}
    print(json.dumps(outcome), flush=True)


def _start() -> str:
    from verl_act.chain.recipe import embedded_models
    from verl_act.engine import Engine, EngineSettings, Sampling

    started = time.monotonic()
    with Engine(EngineSettings(model=str(embedded_models()["alfworld"]), max_model_len=512)) as engine:
        ready = time.monotonic() - started
        message = {"role": "user", "content": _QUESTION}
        (reply,) = engine.run(engine.reply([message], Sampling(temperature=0, max_tokens=8)))
    return f"started in {ready:.0f} s with the embedded model, which answers {reply!r}"
