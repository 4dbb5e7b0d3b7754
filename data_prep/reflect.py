"""Self-reflection (Early Experience, arXiv 2510.08558): the model explains, from what really happened, why the expert
acts as it does.

At every state that has pairs, the expert's action and its alternatives are executed from that same state in the real
environment. The model is shown all outcomes and writes the reasoning, which `make_sft` puts before the expert's action.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.probe import Prober, leave_out
from verl_act.engine import Engine, EngineSettings, Sampling, model_digest, request_seed
from verl_act.errors import DataError, EnvError
from verl_act.manifest import Manifest, atomic_folder, make_manifest, write_manifest
from verl_act.prompts import get_template
from verl_act.schema import REFLECTION, Step, Turn, read_pairs, read_steps, write_rows

FILE_NAME = "reflections.parquet"
_TAGS = re.compile(r"</?(?:think|action)>")
_ACTION = re.compile(r"<action>.*?</action>", re.DOTALL)

PathName = str | PathLike[str]


def reflect(
    out: PathName,
    trajectories: Sequence[PathName],
    pairs: Sequence[PathName],
    engine: EngineSettings,
    sampling: Sampling,
    env_settings: Mapping[str, Any] | None = None,
    *,
    template: str = "cot",
    template_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Manifest:
    """Write `out/reflections.parquet` (schema REFLECTION, one row per state) and its manifest.

    A reflection is the reply without tags; states with an empty one are left out and counted. Raises `DataError` where
    none is left.
    """
    started = time.monotonic()
    counts: Counter[str] = Counter()
    tried = list(outcomes(read_steps(trajectories), alternatives_at(pairs), env_settings or {}, counts))
    if not tried:
        left_out = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no state of theirs has pairs"
        raise DataError(
            f"{', '.join(map(str, trajectories))}: nothing to reflect on ({left_out}). Pass the pairs that were built "
            "from these trajectories, with the environment's settings."
        )
    asked = get_template(template, **(template_options or {}))
    with Engine(engine) as running:

        async def write(step: Step, expert: Turn, others: list[Turn]) -> str:
            messages = asked.reflection_messages(step.context, expert, others)
            own_seed = request_seed(seed, f"reflection {step.state_id}")
            return (await running.reply(messages, sampling, seed=own_seed))[0]

        async def write_all() -> list[str]:
            return list(await asyncio.gather(*(write(*entry) for entry in tried)))

        replies = running.run(write_all())
    rows = []
    for (step, expert, alternatives), reply in zip(tried, replies, strict=True):
        if text := reflection_text(reply):
            rows.append(
                {
                    "state_id": step.state_id,
                    "action": expert.action,
                    "outcome": expert.observation,
                    "alternatives": [{"action": turn.action, "outcome": turn.observation} for turn in alternatives],
                    "reply": reply,
                    "reflection": text,
                    "model": engine.model,
                }
            )
    if not rows:
        raise DataError(f"{engine.model}: not one of {len(tried)} replies holds a reflection; raise max_tokens.")
    with atomic_folder(out) as folder:
        write_rows(Path(folder) / FILE_NAME, rows, REFLECTION)
        manifest = make_manifest(
            "reflect",
            settings={
                "engine": asdict(engine),
                "model_digest": model_digest(engine.model),
                "sampling": asdict(sampling),
                "template": template,
                "template_options": dict(template_options or {}),
                "env_settings": dict(env_settings or {}),
            },
            inputs=[*trajectories, *pairs],
            counts={**counts, "reflections": len(rows), "empty": len(tried) - len(rows)},
            seed=seed,
            seconds=time.monotonic() - started,
        )
        write_manifest(folder, manifest)
    return manifest


def outcomes(
    steps: Sequence[Step],
    alternatives: Mapping[str, Sequence[str]],
    env_settings: Mapping[str, Any],
    counts: Counter[str],
) -> Iterator[tuple[Step, Turn, list[Turn]]]:
    """Each step that has alternatives, with what its own action and each of them led to in the real environment."""
    trajectories: dict[str, list[Step]] = {}
    for step in steps:
        if step.state_id in alternatives:
            trajectories.setdefault(step.trajectory_id, []).append(step)
    probers: dict[str, Prober] = {}
    try:
        for wanted in tqdm(trajectories.values(), desc="executing alternatives", unit="trajectory"):
            env = wanted[0].env
            if env not in probers:
                probers[env] = Prober(env, env_settings)
            try:
                for state in probers[env].replay(wanted):
                    step = state.step
                    others = [Turn(state.outcome(action), action) for action in alternatives[step.state_id]]
                    counts["states"] += 1
                    counts["alternatives"] += len(others)
                    yield step, Turn(state.outcome(step.action), step.action), others
            except EnvError as error:
                leave_out(wanted[0].trajectory_id, error, counts)
    finally:
        for prober in probers.values():
            prober.close()


def reflection_text(reply: str) -> str:
    """A reply as one paragraph of reasoning: tags, which would end it early, are left out.

    What a reasoning model has thought before it wrote the reflection is none; a thought that was cut gives none.
    """
    thought, ended, written = reply.rpartition("</think>")
    if not ended and "<think>" in reply:
        return ""
    texts = (" ".join(_TAGS.sub(" ", text).split()) for text in (_ACTION.sub(" ", written), thought))
    return next(filter(None, texts), "")


def alternatives_at(pairs: Sequence[PathName]) -> dict[str, list[str]]:
    """State -> all that stands against the expert's action there, each once."""
    found: dict[str, dict[str, None]] = {}
    for pair in read_pairs(pairs):
        found.setdefault(pair.state_id, {}).update(dict.fromkeys(pair.alternatives))
    return {state: list(actions) for state, actions in found.items()}
