"""One published row is played on the real engine: respelled, replayed, and proved on a fresh environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from verl_act.data_prep.expert.collect_expert import play, replays
from verl_act.data_prep.imports.published import Published
from verl_act.data_prep.imports.published_tasks import Spell, advice, speller, thought_judge
from verl_act.data_prep.imports.webshop_titles import NoSuchProduct
from verl_act.data_prep.process_pool import Failure, Player, failed
from verl_act.envs.base import Environment, EnvSpec, Expert, Task
from verl_act.envs.registry import get_env
from verl_act.errors import EnvError
from verl_act.schema import Context, Step


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row is left out. `kind` is the reason in the words that are counted, `details` say more."""

    kind: str
    details: str = ""

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.details}" if self.details else self.kind


@dataclass(frozen=True, slots=True)
class Replayed:
    """The verified steps of a row, and how many of its thoughts do not hold here (those steps have none)."""

    steps: list[Step]
    thoughts_left_out: int


Candidates = tuple[Published, Sequence[Task]]
"""A row and the tasks that it may be about, the likeliest first."""

Outcome = Replayed | Refusal


@dataclass
class Replayer(Player[Candidates | Refusal, Outcome]):
    """Plays rows. A step counts as inferable as `import_trajectories` says. `source` is that of the steps, but for
    rows whose keys name another format.
    """

    source: str

    @cached_property
    def _judge(self) -> Expert | None:
        return _judge(get_env(self.env))

    def __call__(self, job: Candidates | Refusal) -> Outcome:
        """The steps of the first task on which the row wins, or why it does not win on the likeliest. A row that was
        refused before stays so.
        """
        if isinstance(job, Refusal):
            return job
        row, tasks = job
        refusals = []
        for task in tasks:
            played = self._play(row, task)
            if isinstance(played, Replayed):
                return played
            refusals.append(played)
        return refusals[0]

    def _play(self, row: Published, task: Task) -> Outcome:
        environment, fresh = self.environments
        follower = _Follower(row.actions, speller(self.env, self.settings), self._judge, self.env)
        try:
            try:
                steps = play(environment, follower, task, source=row.form or self.source)
            except _ActionsEnd:
                return self._lost(row, "does not reach the goal", _why_not(fresh, task, follower.taken))
            alike = not steps[-1].success or replays(fresh, task, steps)
        except NoSuchProduct as error:
            return Refusal("no such product on the page", str(error))
        except Exception as error:
            return self.failed(row, failed(self, error))
        if not steps[-1].success:
            refused = [step.action for step in steps if step.admissible is False]
            ends = f"it ends after {len(steps)} of {len(row.actions)} actions{_refused(refused, len(steps))}"
            return self._lost(row, "does not reach the goal", ends)
        return self._kept(row, steps) if alike else Refusal("does not replay alike")

    def failed(self, row: Published, failure: Failure) -> Refusal:
        """Why a row is left out at which its environment has failed."""
        return self._lost(row, "cannot be played", failure.reason)

    def _lost(self, row: Published, kind: str, details: str) -> Refusal:
        told = advice(self.env, self.settings, row, found=True)
        return Refusal(kind, f"{details} ({told})" if told else details)

    def _kept(self, row: Published, steps: Sequence[Step]) -> Replayed:
        holds, goal = thought_judge(self.env), steps[0].context.goal
        thoughts = [row.thoughts[step.step] for step in steps]
        kept = [None if thought is None or not holds(thought, row, goal) else thought for thought in thoughts]
        left_out = sum(thought is not None for thought in thoughts) - sum(thought is not None for thought in kept)
        verified = [replace(step, thought=thought, verified=True) for step, thought in zip(steps, kept, strict=True)]
        return Replayed(verified, left_out)


class _ActionsEnd(EnvError):
    """A row has no more actions, and its episode is not over."""


@dataclass
class _Follower:
    """Plays given actions as an expert does."""

    actions: Sequence[str]
    spell: Spell
    judge: Expert | None
    env: str
    taken: list[str] = field(default_factory=list)

    def reset(self, task: Task) -> None:
        self.taken.clear()
        if self.judge:
            self.judge.reset(task)

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        if len(context.history) >= len(self.actions):
            raise _ActionsEnd
        action = self.spell(self.actions[len(context.history)], context.admissible_actions, environment)
        self.taken.append(action)
        return action, self._inferable(action, context, environment)

    def _inferable(self, action: str, context: Context, environment: Environment) -> bool:
        if self.judge is None:
            return self.env != "scienceworld" or _follows(action, context, environment)
        try:
            return self.judge.act(context, environment) == (action, True)
        except EnvError:
            return False


def _why_not(environment: Environment, task: Task, actions: Sequence[str]) -> str:
    """Why `actions` end before the goal, as a second episode shows."""
    environment.reset(task)
    refused = [action for action in actions if not environment.step(action).admissible]
    if len(refused) == len(actions):
        return f"none of its {len(actions)} actions was admissible, the first {refused[0]!r:.100}"
    return f"its {len(actions)} actions end before it{_refused(refused, len(actions))}"


def _refused(actions: Sequence[str], played: int) -> str:
    return f"; {len(actions)} of these {played} were not admissible, the first {actions[0]!r:.100}" if actions else ""


def _judge(spec: EnvSpec) -> Expert | None:
    """The environment's expert that acts on the transcript, if any: ScienceWorld's follows a path of its own."""
    makers = () if spec.name == "scienceworld" else spec.experts.values()
    return next((make() for make in makers), None)


def _follows(action: str, context: Context, environment: Environment) -> bool:
    from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
    from verl_act.envs.scienceworld.experts import follows

    assert isinstance(environment, ScienceWorldEnvironment)
    return environment.reading(action)[1] and follows(action, context)
