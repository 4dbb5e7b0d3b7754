"""Whether a vLLM engine starts on this machine, and answers."""

from __future__ import annotations

import time

from verl_act.doctor.finding import Fault
from verl_act.errors import EngineError

_QUESTION = "You are in the middle of a room. Your task is to: look at bowl under the desklamp."


def engine_start() -> str:
    """Start one with the embedded model and take one reply."""
    from verl_act.chain.recipe import embedded_models
    from verl_act.engine import Engine, EngineSettings, Sampling

    started = time.monotonic()
    try:
        with Engine(EngineSettings(model=str(embedded_models()["alfworld"]), max_model_len=512)) as engine:
            ready = time.monotonic() - started
            message = {"role": "user", "content": _QUESTION}
            (reply,) = engine.run(engine.reply([message], Sampling(temperature=0, max_tokens=8)))
    except EngineError as error:
        raise Fault(
            str(error).partition(". ")[0] + ".",
            "vLLM's messages on stderr say why; free memory, or lower VLLM_CPU_KVCACHE_SPACE on a CPU.",
        ) from error
    return f"started in {ready:.0f} s with the embedded model, which answers {reply!r}"
