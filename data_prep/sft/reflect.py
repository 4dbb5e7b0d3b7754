"""Self-reflection (Early Experience, arXiv 2510.08558): the model explains the expert's choice from real outcomes.

At every state with pairs, the expert's action and its alternatives are executed from that state in the real
environment. The model sees all outcomes and writes the reasoning, which `make_sft` puts before the expert's action.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from os import PathLike
from typing import Any

from verl_act.data_prep.pairs.margins import TrajectoryReplayers, replay_all
from verl_act.engine import Engine, check_engine, model_digest, request_seed, usable_tokenizer
from verl_act.envs.settings import input_folders
from verl_act.errors import DataError
from verl_act.journal import Journal, Record, SavedResults, all_records, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.parse import Malformed, normalise, parse_action
from verl_act.run_folder import REFLECTIONS as REFLECTIONS_FILE
from verl_act.schema import REFLECTION, Step, Turn, read_pairs, read_steps, steps_to_learn, write_rows
from verl_act.settings.data import ReflectSettings

logger = logging.getLogger(__name__)

_TAGS = re.compile(r"</?(?:think|action)>")
_ACTION = re.compile(r"<action>.*?</action>", re.DOTALL)

PathName = str | PathLike[str]
Executed = tuple[Step, Turn, list[Turn]]
"""A state, and the outcome of the expert's action and of each alternative."""
TrajectoryOutcomes = tuple[list[Executed], Counter[str]]
"""Of one trajectory: what its actions led to, and counts of what was left out."""


class ReflectionFault(StrEnum):
    """Why a reply cannot be used as a reflection. The value is its key in the manifest's counts."""

    CUT = "cut"
    """The reply was cut off at `max_tokens`, or at the end of the context."""
    OTHER_ACTION = "other_action"
    """It concludes with a different action than the expert's, or with none although the template requires one."""
    EMPTY = "empty"


@writes_folder("reflect")
def reflect(settings: ReflectSettings, out: PathName) -> Manifest:
    """Write `out/reflections.parquet` (schema REFLECTION, one row per state) and its manifest.

    States whose reply has a `ReflectionFault` are dropped and counted. A killed run resumes with the missing
    reflections. A trajectory that takes more than the time limit, or crashes its process, is dropped (see
    `process_pool`, also for 0 workers). Raises `DataError` if no reflection remains.
    """
    check_settings(settings)
    counts: Counter[str] = Counter()
    usable_tokenizer(settings)  # fail early: before the actions are executed
    known = read_steps(settings.trajectories)
    steps = steps_to_learn(known)
    counts["states_expert_inadmissible"] = len(known) - len(steps)
    manifest = make_manifest(
        "reflect",
        settings={**settings.recorded(), "model_digest": model_digest(settings.model)},
        inputs=[*settings.inputs(), *input_folders(settings.env_settings)],
        seed=settings.seed,
    )
    with journal(out, key_of(manifest)) as saved:
        executed = list(outcomes(steps, alternatives_by_state(settings.pairs), settings, counts, saved))
        if not executed:
            saved.clear()
            reasons = (
                ", ".join(f"{name} {count}" for name, count in (+counts).items()) or "none of their states has pairs"
            )
            raise DataError(
                f"{', '.join(map(str, settings.trajectories))}: nothing to reflect on ({reasons}). Pass the pairs that "
                "were built from these trajectories, and the settings of the environment."
            )
        with Engine(settings, seed=settings.seed) as running:
            replies = running.run(_replies(running, executed, settings, saved))
        rows = list(_rows(executed, replies, settings, counts))
        _check_usable(rows, counts, settings.model)
        manifest = replace(manifest, counts=dict(counts), seconds=saved.seconds)
        with atomic_folder(out) as folder:
            write_rows(folder / REFLECTIONS_FILE, rows, REFLECTION)
            write_manifest(folder, manifest)
    return manifest


def check_settings(settings: ReflectSettings) -> None:
    """Raise `ConfigError` for an invalid setting."""
    check_engine(settings, settings.sampling)
    settings.make_template()


async def _replies(
    engine: Engine, executed: Sequence[Executed], settings: ReflectSettings, saved: Journal
) -> list[Record]:
    """One `{"text", "cut"}` per state, in order."""
    template = settings.make_template()

    async def write(state: Executed) -> Record:
        step, expert, others = state
        messages = template.reflection_messages(step.context, expert, others)
        state_seed = request_seed(settings.seed, f"reflection {step.state_id}")
        (reply,) = await engine.scored_reply(messages, settings.sampling, seed=state_seed)
        return {"text": reply.text, "cut": reply.cut}

    states = {state[0].state_id: state for state in executed}
    return await all_records(write, states, "reflections", saved, 2 * engine.max_num_seqs, unit="state")


