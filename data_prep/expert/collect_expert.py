"""Collect expert trajectories: an environment's expert plays its tasks, and every episode is replayed to verify it.

The default expert (search) records at each step whether its action can be inferred from the context, and the
environment's planner records the distance to the goal. Both decide later which pairs are used for training.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from tqdm import tqdm

from verl_act.envs.base import Environment, EnvSpec, Expert, ExpertGaveUp, PlanningEnvironment, Task, TyingExpert
from verl_act.envs.process_pool import Failure, Player, process_pool
from verl_act.envs.registry import get_env
from verl_act.envs.settings import check_env, input_folders
from verl_act.errors import ConfigError, DataError, OptionError
from verl_act.journal import SavedResults, hash_of, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.names import one_line
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.run_folder import TRAJECTORIES
from verl_act.sampling import sample_in_order
from verl_act.schema import TRAJECTORY, Context, Step, Turn, write_rows
from verl_act.settings.data import ExpertSettings
from verl_act.text_files import write_json_lines

logger = logging.getLogger(__name__)

DROPPED = "dropped.jsonl"
_NOT_WON, _REPLAY_DIFFERS = "not won", "replay differs"


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a task or a published row has no trajectory. The kinds are counted in the manifest."""

    kind: str
    details: str = ""

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.details}" if self.details else self.kind


Played = list[Step] | Dropped
"""A verified trajectory, or why there is none."""


@writes_folder("collect_expert", "import_trajectories")
def collect_expert(settings: ExpertSettings, out: str | os.PathLike[str]) -> Manifest:
    """Play the tasks of a split with an expert and write `out/trajectories.parquet` (schema TRAJECTORY),
    `out/dropped.jsonl` (the tasks without a trajectory, with reasons) and a manifest. The seed samples the tasks and is
    that of the expert's random choices.

    Dropped, logged and counted by kind are trajectories that do not win (step limit reached, or the expert gave up) and
    those that differ when replayed on a fresh environment. The number of workers does not change the result. A task
    that takes more than the time limit, or crashes its process, is dropped too (see `process_pool`, also for 0).

    Raises `ConfigError` for an unknown environment, split or expert, and `DataError` if no trajectory succeeds.
    """
    spec = check_settings(settings)
    name = settings.expert or next(iter(spec.experts))
    tasks = sample_in_order(spec.tasks(settings.split, **settings.env_settings), settings.limit, settings.seed)
    manifest = make_manifest(
        "collect_expert",
        settings={**settings.recorded(), "expert": name},
        inputs=input_folders(settings.env_settings),
        seed=settings.seed,
    )
    with journal(out, key_of(manifest)) as saved:
        player = _ExpertPlayer(settings.env, settings.env_settings, name, settings.seed)
        with process_pool(player, settings.workers, settings.task_timeout) as play_all:
            results = play_all(tasks, SavedResults(saved, hash_of(tasks), Played))
            played = [
                Dropped(result.kind, result.reason) if isinstance(result, Failure) else result
                for result in tqdm(results, f"playing {one_line(settings.split)}", len(tasks))
            ]
        steps = [step for trajectory in played if not isinstance(trajectory, Dropped) for step in trajectory]
        lost = [(task, reason) for task, reason in zip(tasks, played, strict=True) if isinstance(reason, Dropped)]
        dropped = Counter(reason.kind for _, reason in lost)
        where = f"{settings.env}/{settings.split}"
        if not steps:
            failed = (reason.details for _, reason in lost if reason.kind not in (_NOT_WON, _REPLAY_DIFFERS))
            first_error = "".join(f" The first error: {details}" for details in islice(failed, 1))
            saved.clear()
            raise DataError(
                f"Expert {name!r} has won none of {len(tasks)} tasks of {where}: {dict(dropped)}.{first_error}"
            )
        manifest = replace(manifest, counts=_counts(tasks, steps, dropped), seconds=saved.seconds)
        with atomic_folder(out) as folder:
            write_rows(folder / TRAJECTORIES, [step.to_row() for step in steps], TRAJECTORY)
            write_json_lines(folder / DROPPED, ({"task_id": task.task_id, **asdict(reason)} for task, reason in lost))
            write_manifest(folder, manifest)
    if lost:
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(dropped.items()))
        logger.warning("%s: %d of %d tasks have no trajectory: %s.", where, len(lost), len(tasks), counted)
    return manifest


