"""Self-reflection (Early Experience, arXiv 2510.08558): the model explains, from what really happened, why the expert
acts as it does.

At every state that has pairs, the expert's action and its alternatives are executed from that same state in the real
environment. The model is shown all outcomes and writes the reasoning, which `make_sft` puts before the expert's action.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.asyncio import tqdm_asyncio

from verl_act.data_prep.pairs.probe import Probers, leave_out
from verl_act.data_prep.process_pool import Failure, failed, process_pool
from verl_act.engine import (
    Engine,
    EngineSettings,
    Sampling,
    check_engine,
    model_digest,
    request_seed,
    usable_tokenizer,
)
from verl_act.errors import DataError
from verl_act.journal import Journal, Record, SavedResults, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.options import Count, Seed, check_options
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.parse import Malformed, normalise, parse_action
from verl_act.process import TASK_TIMEOUT
from verl_act.prompts import Template, get_template
from verl_act.schema import REFLECTION, Step, Turn, read_pairs, read_steps, steps_to_learn, write_rows

logger = logging.getLogger(__name__)

FILE_NAME = "reflections.parquet"
_TAGS = re.compile(r"</?(?:think|action)>")
_ACTION = re.compile(r"<action>.*?</action>", re.DOTALL)

PathName = str | PathLike[str]
Tried = tuple[Step, Turn, list[Turn]]
"""A state, and what its own action and each alternative led to."""
_Executed = tuple[list[Tried], Counter[str]]


class Unusable(StrEnum):
    """Why a reply is no reflection. Its value is the name under which the manifest counts it."""

    CUT = "cut"
    """It reached `max_tokens`, or the end of the context."""
    OTHER_ACTION = "other_action"
    """It ends in another action than the expert's, so that it argues for that one; or in none where it should."""
    EMPTY = "empty"


@writes_folder("reflect")
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
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
) -> Manifest:
    """Write `out/reflections.parquet` (schema REFLECTION, one row per state) and its manifest.

    States whose reply is `Unusable` are left out and counted. One that was killed goes on with what the model has not
    written. `workers` processes share the environment's part; a trajectory that takes one of them more than
    `task_timeout` seconds, or ends it, is left out (see `process_pool`, also for 0). Raises `DataError` where no
    reflection is left.
    """
    check_settings(
        engine,
        sampling,
        env_settings,
        template=template,
        template_options=template_options,
        seed=seed,
        workers=workers,
    )
    started = time.monotonic()
    counts: Counter[str] = Counter()
    usable_tokenizer(engine)  # says at once, not after the actions were tried, that it cannot be used
    known = read_steps(trajectories)
    steps = steps_to_learn(known)
    counts["states_expert_inadmissible"] = len(known) - len(steps)
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
        seed=seed,
    )
    with journal(Path(out), key_of(manifest)) as written:
        tried = list(
            outcomes(steps, alternatives_at(pairs), env_settings or {}, counts, workers, task_timeout, written)
        )
        if not tried:
            written.clear()
            left_out = (
                ", ".join(f"{name} {count}" for name, count in (+counts).items()) or "no state of theirs has pairs"
            )
            raise DataError(
                f"{', '.join(map(str, trajectories))}: nothing to reflect on ({left_out}). Pass the pairs that were "
                "built from these trajectories, with the environment's settings."
            )
        with Engine(engine) as running:
            asked = get_template(template, **(template_options or {}))
            replies = running.run(_replies(running, asked, tried, sampling, seed, written))
            rows = list(_rows(tried, replies, engine.model, asked.reflections_conclude, counts))
            _enough(rows, counts, engine.model)
            with atomic_folder(out) as folder:
                write_rows(folder / FILE_NAME, rows, REFLECTION)
                manifest = replace(manifest, counts=dict(counts), seconds=round(time.monotonic() - started, 1))
                write_manifest(folder, manifest)
    return manifest


def check_settings(
    engine: EngineSettings,
    sampling: Sampling,
    env_settings: Mapping[str, Any] | None = None,
    *,
    template: str = "cot",
    template_options: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    workers: Count = 1,
) -> None:
    """Raise `ConfigError` for a setting that cannot work."""
    check_options(check_settings, {"seed": seed, "workers": workers})
    check_engine(engine, sampling)
    get_template(template, **(template_options or {}))


async def _replies(
    engine: Engine, template: Template, tried: Sequence[Tried], sampling: Sampling, seed: int, written: Journal
) -> list[Record]:
    """`{"text", "cut"}` of each state, in order."""

    async def write(step: Step, expert: Turn, others: list[Turn]) -> Record:
        if (known := written.get(f"reflection {step.state_id}", 0)) is not None:
            return known
        messages = template.reflection_messages(step.context, expert, others)
        own_seed = request_seed(seed, f"reflection {step.state_id}")
        (reply,) = await engine.scored_reply(messages, sampling, seed=own_seed)
        record = {"text": reply.text, "cut": reply.cut}
        written.add(f"reflection {step.state_id}", 0, record)
        return record

    tasks = [write(*entry) for entry in tried]
    return list(await tqdm_asyncio.gather(*tasks, desc="reflections", unit="state"))