def _rows(
    executed: Sequence[Executed], replies: Sequence[Record], settings: ReflectSettings, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of schema REFLECTION. ReflectionFault replies are counted and dropped."""
    concludes = settings.make_template().reflections_conclude
    for (step, expert, alternatives), reply in zip(executed, replies, strict=True):
        text = reflection_text(reply["text"], expert.action, reply["cut"], concludes)
        counts["reflections" if not isinstance(text, ReflectionFault) else text.value] += 1
        if not isinstance(text, ReflectionFault):
            yield {
                "state_id": step.state_id,
                "action": expert.action,
                "outcome": expert.observation,
                "alternatives": [{"action": turn.action, "outcome": turn.observation} for turn in alternatives],
                "reply": reply["text"],
                "reflection": text,
                "model": settings.model,
            }


def _check_usable(rows: Sequence[dict[str, Any]], counts: Counter[str], model: str) -> None:
    """Raise `DataError` if there are no reflections; warn if most states have none."""
    unusable = ", ".join(f"{reason.value} {counts[reason.value]}" for reason in ReflectionFault)
    if not rows:
        raise DataError(
            f"{model}: none of {counts['states']} replies is a usable reflection ({unusable}). If they are cut, raise "
            "max_tokens; otherwise the model does not follow the reflection prompt of the template."
        )
    if 2 * len(rows) < counts["states"]:
        logger.warning("Only %d of %d states have a reflection (%s).", len(rows), counts["states"], unusable)


def outcomes(
    steps: Sequence[Step],
    alternatives: Mapping[str, Sequence[str]],
    settings: ReflectSettings,
    counts: Counter[str],
    journal: Journal | None = None,
) -> Iterator[Executed]:
    """Each step with alternatives, and the outcomes of all its actions in the real environment."""
    jobs: dict[str, list[tuple[Step, Sequence[str]]]] = {}
    for step in steps:
        if step.state_id in alternatives:
            jobs.setdefault(step.trajectory_id, []).append((step, alternatives[step.state_id]))
    executor = _Executor(settings.env_settings, sorted({step.env for step in steps}))
    saved = SavedResults[TrajectoryOutcomes](journal, "outcomes", TrajectoryOutcomes) if journal else None
    for _, executed in replay_all(executor, jobs, settings, counts, "executing alternatives", saved):
        yield from executed


@dataclass
class _Executor(TrajectoryReplayers[Sequence[str], Executed]):
    """Executes the expert's action and the alternatives at each state of a trajectory."""

    def found(self, trajectory: Sequence[tuple[Step, Sequence[str]]], counts: Counter[str]) -> Iterator[Executed]:
        steps = [step for step, _ in trajectory]
        states = self.get(steps[0].env).replay(steps)
        for state, (step, alternatives) in zip(states, trajectory, strict=True):
            others = [Turn(state.outcome(action), action) for action in alternatives]
            counts.update(states=1, alternatives=len(others))
            yield step, Turn(state.outcome(step.action), step.action), others


def reflection_text(reply: str, action: str, cut: bool = False, concludes: bool = False) -> str | ReflectionFault:
    """The reasoning in a reply, as one paragraph without tags (which would end the thought early), or why it has none.

    `action` is the expert's. With `concludes`, a reply must name it; without, it may name no action. The thought of a
    reasoning model is not part of the reflection, unless the reply has nothing but an action after the thought.
    """
    if cut:
        return ReflectionFault.CUT
    answer = parse_action(reply)
    if answer.malformed is Malformed.UNCLOSED_THINK:
        return ReflectionFault.CUT
    named = concludes or answer.malformed is not Malformed.NO_TAG
    if named and normalise(answer.action or "") != normalise(action):
        return ReflectionFault.OTHER_ACTION
    thought, _, written = reply.rpartition("</think>")
    texts = (" ".join(_TAGS.sub(" ", text).split()) for text in (_ACTION.sub(" ", written), thought))
    return next(filter(None, texts), ReflectionFault.EMPTY)


def alternatives_by_state(pairs: Sequence[PathName]) -> dict[str, list[str]]:
    """State id -> the distinct alternatives of all its pairs."""
    by_state: dict[str, dict[str, None]] = {}
    for pair in read_pairs(pairs):
        by_state.setdefault(pair.state_id, {}).update(dict.fromkeys(pair.alternatives))
    return {state: list(actions) for state, actions in by_state.items()}
