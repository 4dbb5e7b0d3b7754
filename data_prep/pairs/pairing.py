"""Make pairs from expert steps and proposed alternatives, one trajectory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.pairs.margins import Judgement, Replayers, leave_out
from verl_act.data_prep.pairs.proposals import (
    ADMISSIBLE,
    POLICY,
    Proposal,
    from_admissible,
    from_policy,
    matched_first,
)
from verl_act.envs.process_pool import Failure, failed, process_pool
from verl_act.envs.registry import is_admissible
from verl_act.errors import OptionError
from verl_act.journal import Journal, SavedResults
from verl_act.options import Positive, Seed, Share, check_options
from verl_act.parse import match_action
from verl_act.process import TASK_TIMEOUT
from verl_act.sampling import sampling_key
from verl_act.schema import Alternatives, Pair, Step, pair_id

Judge = Callable[[str], Judgement]
_Paired = tuple[list[Pair], Counter[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """Which pairs are made.

    `source` is `policy` (replies sampled from the initial policy) or `admissible` (random admissible actions).
    `candidates` is the maximum number of actions in a pair, including the expert's; with more than two, a pair groups
    several alternatives of its state. `matched_first` prefers alternatives that are admissible and have the expert's
    verb and number of words: shallow features tell others from the expert's action. `stand_ins` gives a state without a
    usable reply a random admissible action, marked as such. `margins` measures margins in the environment; without it
    they are unknown, and no alternative is dropped for its margin. `max_inadmissible_share` bounds the share of pairs
    whose alternative the environment would refuse. `limit` bounds the number of pairs; trajectories are then processed
    in a random order.
    """

    max_alternatives_per_state: Positive = 1
    candidates: Positive = 2
    source: str = POLICY
    matched_first: bool = True
    stand_ins: bool = True
    margins: bool = True
    keep_nonpositive_margin: bool = False
    inferable_only: bool = False
    max_inadmissible_share: Share = 1.0
    seed: Seed = 0
    limit: Positive | None = None

    def __post_init__(self) -> None:
        check_options(type(self), asdict(self), "settings")
        if self.source not in (POLICY, ADMISSIBLE):
            raise OptionError("settings.source", f"is {self.source!r}; it can be {POLICY!r} or {ADMISSIBLE!r}.")
        if not 2 <= self.candidates <= 1 + self.max_alternatives_per_state:
            raise OptionError(
                "settings.candidates",
                f"is {self.candidates}; it must be at least 2, and at most 1 + max_alternatives_per_state "
                f"({1 + self.max_alternatives_per_state}).",
            )


def make_pairs(
    steps: Sequence[Step],
    sampled: Mapping[str, Alternatives],
    env_settings: Mapping[str, Any],
    settings: PairSettings,
    counts: Counter[str],
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    journal: Journal | None = None,
) -> Iterator[Pair]:
    """Yield all pairs, one trajectory after another. Everything dropped is added to `counts`, by reason.

    A trajectory that does not replay is dropped from the first differing step on. `workers` is the number of processes
    and does not change the result. A trajectory that takes more than `task_timeout` seconds, or crashes its process, is
    dropped as a whole. Trajectories that are already in `journal` are not processed again.
    """
    trajectories: dict[str, list[Step]] = {}
    for step in steps:
        trajectories.setdefault(step.trajectory_id, []).append(step)
    names = list(trajectories)
    if settings.limit is not None:
        names.sort(key=lambda name: sampling_key(settings.seed, name))
    jobs = ([(step, sampled.get(step.state_id)) for step in trajectories[name]] for name in names)
    replayers = Replayers(env_settings, sorted({step.env for step in steps}) if settings.margins else ())
    with process_pool(_Pairer(replayers, settings), workers, task_timeout) as pair_all:
        saved = SavedResults[_Paired](journal, "pairs", _Paired) if journal else None
        done = tqdm(pair_all(jobs, saved), "building pairs", len(names), unit="trajectory", mininterval=1.0)
        for name, result in zip(names, done, strict=True):
            if isinstance(result, Failure):
                counts["states"] += len(trajectories[name])
                leave_out(name, result.reason, counts)
                continue
            pairs, trajectory_counts = result
            counts.update(trajectory_counts)
            yield from pairs


@dataclass
class _Pairer:
    """Makes the pairs of a trajectory and counts everything it drops."""

    replayers: Replayers
    settings: PairSettings

    def __call__(self, trajectory: Sequence[tuple[Step, Alternatives | None]]) -> _Paired:
        settings, counts, pairs = self.settings, Counter[str](), list[Pair]()
        sampled = {step.state_id: replies for step, replies in trajectory}
        usable = [step for step, _ in trajectory if step.inferable or not settings.inferable_only]
        counts["states"] += len(trajectory)
        counts["states_not_inferable"] += sum(not step.inferable for step, _ in trajectory)
        try:
            for step, judge in self._states(usable):
                if _does_nothing(step, judge):
                    counts["states_expert_inadmissible"] += 1
                    continue
                pairs += _pairs_at(step, sampled[step.state_id], judge, settings, counts)
        except Exception as error:
            leave_out(trajectory[0][0].trajectory_id, failed(self, error).reason, counts, error)
        return pairs, counts

    def _states(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Judge]]:
        """The steps of one trajectory, each with a function that judges an action at that step."""
        if not self.settings.margins:
            yield from ((step, _unmeasured(step)) for step in steps)
        elif steps:
            yield from ((state.step, state.judge) for state in self.replayers.get(steps[0].env).replay(steps))

    def prepare(self) -> None:
        self.replayers.prepare()

    def close(self) -> None:
        self.replayers.close()


def _does_nothing(step: Step, judge: Judge) -> bool:
    """Whether the environment refuses the expert's action; ScienceWorld's gold paths open doors that are open."""
    if step.admissible is not None:
        return not step.admissible
    admissible = step.context.admissible_actions
    # Try it only if the action is not listed: WebShop accepts any search, and none is in the list.
    return bool(admissible) and match_action(step.action, admissible) is None and not judge(step.action).admissible


def _unmeasured(step: Step) -> Judge:
    return lambda action: Judgement(is_admissible(step.env, action, step.context.admissible_actions), None)


def _pairs_at(
    step: Step, sampled: Alternatives | None, judge: Judge, settings: PairSettings, counts: Counter[str]
) -> Iterator[Pair]:
    """The pairs of one state. If the policy gave no usable alternative, one admissible action may be used."""
    most = settings.max_alternatives_per_state

    def usable(proposals: Iterable[Proposal], most: int) -> list[tuple[Proposal, Judgement]]:
        ordered = matched_first(step, proposals) if settings.matched_first else proposals
        return _usable(ordered, judge, most, settings, counts)

    if settings.source == ADMISSIBLE:
        kept = usable(from_admissible(step, settings.seed), most)
    else:
        sampled_actions = from_policy(step, sampled, counts)
        kept = usable(sampled_actions, most)
        if not kept and settings.stand_ins:
            kept = usable(from_admissible(step, settings.seed, sampled_actions), 1)
    counts["states_without_alternative"] += not kept
    size = settings.candidates - 1
    yield from (_pair(step, kept[start : start + size], sampled) for start in range(0, len(kept), size))


def _usable(
    proposals: Iterable[Proposal], judge: Judge, most: int, settings: PairSettings, counts: Counter[str]
) -> list[tuple[Proposal, Judgement]]:
    """The first `most` proposals that are worse than the expert's action, or whose margin is unknown."""
    kept: list[tuple[Proposal, Judgement]] = []
    for proposal in proposals:
        if len(kept) == most:
            counts["alternatives_beyond_the_limit"] += proposal.source == POLICY
            continue
        judgement = judge(proposal.action)
        if judgement.margin is not None and judgement.margin <= 0 and not settings.keep_nonpositive_margin:
            counts["alternatives_no_worse_than_the_expert"] += 1
        else:
            kept.append((proposal, judgement))
    return kept


def _pair(step: Step, kept: Sequence[tuple[Proposal, Judgement]], sampled: Alternatives | None) -> Pair:
    """One pair with all alternatives in `kept`, which have the same source."""
    proposal, judgement = kept[0]
    actions = [proposal.action for proposal, _ in kept]
    margins = [judgement.margin for _, judgement in kept if judgement.margin is not None]
    from_model = sampled if proposal.source == POLICY else None
    return Pair(
        context=step.context,
        pair_id=pair_id(step.state_id, step.action, *actions),
        env=step.env,
        split=step.split,
        task_id=step.task_id,
        task_type=step.task_type,
        state_id=step.state_id,
        step=step.step,
        expert_action=step.action,
        alternative_action=proposal.action,
        further_alternatives=tuple(actions[1:]),
        alternative_source=proposal.source,
        alternative_admissible=judgement.admissible,
        further_admissible=tuple(other.admissible for _, other in kept[1:]),
        model=from_model.model if from_model else "",
        sampling=from_model.sampling if from_model else "{}",
        margin=min(margins) if len(margins) == len(kept) else None,
        inferable=step.inferable,
    )