def _rows(
    tried: Sequence[Tried], replies: Sequence[Record], model: str, concludes: bool, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of schema REFLECTION; what is not usable is counted."""
    for (step, expert, alternatives), reply in zip(tried, replies, strict=True):
        text = reflection_text(reply["text"], expert.action, reply["cut"], concludes)
        counts["reflections" if not isinstance(text, Unusable) else text.value] += 1
        if not isinstance(text, Unusable):
            yield {
                "state_id": step.state_id,
                "action": expert.action,
                "outcome": expert.observation,
                "alternatives": [{"action": turn.action, "outcome": turn.observation} for turn in alternatives],
                "reply": reply["text"],
                "reflection": text,
                "model": model,
            }


def _enough(rows: Sequence[dict[str, Any]], counts: Counter[str], model: str) -> None:
    """Raises `DataError` where there is no reflection; warns where most states have none."""
    unusable = ", ".join(f"{reason.value} {counts[reason.value]}" for reason in Unusable)
    if not rows:
        raise DataError(
            f"{model}: not one of {counts['states']} replies is a reflection ({unusable}). Where they are cut, raise "
            "max_tokens; otherwise the model does not follow the template's reflection prompt."
        )
    if 2 * len(rows) < counts["states"]:
        logger.warning("Only %d of %d states have a reflection (%s).", len(rows), counts["states"], unusable)


def outcomes(
    steps: Sequence[Step],
    alternatives: Mapping[str, Sequence[str]],
    env_settings: Mapping[str, Any],
    counts: Counter[str],
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    journal: Journal | None = None,
) -> Iterator[Tried]:
    """Each step that has alternatives, with what its own action and each of them led to in the real environment."""
    jobs: dict[str, list[tuple[Step, Sequence[str]]]] = {}
    for step in steps:
        if step.state_id in alternatives:
            jobs.setdefault(step.trajectory_id, []).append((step, alternatives[step.state_id]))
    probers = Probers(env_settings, sorted({step.env for step in steps}))
    with process_pool(_Executor(probers), workers, task_timeout) as execute_all:
        saved = SavedResults[_Executed](journal, "outcomes", _Executed) if journal else None
        done = tqdm(execute_all(jobs.values(), saved), "executing alternatives", len(jobs), unit="trajectory")
        for name, result in zip(jobs, done, strict=True):
            if isinstance(result, Failure):
                leave_out(name, result.reason, counts)
                continue
            tried, found = result
            counts.update(found)
            yield from tried


@dataclass
class _Executor:
    """Executes what is known at the states of one trajectory after another, and counts it."""

    probers: Probers

    def __call__(self, trajectory: Sequence[tuple[Step, Sequence[str]]]) -> _Executed:
        tried, counts = list[Tried](), Counter[str]()
        steps = [step for step, _ in trajectory]
        alternatives = {step.state_id: actions for step, actions in trajectory}
        try:
            for state in self.probers.of(steps[0].env).replay(steps):
                step = state.step
                others = [Turn(state.outcome(action), action) for action in alternatives[step.state_id]]
                tried.append((step, Turn(state.outcome(step.action), step.action), others))
                counts.update(states=1, alternatives=len(others))
        except Exception as error:
            leave_out(steps[0].trajectory_id, failed(self, error).reason, counts, error)
        return tried, counts

    def prepare(self) -> None:
        self.probers.prepare()

    def close(self) -> None:
        self.probers.close()


def reflection_text(reply: str, action: str, cut: bool = False, concludes: bool = False) -> str | Unusable:
    """A reply as one paragraph of reasoning for `action`, the expert's: without tags, which would end it early.

    `concludes`: one that names no action is none. What a reasoning model has thought before it wrote the reflection is
    no part of it. Only where it wrote nothing but the action after its thought, in the format of every other reply, the
    thought is taken.
    """
    if cut:
        return Unusable.CUT
    answer = parse_action(reply)
    if answer.malformed is Malformed.UNCLOSED_THINK:
        return Unusable.CUT
    named = concludes or answer.malformed is not Malformed.NO_TAG
    if named and normalise(answer.action or "") != normalise(action):
        return Unusable.OTHER_ACTION
    thought, _, written = reply.rpartition("</think>")
    texts = (" ".join(_TAGS.sub(" ", text).split()) for text in (_ACTION.sub(" ", written), thought))
    return next(filter(None, texts), Unusable.EMPTY)


def alternatives_at(pairs: Sequence[PathName]) -> dict[str, list[str]]:
    """State -> all that stands against the expert's action there, each once."""
    found: dict[str, dict[str, None]] = {}
    for pair in read_pairs(pairs):
        found.setdefault(pair.state_id, {}).update(dict.fromkeys(pair.alternatives))
    return {state: list(actions) for state, actions in found.items()}
