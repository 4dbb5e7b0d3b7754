"""Make pairs from expert steps and proposed alternatives, one trajectory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from verl_act.data_prep.pairs.margins import Judgement, TrajectoryReplayers, replay_all
from verl_act.data_prep.pairs.proposals import (
    ADMISSIBLE,
    POLICY,
    Proposal,
    from_admissible,
    from_policy,
    matched_first,
)
from verl_act.envs.registry import is_admissible
from verl_act.journal import Journal, SavedResults
from verl_act.parse import match_action
from verl_act.sampling import sampling_key
from verl_act.schema import Alternatives, Pair, Step, pair_id
from verl_act.settings.data import PairsSettings

Judge = Callable[[str], Judgement]
Paired = tuple[list[Pair], Counter[str]]
"""Of one trajectory: its pairs, and counts of what was left out."""


def make_pairs(
    steps: Sequence[Step],
    sampled: Mapping[str, Alternatives],
    settings: PairsSettings,
    counts: Counter[str],
    journal: Journal,
) -> Iterator[Pair]:
    """Yield all pairs, one trajectory after another. Everything dropped is added to `counts`, by reason.

    A trajectory that does not replay is dropped from the first differing step on. The number of workers
    does not change the result. A trajectory that takes more than the time limit, or crashes its process, is dropped as
    a whole. Trajectories that are already in `journal` are not processed again.
    """
    trajectories: dict[str, list[tuple[Step, Alternatives | None]]] = {}
    for step in steps:
        trajectories.setdefault(step.trajectory_id, []).append((step, sampled.get(step.state_id)))
    if settings.limit is not None:
        names = sorted(trajectories, key=lambda name: sampling_key(settings.seed, name))
        trajectories = {name: trajectories[name] for name in names}
    pairer = _Pairer(settings.env_settings, sorted({step.env for step in steps}) if settings.margins else (), settings)
    saved = SavedResults[Paired](journal, "pairs", Paired)
    for name, pairs in replay_all(pairer, trajectories, settings, counts, "building pairs", saved):
        counts["states"] += len(trajectories[name])
        yield from pairs


@dataclass
class _Pairer(TrajectoryReplayers[Alternatives | None, Pair]):
    """Makes the pairs of a trajectory and counts everything it drops."""

    settings: PairsSettings

    def found(self, trajectory: Sequence[tuple[Step, Alternatives | None]], counts: Counter[str]) -> Iterator[Pair]:
        settings = self.settings
        sampled = {step.state_id: replies for step, replies in trajectory}
        usable = [step for step, _ in trajectory if step.inferable or step.tied_actions or not settings.inferable_only]
        counts["states_not_inferable"] += sum(not step.inferable for step, _ in trajectory)
        counts["states_left_out"] += len(trajectory) - len(usable)
        for step, judge in self._states(usable):
            if _does_nothing(step, judge):
                counts["states_expert_inadmissible"] += 1
            else:
                yield from _pairs_at(step, sampled[step.state_id], judge, settings, counts)

    def _states(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Judge]]:
        """The steps of one trajectory, each with a function that judges an action at that step."""
        if not self.settings.margins:
            yield from ((step, _unmeasured(step)) for step in steps)
        elif steps:
            yield from ((state.step, state.judge) for state in self.get(steps[0].env).replay(steps))


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
    step: Step, sampled: Alternatives | None, judge: Judge, settings: PairsSettings, counts: Counter[str]
) -> Iterator[Pair]:
    """The pairs of one state. If the policy gave no usable alternative, one admissible action may be used."""
    most = settings.max_alternatives_per_state

    def usable(proposals: Iterable[Proposal], most: int) -> list[tuple[Proposal, Judgement]]:
        ordered = matched_first(step, proposals) if settings.matched_first else proposals
        return _usable(step, ordered, judge, most, settings, counts)

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
    step: Step, proposals: Iterable[Proposal], judge: Judge, most: int, settings: PairsSettings, counts: Counter[str]
) -> list[tuple[Proposal, Judgement]]:
    """The first `most` proposals that are worse than the expert's action, or whose margin is unknown."""
    kept: list[tuple[Proposal, Judgement]] = []
    for proposal in proposals:
        if len(kept) == most:
            counts["alternatives_beyond_the_limit"] += proposal.source == POLICY
            continue
        if settings.inferable_only and proposal.action in step.tied_actions:
            counts["alternatives_tied_with_the_expert"] += 1
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
        inferable=step.inferable or (bool(step.tied_actions) and not {*actions} & {*step.tied_actions}),
    )
