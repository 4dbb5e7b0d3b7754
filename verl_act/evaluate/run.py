"""Evaluate one model: start an engine, put all questions, write records and figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import ray

from verl_act.data_prep.pairing import rank
from verl_act.engine import Engine, EngineSettings, Sampling, model_digest
from verl_act.envs.base import Task
from verl_act.envs.pool import EnvPool
from verl_act.errors import ConfigError
from verl_act.evaluate.ask import Examinee, ask_choices, ask_next_actions, ask_questions, play_tasks
from verl_act.evaluate.figures import answer_figures, by_split, episode_figures, finished, share
from verl_act.evaluate.files import CHOICES, EPISODES, FIGURES, NEXT_ACTIONS, REASONING
from verl_act.evaluate.reasoning import is_right, read_questions
from verl_act.manifest import atomic_folder, make_manifest, write_manifest
from verl_act.prompts import get_template
from verl_act.rollout.episode import Episode
from verl_act.schema import TASK, read_pairs, read_steps, read_table

PathName = str | PathLike[str]
_Record = TypeVar("_Record", bound=Any)


def evaluate(
    out: PathName,
    name: str,
    engine: EngineSettings,
    sampling: Sampling,
    *,
    tasks: Sequence[PathName] = (),
    trajectories: Sequence[PathName] = (),
    pairs: Sequence[PathName] = (),
    reasoning: Sequence[PathName] = (),
    reasoning_max_tokens: int | None = None,
    max_turns: int = 50,
    actors: int = 1,
    template: str = "cot",
    template_options: Mapping[str, Any] | None = None,
    env_settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `figures.json`, the single answers as JSON lines and a manifest to `out`; returns the figures.

    Every item of the files is asked exactly once, in file order; `limit` draws so many expert states and pairs of each
    split, and questions of each file, the same ones for every model and seed (episodes are never cut). Temperature 0
    is greedy. `reasoning_max_tokens` (None: as in `sampling`) bounds a reply to a question. Each environment is played
    in `actors` processes, on the caller's Ray where one is running.
    """
    if not (tasks or trajectories or pairs or reasoning):
        raise ConfigError("nothing to evaluate: give tasks, trajectories, pairs or reasoning.")
    started = time.monotonic()
    panel = [Task(**row) for path in tasks for row in read_table(path, TASK).to_pylist()]
    steps = some_of_each_split(read_steps(trajectories), limit, lambda step: step.state_id)
    questions = some_of_each_split(read_pairs(pairs), limit, lambda pair: pair.pair_id)
    general = some_of_each_split(read_questions(reasoning, seed), limit, lambda question: question.item)
    if general:
        is_right(general[0], "")  # says at once, not after the episodes, that math-verify is missing
    with Engine(engine) as running:
        examinee = Examinee(running, get_template(template, **(template_options or {})), sampling, seed)
        reasoner = replace(examinee, sampling=replace(sampling, max_tokens=reasoning_max_tokens or sampling.max_tokens))

        async def ask() -> Answers:
            return Answers(
                await play_panel(examinee, panel, env_settings, max_turns, actors),
                await ask_next_actions(examinee, steps),
                await ask_choices(examinee, questions),
                await ask_questions(reasoner, general),
            )

        answers = running.run(ask())
        for record, episode in answers.episodes:
            record |= _token_counts(episode, running.tokenizer)
    return write_evaluation(
        out,
        name,
        engine,
        sampling,
        answers,
        template=template,
        inputs=[*tasks, *trajectories, *pairs, *reasoning],
        settings={
            "max_turns": max_turns,
            "template_options": dict(template_options or {}),
            "env_settings": dict(env_settings or {}),
            "limit": limit,
            "reasoning_max_tokens": reasoning_max_tokens,
        },
        without_room=running.without_room,
        seed=seed,
        seconds=time.monotonic() - started,
    )


async def play_panel(
    examinee: Examinee, panel: Sequence[Task], env_settings: Mapping[str, Any] | None, max_turns: int, actors: int = 1
) -> list[tuple[dict[str, Any], Episode]]:
    """Every task of `panel` in a pool of its own environment; see `play_tasks`."""
    if not panel:
        return []
    with _ray():
        pools = {env: EnvPool(env, env_settings, actors=actors) for env in {task.env for task in panel}}
        return await play_tasks(examinee, panel, pools, max_turns)


