"""From expert steps and proposals to pairs, trajectory by trajectory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.pairs.probe import Judgement, Probers, leave_out
from verl_act.data_prep.pairs.proposals import ADMISSIBLE, POLICY, Proposal, from_admissible, from_policy
from verl_act.data_prep.process_pool import Failure, failed, process_pool
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
    """What becomes a pair.

    `source` is `policy` (replies sampled from the initial policy; where a state has no usable one, a random admissible
    action stands in and is marked so) or `admissible` (random admissible actions throughout). `candidates` is the most
    actions that one pair shows, the expert's among them: with more than two, a state's alternatives stand together.
    `margins` probes the environment; without it, margins are unknown and nothing is left out for them.
    `max_inadmissible_share` bounds the share of pairs whose alternative the environment would refuse. `limit` bounds
    the number of pairs: trajectories are then taken in a random order.
    """

    max_alternatives_per_state: Positive = 1
    candidates: Positive = 2
    source: str = POLICY
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
                f"is {self.candidates}; it must be 2 at least, and max_alternatives_per_state "
                f"({self.max_alternatives_per_state}) must give the others.",
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
    """All pairs, lazily, one trajectory after another; `counts` takes note of what is left out, and why.

    A trajectory that does not replay is left out from the step on where it departs. `workers` processes share the
    trajectories and do not change the result; one that takes more than `task_timeout` seconds, or ends its process, is
    left out as a whole. Those that `journal` has are not paired again.
    """
    trajectories: dict[str, list[Step]] = {}
    for step in steps:
        trajectories.setdefault(step.trajectory_id, []).append(step)
    names = list(trajectories)
    if settings.limit is not None:
        names.sort(key=lambda name: sampling_key(settings.seed, name))
    jobs = ([(step, sampled.get(step.state_id)) for step in trajectories[name]] for name in names)
    probers = Probers(env_settings, sorted({step.env for step in steps}) if settings.margins else ())
    with process_pool(_Pairer(probers, settings), workers, task_timeout) as pair_all:
        saved = SavedResults[_Paired](journal, "pairs", _Paired) if journal else None
        done = tqdm(pair_all(jobs, saved), "building pairs", len(names), unit="trajectory", mininterval=1.0)
        for name, result in zip(names, done, strict=True):
            if isinstance(result, Failure):
                counts["states"] += len(trajectories[name])
                leave_out(name, result.reason, counts)
                continue
            pairs, found = result
            counts.update(found)
            yield from pairs


@dataclass
class _Pairer:
    """Makes the pairs of one trajectory after another, and counts what it leaves out."""

    probers: Probers
    settings: PairSettings

    def __call__(self, trajectory: Sequence[tuple[Step, Alternatives | None]]) -> _Paired:
        settings, counts, pairs = self.settings, Counter[str](), list[Pair]()
        sampled = {step.state_id: replies for step, replies in trajectory}
        wanted = [step for step, _ in trajectory if step.inferable or not settings.inferable_only]
        counts["states"] += len(trajectory)
        counts["states_not_inferable"] += sum(not step.inferable for step, _ in trajectory)
        try:
            for step, judge in self._states(wanted):
                if _does_nothing(step, judge):
                    counts["states_expert_inadmissible"] += 1
                    continue
                pairs += _pairs_at(step, sampled[step.state_id], judge, settings, counts)
        except Exception as error:
            leave_out(trajectory[0][0].trajectory_id, failed(self, error).reason, counts, error)
        return pairs, counts

    def _states(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Judge]]:
        """The steps of one trajectory, each with what judges an action there."""
        if not self.settings.margins:
            yield from ((step, _unprobed(step)) for step in steps)
        elif steps:
            yield from ((state.step, state.judge) for state in self.probers.of(steps[0].env).replay(steps))

    def prepare(self) -> None:
        self.probers.prepare()

    def close(self) -> None:
        self.probers.close()


def _does_nothing(step: Step, judge: Judge) -> bool:
    """Whether the environment refuses the expert's own action: ScienceWorld's gold paths open doors that are open."""
    if step.admissible is not None:
        return not step.admissible
    admissible = step.context.admissible_actions
    # Asked of the environment only where the list does not tell: WebShop takes searches that no list has.
    return bool(admissible) and match_action(step.action, admissible) is None and not judge(step.action).admissible


def _unprobed(step: Step) -> Judge:
    return lambda action: Judgement(is_admissible(step.env, action, step.context.admissible_actions), None)


def _pairs_at(
    step: Step, sampled: Alternatives | None, judge: Judge, settings: PairSettings, counts: Counter[str]
) -> Iterator[Pair]:
    """At most `max_alternatives_per_state` pairs; one from the admissible actions where the policy gave none."""
    most = settings.max_alternatives_per_state
    if settings.source == ADMISSIBLE:
        kept = _usable(from_admissible(step, settings.seed), judge, most, settings, counts)
    else:
        sampled_actions = from_policy(step, sampled, counts)
        kept = _usable(sampled_actions, judge, most, settings, counts)
        if not kept:
            kept = _usable(from_admissible(step, settings.seed, sampled_actions), judge, 1, settings, counts)
    counts["states_without_alternative"] += not kept
    shown = settings.candidates - 1
    yield from (_pair(step, kept[start : start + shown], sampled) for start in range(0, len(kept), shown))


def _usable(
    proposals: Iterable[Proposal], judge: Judge, most: int, settings: PairSettings, counts: Counter[str]
) -> list[tuple[Proposal, Judgement]]:
    """The first `most` proposals that are worse than the expert's action, as far as can be told."""
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
    """One row of all the alternatives that are `kept`; they have one source."""
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
