"""Expert states and sampled replies in, pairs out (paper section 3, D_critic): the data of the critic stage.

An alternative is left out where it equals the expert's action, comes twice, or is no worse than the expert's by the margin that
a probe of the real environment measures. Everything left out is counted in the manifest.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.probe import Judgement, Prober, ReplayError
from verl_act.data_prep.proposals import ADMISSIBLE, POLICY, Proposal, from_admissible, from_policy
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import atomic_folder, make_manifest, write_manifest
from verl_act.parse import match_action
from verl_act.schema import ALTERNATIVES, PAIR, Alternatives, Pair, Step, pair_id, read_steps, read_table, write_rows

logger = logging.getLogger(__name__)

FILE_NAME = "pairs.parquet"
Judge = Callable[[str], Judgement]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """What becomes a pair.

    `source` is `policy` (replies sampled from the initial policy; where a state has no usable one, a random admissible
    action stands in and is marked so) or `admissible` (random admissible actions throughout). `margins` probes the
    environment; without it, margins are unknown and nothing is left out for them. `max_inadmissible_share` bounds the
    share of pairs whose alternative the environment would refuse. `limit` bounds the number of pairs: trajectories
    are then taken in a random order.
    """

    max_alternatives_per_state: int = 1
    source: str = POLICY
    margins: bool = True
    keep_nonpositive_margin: bool = False
    inferable_only: bool = False
    max_inadmissible_share: float = 1.0
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.source not in (POLICY, ADMISSIBLE):
            raise ConfigError(f"source is {self.source!r}; it can be {POLICY!r} or {ADMISSIBLE!r}.")
        if self.max_alternatives_per_state < 1:
            raise ConfigError(f"max_alternatives_per_state is {self.max_alternatives_per_state}; it must be 1 or more.")
        if not 0 <= self.max_inadmissible_share <= 1:
            raise ConfigError(f"max_inadmissible_share is {self.max_inadmissible_share}; it must be within 0 and 1.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; give 1 or more, or none for all pairs.")


def build_pairs(
    out: str | PathLike[str],
    trajectories: Sequence[str | PathLike[str]],
    alternatives: Sequence[str | PathLike[str]] | None = None,
    env_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Counter[str]:
    """Write `out/pairs.parquet` (schema PAIR) and its manifest; returns the manifest's counts.

    `alternatives` are the files of `sample_alternatives`; `env_settings` are the environment's own (for ALFWorld:
    `data`), as for collecting the trajectories. `settings` are the fields of `PairSettings`.

    The same inputs and seed give the same bytes. Raises `DataError` where the inputs do not fit or no pair is left,
    `ConfigError` on impossible settings.
    """
    chosen = PairSettings(**settings)
    started = time.monotonic()
    if chosen.source == POLICY and not alternatives:
        raise ConfigError(
            "no file of sampled replies was given: run sample_alternatives first and pass its file as `alternatives`, or "
            "draw alternatives from the admissible actions with source=admissible."
        )
    counts: Counter[str] = Counter()
    steps = read_steps(trajectories)
    sampled = _sampled(alternatives or (), steps, counts)
    pairs = _bound_inadmissible(_limited(_pairs(steps, sampled, env_settings or {}, chosen, counts), chosen), chosen, counts)
    if not pairs:
        raise DataError(
            f"{', '.join(map(str, trajectories))}: no pair is left of {counts['states']} states; left out: {_listed(counts)}."
        )
    counts.update(pairs=len(pairs), pairs_inadmissible=sum(not pair.alternative_admissible for pair in pairs))
    counts.update(f"pairs_from_{pair.alternative_source}" for pair in pairs)
    with atomic_folder(out) as folder:
        write_rows(folder / FILE_NAME, [pair.to_row() for pair in pairs], PAIR)
        made = make_manifest(
            "build_pairs",
            settings={**{name: getattr(chosen, name) for name in PairSettings.__slots__}, "env_settings": env_settings},
            inputs=[*trajectories, *(alternatives or ())],
            counts=dict(sorted(counts.items())),
            seed=chosen.seed,
            seconds=time.monotonic() - started,
        )
        write_manifest(folder, made)
    logger.info("%s: %d pairs; left out: %s.", Path(out) / FILE_NAME, len(pairs), _listed(counts))
    return counts


def _sampled(
    paths: Iterable[str | PathLike[str]], steps: Sequence[Step], counts: Counter[str]
) -> dict[str, Alternatives]:
    """Replies by state. Raises `DataError` where they belong to other trajectories, or a state is in them twice."""
    known = {step.state_id for step in steps}
    found: dict[str, Alternatives] = {}
    for path in paths:
        for row in read_table(path, ALTERNATIVES).to_pylist():
            replies = Alternatives.from_row(row)
            if replies.state_id in found:
                raise DataError(f"{path}: state {replies.state_id} comes twice. Pass the replies of one sampling run.")
            if replies.state_id in known:
                found[replies.state_id] = replies
            else:
                counts["states_of_other_trajectories"] += 1
        if not found:
            raise DataError(f"{path}: none of its states is in the trajectories. Pass the trajectories it was sampled at.")
    return found


def _pairs(
    steps: Sequence[Step],
    sampled: Mapping[str, Alternatives],
    env_settings: Mapping[str, Any],
    settings: PairSettings,
    counts: Counter[str],
) -> Iterator[Pair]:
    """Pairs trajectory by trajectory."""
    trajectories: dict[str, list[Step]] = {}
    for step in steps:
        trajectories.setdefault(step.trajectory_id, []).append(step)
    names = list(trajectories)
    if settings.limit is not None:
        names.sort(key=lambda name: _rank(settings.seed, name))
    probers: dict[str, Prober] = {}
    try:
        for name in tqdm(names, desc="building pairs", unit="trajectory", mininterval=1.0):
            wanted = [step for step in trajectories[name] if step.inferable or not settings.inferable_only]
            counts["states"] += len(trajectories[name])
            counts["states_not_inferable"] += len(trajectories[name]) - len(wanted)
            try:
                for step, judge in _states(wanted, probers, env_settings, settings):
                    yield from _pairs_at(step, sampled.get(step.state_id), judge, settings, counts)
            except ReplayError as error:
                counts["trajectories_not_replayed"] += 1
                logger.warning("Left out the rest of a trajectory that does not replay: %s", error)
    finally:
        for prober in probers.values():
            prober.close()


def _states(
    steps: Sequence[Step], probers: dict[str, Prober], env_settings: Mapping[str, Any], settings: PairSettings
) -> Iterator[tuple[Step, Judge]]:
    """The steps of one trajectory, each with what judges an action there."""
    if not settings.margins:
        yield from ((step, _unprobed(step)) for step in steps)
    elif steps:
        env = steps[0].env
        if env not in probers:
            probers[env] = Prober(env, env_settings)
        yield from ((state.step, state.judge) for state in probers[env].replay(steps))


def _unprobed(step: Step) -> Judge:
    return lambda action: Judgement(match_action(action, step.context.admissible_actions) is not None, None)


def _pairs_at(
    step: Step, sampled: Alternatives | None, judge: Judge, settings: PairSettings, counts: Counter[str]
) -> Iterator[Pair]:
    """At most `max_alternatives_per_state` pairs; one from the admissible actions where the policy gave none."""
    kept = 0
    policy = from_policy(step, sampled, counts) if settings.source == POLICY else []
    for proposal in chain(policy, from_admissible(step, settings.seed)):
        enough = settings.max_alternatives_per_state if proposal.source == settings.source else min(1, kept + 1)
        if proposal.source != settings.source and kept:
            break
        if kept >= enough:
            counts["alternatives_beyond_the_limit"] += proposal.source == POLICY
            continue
        judgement = judge(proposal.action)
        if judgement.margin is not None and judgement.margin <= 0 and not settings.keep_nonpositive_margin:
            counts["alternatives_no_worse_than_the_expert"] += 1
            continue
        kept += 1
        yield _pair(step, proposal, judgement, sampled)
    counts["states_without_alternative"] += not kept


def _pair(step: Step, proposal: Proposal, judgement: Judgement, sampled: Alternatives | None) -> Pair:
    from_model = sampled if proposal.source == POLICY else None
    return Pair(
        context=step.context,
        pair_id=pair_id(step.state_id, step.action, proposal.action),
        env=step.env,
        split=step.split,
        task_id=step.task_id,
        task_type=step.task_type,
        state_id=step.state_id,
        step=step.step,
        expert_action=step.action,
        alternative_action=proposal.action,
        alternative_source=proposal.source,
        alternative_admissible=judgement.admissible,
        model=from_model.model if from_model else "",
        sampling=from_model.sampling if from_model else "{}",
        margin=judgement.margin,
        inferable=step.inferable,
    )


def _limited(pairs: Iterator[Pair], settings: PairSettings) -> list[Pair]:
    """All pairs or the first `limit`; later trajectories are then not even probed."""
    taken = [pair for pair, _ in zip(pairs, range(settings.limit), strict=False)] if settings.limit else list(pairs)
    return taken


def _bound_inadmissible(pairs: list[Pair], settings: PairSettings, counts: Counter[str]) -> list[Pair]:
    """Leave out inadmissible alternatives at random until their share of the pairs is within the bound."""
    refused = sorted(
        (pair for pair in pairs if not pair.alternative_admissible), key=lambda pair: _rank(settings.seed, pair.pair_id)
    )
    share = settings.max_inadmissible_share
    if share == 1:
        return pairs
    room = math.floor((len(pairs) - len(refused)) * share / (1 - share))
    dropped = {pair.pair_id for pair in refused[room:]}
    counts["alternatives_inadmissible_beyond_the_share"] += len(dropped)
    return [pair for pair in pairs if pair.pair_id not in dropped]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count) or "nothing"