@contextmanager
def _ray() -> Iterator[None]:
    """A Ray of our own for the time of the block; one that the caller has started is used and left running."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class Answers:
    """All that one model answered, as the functions of `verl_act.evaluate.ask` return it."""

    episodes: Sequence[tuple[dict[str, Any], Episode]]
    next_actions: Sequence[dict[str, Any]]
    choices: Sequence[dict[str, Any]]
    reasoning: Sequence[dict[str, Any]] = ()


def write_evaluation(
    out: PathName,
    name: str,
    engine: EngineSettings,
    sampling: Sampling,
    answers: Answers,
    *,
    template: str,
    inputs: Sequence[PathName],
    settings: Mapping[str, Any] | None = None,
    without_room: int = 0,
    seed: int = 0,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Write what `evaluate` leaves in `out`, from answers that are there already; returns the figures.

    `inputs` are the files that were asked from; their hashes let a report find the questions again. `settings` are what
    else decided the answers. `without_room` prompts left no room for a reply.
    """
    episodes = [record for record, _ in answers.episodes]
    figures = {
        "name": name,
        "model": engine.model,
        "sampling": asdict(sampling),
        "template": template,
        "episodes": by_split(episodes, episode_figures),
        "next_action": by_split(answers.next_actions, answer_figures),
        "choice": by_split(answers.choices, answer_figures),
        "reasoning": by_split(answers.reasoning, lambda records: {"right": share(records, "right")}),
        "without_room": without_room,
        "seconds": round(seconds, 1),
    }
    transcripts = [{**record, **_transcript(episode)} for record, episode in answers.episodes]
    with atomic_folder(out) as folder:
        (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
        _write_lines(folder / EPISODES, transcripts)
        _write_lines(folder / NEXT_ACTIONS, answers.next_actions)
        _write_lines(folder / CHOICES, answers.choices)
        _write_lines(folder / REASONING, answers.reasoning)
        manifest = make_manifest(
            "evaluate",
            settings={
                "engine": asdict(engine),
                "model_digest": model_digest(engine.model),
                "sampling": asdict(sampling),
                "template": template,
                **(settings or {}),
            },
            inputs=list(inputs),
            counts={
                "episodes": len(episodes),
                "episode_errors": len(episodes) - len(finished(episodes)),
                "next_actions": len(answers.next_actions),
                "choices": len(answers.choices),
                "reasoning": len(answers.reasoning),
                "without_room": without_room,
            },
            seed=seed,
            seconds=seconds,
        )
        write_manifest(folder, manifest)
    return figures


def some_of_each_split(records: Sequence[_Record], limit: int | None, name: Callable[[_Record], str]) -> list[_Record]:
    """At most `limit` records of each split, drawn by their names, in the order they came.

    Files are sorted by task, so that the first so many of them would be of a few task types.
    """
    splits: dict[str, list[_Record]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    kept = {
        id(record)
        for members in splits.values()
        for record in sorted(members, key=lambda record: rank(0, name(record)))[:limit]
    }
    return [record for record in records if id(record) in kept]


def _transcript(episode: Episode) -> dict[str, Any]:
    """What a reader of the episode needs: each turn with what was seen, allowed, replied and done."""
    return {
        "goal": episode.turns[0].context.goal if episode.turns else "",
        "turns": [
            {
                "observation": turn.context.observation,
                "admissible_actions": list(turn.context.admissible_actions),
                "reply": turn.reply,
                "action": turn.action,
                "malformed": turn.malformed,
                "admissible": turn.admissible,
            }
            for turn in episode.turns
        ],
    }


def _token_counts(episode: Episode, tokenizer: Any) -> dict[str, int]:
    """Tokens of all replies, and of those that gave an admissible action: the others moved nothing."""
    lengths = [len(tokenizer.encode(turn.reply, add_special_tokens=False)) for turn in episode.turns]
    useful = [length for length, turn in zip(lengths, episode.turns, strict=True) if turn.admissible]
    return {"reply_tokens": sum(lengths), "useful_tokens": sum(useful)}


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