def play(environment: Environment, expert: Expert, task: Task, *, source: str, seed: int = 0) -> list[Step]:
    """Play one episode with `expert`. Every step gets the `success` of the episode; `verified` is still false."""
    first = environment.reset(task)
    expert.reset(task, seed)
    history: list[Turn] = []
    steps: list[Step] = []
    observation, admissible, done = first.observation, first.admissible_actions, False
    while not done:
        context = Context(first.goal, tuple(history), observation, admissible)
        action, inferable = expert.act(context, environment)
        ties = expert.ties(context) if isinstance(expert, TyingExpert) else ()
        plan_length = environment.plan_length() if isinstance(environment, PlanningEnvironment) else None
        result = environment.step(action)
        steps.append(
            Step(
                context=context,
                env=task.env,
                split=task.split,
                task_id=task.task_id,
                task_type=task.task_type,
                trajectory_id=f"{task.env}/{task.split}/{task.task_id}/{source}",
                step=len(steps),
                action=action,
                reward=result.reward,
                done=result.done,
                success=result.success,
                source=source,
                inferable=inferable,
                tied_actions=ties,
                plan_length=plan_length,
                verified=False,
                admissible=result.admissible,
            )
        )
        history.append(Turn(observation, action))
        observation, admissible, done = result.observation, result.admissible_actions, result.done
    return [replace(step, success=steps[-1].success) for step in steps]


def replays(environment: Environment, task: Task, steps: Sequence[Step]) -> bool:
    """Whether the actions of `steps` give the same observations, rewards and success on `environment`."""
    first = environment.reset(task)
    observation, admissible = first.observation, first.admissible_actions
    for step in steps:
        if (observation, admissible) != (step.context.observation, step.context.admissible_actions):
            return False
        result = environment.step(step.action)
        if (result.reward, result.done, result.success) != (step.reward, step.done, step.done and step.success):
            return False
        observation, admissible = result.observation, result.admissible_actions
    return True


@dataclass
class _ExpertPlayer(Player[Task, Played]):
    """Plays tasks with an expert."""

    expert: str
    seed: int

    @cached_property
    def _expert(self) -> Expert:
        return get_env(self.env).experts[self.expert]()

    def __call__(self, task: Task) -> Played:
        environment, fresh = self.environments
        try:
            steps = play(environment, self._expert, task, source=self.expert, seed=self.seed)
            if not steps[-1].success:
                return Dropped(_NOT_WON, f"The episode ended after {len(steps)} actions without success.")
            if not replays(fresh, task, steps):
                return Dropped(_REPLAY_DIFFERS)
            return [replace(step, verified=True) for step in steps]
        except ExpertGaveUp as error:  # not a fault: for example a gold path that ends before the goal
            return Dropped(_NOT_WON, str(error))
        except Exception:
            self.__dict__.pop("_expert", None)  # its state is unknown
            raise


def check_expert(spec: EnvSpec, expert: str | None) -> None:
    """Raise `ConfigError` if `spec` has no such expert. None means any expert."""
    if not spec.experts:
        raise ConfigError(
            f"{spec.name} has no expert. Add one to its EnvSpec, or import recorded trajectories: "
            "use `verl-act data import`, or expert.files in a recipe."
        )
    if expert is not None and expert not in spec.experts:
        raise OptionError(
            "expert", f"is {expert!r}, which {spec.name} does not have; choose from {', '.join(spec.experts)}."
        )


def check_settings(settings: ExpertSettings) -> EnvSpec:
    """Return the environment. Raises `ConfigError` for an invalid setting."""
    spec = check_env(settings.env, settings.env_settings, [settings.split])
    check_expert(spec, settings.expert)
    return spec


def _counts(tasks: Sequence[Task], steps: Sequence[Step], dropped: Mapping[str, int]) -> dict[str, Any]:
    lengths = Counter(step.trajectory_id for step in steps)
    return {
        "tasks": len(tasks),
        "trajectories": len(lengths),
        "by_task_type": dict(sorted(Counter(step.task_type for step in steps if step.step == 0).items())),
        "dropped": dict(sorted(dropped.items())),
        "steps": len(steps),
        "mean_steps": round(len(steps) / len(lengths), 2),
        "inferable_share": round(sum(step.inferable for step in steps) / len(steps), 4),
    }
