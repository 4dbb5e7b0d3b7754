"""Build pairs, the data of the critic stage, from expert states and sampled replies (paper section 3, D_critic).

An alternative is dropped if it equals the expert's action, is a duplicate, or is no worse than the expert's action by
the margin measured in the real environment. Everything dropped is counted in the manifest.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.data_prep.pairs.giveaways import matched
from verl_act.data_prep.pairs.pairing import PairSettings, make_pairs
from verl_act.data_prep.pairs.proposals import POLICY
from verl_act.envs.process_pool import check_workers
from verl_act.errors import ConfigError, DataError
from verl_act.journal import journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.process import TASK_TIMEOUT
from verl_act.sampling import sampling_key
from verl_act.schema import ALTERNATIVES, PAIR, Alternatives, Pair, Step, read_steps, read_table, write_rows

logger = logging.getLogger(__name__)

FILE_NAME = "pairs.parquet"


@writes_folder("build_pairs")
def build_pairs(
    out: str | PathLike[str],
    trajectories: Sequence[str | PathLike[str]],
    alternatives: Sequence[str | PathLike[str]] = (),
    env_settings: Mapping[str, Any] | None = None,
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    *,
    max_alternatives_per_state: int = 1,
    candidates: int = 2,
    source: str = POLICY,
    matched_first: bool = True,
    stand_ins: bool = True,
    margins: bool = True,
    keep_nonpositive_margin: bool = False,
    inferable_only: bool = False,
    max_inadmissible_share: float = 1.0,
    seed: int = 0,
    limit: int | None = None,
) -> Manifest:
    """Write `out/pairs.parquet` (schema PAIR) and its manifest; return the manifest, which counts what was dropped.

    `alternatives` are files written by `sample_alternatives`. `env_settings` are the settings of the environment (for
    ALFWorld: `data`) with which the trajectories were collected. `workers` is the number of processes; a trajectory
    that takes more than `task_timeout` seconds, or crashes its process, is dropped (see `process_pool`, also for 0).
    The other arguments are the fields of `PairSettings`.

    The same inputs and seed give the same bytes. Raises `DataError` if the inputs do not match or no pair remains, and
    `ConfigError` for invalid settings.
    """
    settings = PairSettings(
        max_alternatives_per_state=max_alternatives_per_state,
        candidates=candidates,
        source=source,
        matched_first=matched_first,
        stand_ins=stand_ins,
        margins=margins,
        keep_nonpositive_margin=keep_nonpositive_margin,
        inferable_only=inferable_only,
        max_inadmissible_share=max_inadmissible_share,
        seed=seed,
        limit=limit,
    )
    check_workers(workers)
    started = time.monotonic()
    if settings.source == POLICY and not alternatives:
        raise ConfigError(
            "no file of sampled replies is given: run sample_alternatives and pass its file as `alternatives`, "
            "or sample alternatives from the admissible actions with source=admissible."
        )
    counts: Counter[str] = Counter()
    steps = read_steps(trajectories)
    sampled = _read_replies(alternatives, steps, counts)
    manifest = make_manifest(
        "build_pairs",
        settings={**asdict(settings), "env_settings": dict(env_settings or {})},
        inputs=[*trajectories, *alternatives],
        seed=seed,
    )
    with journal(Path(out), key_of(manifest)) as saved:
        # With a limit, replaying stops once there are enough pairs; with several processes, soon after.
        pairs = list(
            islice(
                make_pairs(steps, sampled, env_settings or {}, settings, counts, workers, task_timeout, saved),
                settings.limit,
            )
        )
        pairs = _bound_inadmissible(pairs, settings, counts)
        if not pairs:
            saved.clear()
            names = ", ".join(map(str, trajectories))
            raise DataError(f"{names}: no pairs from {counts['states']} states. Dropped: {_dropped(counts, settings)}.")
        counts.update(
            pairs=len(pairs),
            pairs_matched=sum(map(matched, pairs)),
            pairs_inadmissible=sum(not pair.alternative_admissible for pair in pairs),
            pairs_not_inferable=sum(not pair.inferable for pair in pairs),
            pairs_with_margin=sum(pair.margin is not None for pair in pairs),
        )
        counts.update(f"pairs_from_{pair.alternative_source}" for pair in pairs)
        seconds = round(time.monotonic() - started, 1)
        manifest = replace(manifest, counts=dict(sorted(counts.items())), seconds=seconds)
        with atomic_folder(out) as folder:
            write_rows(folder / FILE_NAME, [pair.to_row() for pair in pairs], PAIR)
            write_manifest(folder, manifest)
        logger.info("%s: %d pairs. Dropped: %s.", Path(out) / FILE_NAME, len(pairs), _dropped(counts, settings))
        return manifest


def _read_replies(
    paths: Sequence[str | PathLike[str]], steps: Sequence[Step], counts: Counter[str]
) -> dict[str, Alternatives]:
    """State id -> replies. Raises `DataError` if a state occurs twice, or no state is in the trajectories."""
    known = {step.state_id for step in steps}
    by_state: dict[str, Alternatives] = {}
    for path in paths:
        for row in read_table(path, ALTERNATIVES).to_pylist():
            replies = Alternatives.from_row(row)
            if replies.state_id in by_state:
                raise DataError(f"{path}: state {replies.state_id} occurs twice. Pass the replies of one sampling run.")
            if replies.state_id in known:
                by_state[replies.state_id] = replies
            else:
                counts["states_of_other_trajectories"] += 1
    if counts["states_of_other_trajectories"] and not by_state:
        names = ", ".join(map(str, paths))
        raise DataError(
            f"{names}: none of its states is in the trajectories; pass the trajectories that were sampled from."
        )
    return by_state


def _bound_inadmissible(pairs: list[Pair], settings: PairSettings, counts: Counter[str]) -> list[Pair]:
    """Drop random pairs with inadmissible alternatives until their share is within the bound."""
    inadmissible = sorted(
        (pair for pair in pairs if not pair.alternative_admissible),
        key=lambda pair: sampling_key(settings.seed, pair.pair_id),
    )
    share = settings.max_inadmissible_share
    if share == 1:
        return pairs
    most = math.floor((len(pairs) - len(inadmissible)) * share / (1 - share))
    dropped = {pair.pair_id for pair in inadmissible[most:]}
    counts["alternatives_inadmissible_beyond_the_share"] += len(dropped)
    return [pair for pair in pairs if pair.pair_id not in dropped]


def _dropped(counts: Mapping[str, int], settings: PairSettings) -> str:
    """The counts of everything dropped, as text."""
    totals = {"states", "replies"} | (set() if settings.inferable_only else {"states_not_inferable"})
    dropped = {name: count for name, count in counts.items() if count and not name.startswith("pairs")}
    return ", ".join(f"{name} {dropped[name]}" for name in sorted(dropped.keys() - totals)) or "nothing"
