"""Evaluate one model: start an engine, run all items, write records and metrics."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from verl_act.concurrency import gather
from verl_act.engine import Engine, check_engine, model_digest, require_room
from verl_act.envs.base import Task, read_tasks
from verl_act.envs.pool import EnvPool
from verl_act.envs.registry import get_env, installed_env
from verl_act.errors import ConfigError, DataError
from verl_act.evaluate.choices import evaluate_choices, with_probe
from verl_act.evaluate.endpoint import Endpoint, check_endpoint
from verl_act.evaluate.metric_registry import finished, summary
from verl_act.evaluate.rationale import evaluate_rationales, require_rationales
from verl_act.evaluate.reasoning import is_right, read_questions
from verl_act.evaluate.records import METRICS_FILE, RECORDS
from verl_act.evaluate.rollouts import (
    PolicyUnderTest,
    evaluate_next_actions,
    evaluate_reasoning,
    require_one_environment,
    rollout_tasks,
)
from verl_act.evaluate.suites import citation, get_suite, protocol, with_suite
from verl_act.journal import Journal, Record, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.ray_session import ray_session
from verl_act.sampling import sampling_key
from verl_act.schema import Pair, Step, read_pairs, read_steps, steps_to_learn
from verl_act.settings.evaluation import EvaluationSettings
from verl_act.text_files import write_json_lines

logger = logging.getLogger(__name__)
PathName = str | PathLike[str]
RATIONALE_LIMIT = 400
"""Pairs of each split in the rationale intervention, as in the paper."""
_Record = TypeVar("_Record", bound=Any)


@writes_folder("evaluate")
def evaluate_model(settings: EvaluationSettings, out: PathName) -> Manifest:
    """Write `metrics.json`, the records as JSON lines and a manifest to `out`; returns the manifest.

    Every item of the files is evaluated exactly once, in file order. A run that was killed resumes with the remaining
    items. Expert states whose action the environment refused are left out. The limit samples at most so many expert
    states and pairs of each split, the same ones for every model and seed (tasks and questions are never left out). The
    pairs are asked once more under the settings' interventions on the thought (`Rationale`). The environment runs on
    the caller's Ray if it is running.

    Raises `DataError` if an item occurs twice or items come from several environments, `ConfigError` for bad settings.
    """
    check_settings(settings)
    if not settings.inputs() and settings.suite is None:
        raise ConfigError("nothing to evaluate: give a suite, tasks, trajectories, pairs or reasoning.")
    settings, limit = with_suite(settings), settings.limit
    if settings.suite is None:
        eval_tasks = [task for path in settings.tasks for task in read_tasks(path)]
    else:
        eval_tasks = get_suite(settings.suite).tasks(settings.env_settings)
    known = read_steps(settings.trajectories)
    learnable = steps_to_learn(known)
    steps = some_of_each_split(learnable, limit, lambda step: step.state_id)
    all_pairs = read_pairs(settings.pairs)
    choice_pairs = some_of_each_split(all_pairs, limit, lambda pair: pair.pair_id)
    most = settings.rationale_limit or limit or RATIONALE_LIMIT
    rationale_pairs = some_of_each_split(all_pairs, most, lambda pair: pair.pair_id)
    reasoning_questions = read_questions(settings.reasoning)
    _each_once(settings.tasks, [f"{task.env} {task.split} task {task.task_id}" for task in eval_tasks])
    _each_once(settings.pairs, [f"{pair.split} pair {pair.pair_id}" for pair in all_pairs])
    items: list[Task | Step | Pair] = [*eval_tasks, *known, *all_pairs]
    require_one_environment(items)
    if items:
        installed_env(items[0].env)  # so that the manifest has the versions of its packages
    if reasoning_questions:
        is_right(reasoning_questions[0], "")  # fails now, not after the episodes, if math-verify is missing
    manifest = evaluation_manifest(settings)
    manifest = replace(manifest, counts={"states_expert_inadmissible": len(known) - len(learnable)})
    with (
        journal(Path(out), key_of(manifest), lambda: running.without_room) as answered,
        _model(settings) as running,
    ):
        prompts, at_once = settings.make_template(), running.max_num_seqs
        policy = PolicyUnderTest(running, prompts, settings.sampling, settings.seed, settings.mode, at_once)
        longest = settings.reasoning_max_tokens or settings.max_tokens
        reasoner = replace(policy, sampling=settings.sampling.model_copy(update={"max_tokens": longest}))

        async def evaluate_all(sample: int) -> Answers:
            sampled, reasoned = (replace(one, sample=sample) for one in (policy, reasoner))
            (played, memory), *others = await gather(
                [
                    rollout_eval_tasks(sampled, eval_tasks, settings, answered),
                    evaluate_next_actions(sampled, steps, answered),
                    evaluate_choices(sampled, choice_pairs, answered),
                    evaluate_reasoning(reasoned, reasoning_questions, answered),
                    evaluate_rationales(sampled, rationale_pairs, settings.rationale, answered),
                ]
            )
            return replace(Answers(played, *others), env_memory_mb=memory)

        answers = _all_samples([running.run(evaluate_all(sample)) for sample in range(settings.samples)])
        answers = replace(answers, choices=with_probe(answers.choices, all_pairs))
        if running.tokenizer:
            for record in answers.episodes:
                record |= _token_counts(record["turns"], running.tokenizer)
        without_room = answered.counted + running.without_room
        return write_evaluation(
            out, settings, manifest, answers, eval_tasks, without_room=without_room, seconds=answered.seconds
        )


def _model(settings: EvaluationSettings) -> Engine | Endpoint:
    if settings.endpoint is None:
        return Engine(settings, seed=settings.seed)
    return Endpoint(settings.endpoint, settings)


def check_settings(settings: EvaluationSettings) -> None:
    """Raise `ConfigError` for a setting that cannot work."""
    with_suite(settings)
    if settings.endpoint is None:
        check_engine(settings, settings.sampling)
        if settings.reasoning_max_tokens is not None:
            require_room(settings, settings.reasoning_max_tokens, "reasoning_max_tokens")
    else:
        check_endpoint(settings.endpoint, settings)
    prompts = settings.make_template()
    if settings.rationale:
        require_rationales(prompts, settings.template)


def _each_once(paths: Sequence[PathName], items: Sequence[str]) -> None:
    """Raise `DataError` if an item occurs twice: it would count twice."""
    if repeated := [item for item, count in Counter(items).items() if count > 1]:
        raise DataError(f"{', '.join(map(str, paths))}: {repeated[0]} is duplicated. Give each file and item once.")


async def rollout_eval_tasks(
    policy: PolicyUnderTest, tasks: Sequence[Task], settings: EvaluationSettings, journal: Journal | None = None
) -> tuple[list[Record], float]:
    """Play all tasks in a pool of their environment: the records of `rollout_tasks`, and the peak memory of an actor in
    MB."""
    if not tasks:
        return [], 0.0
    with ray_session():
        env = tasks[0].env
        pool, limit = EnvPool(env, settings.env_settings, settings), get_env(env).max_episodes
        at_once = limit * settings.actors if limit else None
        records = await rollout_tasks(policy, tasks, pool, settings.max_turns, journal, at_once)
        return records, pool.memory_mb


@dataclass(frozen=True, slots=True)
class Answers:
    """All records of one model, as the functions of `rollouts`, `choices` and `rationale` return them."""

    episodes: Sequence[Record]
    next_actions: Sequence[Record]
    choices: Sequence[Record]
    reasoning: Sequence[Record] = ()
    rationales: Sequence[Record] = ()
    env_memory_mb: float = 0.0

    @property
    def by_file(self) -> dict[str, Sequence[Record]]:
        """File name -> its records."""
        return {file: getattr(self, Path(file).stem) for file in RECORDS}


def _all_samples(answers: Sequence[Answers]) -> Answers:
    """The records of all samplings, one after the other."""
    merged = {Path(file).stem: [record for one in answers for record in one.by_file[file]] for file in RECORDS}
    return Answers(**merged, env_memory_mb=max(one.env_memory_mb for one in answers))


def evaluation_manifest(settings: EvaluationSettings) -> Manifest:
    """The manifest: everything that determines the answers. Its inputs are the files of the items, from which a report
    reads the prompts again."""
    recorded = {**settings.recorded(), "model_digest": model_digest(settings.model)}
    return make_manifest("evaluate", settings=recorded, inputs=settings.inputs(), seed=settings.seed)


def write_evaluation(
    out: PathName,
    settings: EvaluationSettings,
    manifest: Manifest,
    answers: Answers,
    tasks: Sequence[Task] = (),
    *,
    without_room: int = 0,
    seconds: float = 0.0,
) -> Manifest:
    """Write the files of `evaluate` to `out` from existing answers; returns the manifest.

    `manifest` comes from `evaluation_manifest`; `tasks` are those of the episodes. `without_room`: how many prompts
    left no room for a reply.
    """
    records = answers.by_file
    metrics = {
        "name": settings.name,
        "model": settings.model,
        "sampling": settings.sampling.model_dump(),
        "template": settings.template,
        "metrics": summary(records, str(out)),
        "protocol": protocol(settings, manifest, tasks),
        "records": [file for file, rows in records.items() if rows],
        "episode_errors": len(answers.episodes) - len(finished(answers.episodes)),
        "without_room": without_room,
        "env_memory_mb": round(answers.env_memory_mb),
        "seconds": round(seconds, 1),
    }
    metrics["cite"] = citation(metrics)
    counts = {
        **manifest.counts,
        **{Path(file).stem: len(rows) for file, rows in records.items()},
        "episode_errors": metrics["episode_errors"],
        "without_room": without_room,
    }
    _warn_of_malformed(settings.name, answers)
    with atomic_folder(out) as folder:
        (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        for file, rows in records.items():
            write_json_lines(folder / file, rows)
        manifest = replace(manifest, counts=counts, seconds=round(seconds, 1))
        write_manifest(folder, manifest)
    return manifest


def _warn_of_malformed(name: str, answers: Answers) -> None:
    """If no reply can be parsed, the evaluation measures the prompt or the reply length, not the model."""
    unread = {
        "episodes": [record["malformed_share"] == 1 for record in finished(answers.episodes) if record["steps"]],
        "next actions": [not record["well_formed"] for record in answers.next_actions],
        "choices": [not record["well_formed"] for record in answers.choices],
    }
    for what, malformed in unread.items():
        if malformed and all(malformed):
            logger.warning(
                "%s: every reply of %d %s is malformed. Check --template, --max-tokens and the model's chat template.",
                name,
                len(malformed),
                what,
            )


def some_of_each_split(records: Sequence[_Record], limit: int | None, name: Callable[[_Record], str]) -> list[_Record]:
    """At most `limit` records of each split, sampled by their names, in their original order.

    Files are sorted by task, so the first `limit` records would cover only a few task types.
    """
    splits: dict[str, list[_Record]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    kept = {
        id(record)
        for members in splits.values()
        for record in sorted(members, key=lambda record: sampling_key(0, name(record)))[:limit]
    }
    return [record for record in records if id(record) in kept]


def _token_counts(turns: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, int]:
    """Token counts of all replies, and of those with an admissible action: only these change the environment."""
    lengths = [len(tokenizer.encode(turn["reply"], add_special_tokens=False)) for turn in turns]
    useful = [length for length, turn in zip(lengths, turns, strict=True) if turn["admissible"]]
    return {"reply_tokens": sum(lengths), "useful_tokens": sum(useful)}
