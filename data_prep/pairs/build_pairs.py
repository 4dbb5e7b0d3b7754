"""Build pairs, the data of the critic stage, from expert states and sampled replies (paper section 3, D_critic).

An alternative is dropped if it equals the expert's action, is a duplicate, or is no worse than the expert's action by
the margin measured in the real environment. Everything dropped is counted in the manifest.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path

from verl_act.data_prep.pairs.giveaways import matched
from verl_act.data_prep.pairs.pairing import make_pairs
from verl_act.envs.settings import input_folders
from verl_act.errors import DataError
from verl_act.journal import journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.run_folder import PAIRS as PAIRS_FILE
from verl_act.sampling import sampling_key
from verl_act.schema import PAIR, Alternatives, Pair, Step, read_alternatives, read_steps, write_rows
from verl_act.settings.data import PairsSettings

logger = logging.getLogger(__name__)


@writes_folder("build_pairs")
def build_pairs(settings: PairsSettings, out: str | PathLike[str]) -> Manifest:
    """Write `out/pairs.parquet` (schema PAIR) and its manifest; return the manifest, which counts what was dropped.

    The settings of the environment must be those with which the trajectories were collected. A trajectory that takes
    more than the time limit, or crashes its process, is dropped (see `process_pool`, also for 0 workers).

    The same inputs and seed give the same bytes. Raises `DataError` if the inputs do not match or no pair remains.
    """
    counts: Counter[str] = Counter()
    steps = read_steps(settings.trajectories)
    sampled = _read_replies(settings.alternatives, steps, counts)
    manifest = make_manifest(
        "build_pairs",
        settings=settings.recorded(),
        inputs=[*settings.inputs(), *input_folders(settings.env_settings)],
        seed=settings.seed,
    )
    with journal(out, key_of(manifest)) as saved:
        # With a limit, replaying stops once there are enough pairs; with several processes, soon after.
        pairs = list(islice(make_pairs(steps, sampled, settings, counts, saved), settings.limit))
        pairs = _bound_inadmissible(pairs, settings, counts)
        if not pairs:
            saved.clear()
            names = ", ".join(map(str, settings.trajectories))
            raise DataError(f"{names}: no pairs from {counts['states']} states. Dropped: {_dropped(counts)}.")
        counts.update(
            pairs=len(pairs),
            pairs_matched=sum(map(matched, pairs)),
            pairs_inadmissible=sum(not pair.alternative_admissible for pair in pairs),
            pairs_not_inferable=sum(not pair.inferable for pair in pairs),
            pairs_with_margin=sum(pair.margin is not None for pair in pairs),
        )
        counts.update(f"pairs_from_{pair.alternative_source}" for pair in pairs)
        manifest = replace(manifest, counts=dict(sorted(counts.items())), seconds=saved.seconds)
        with atomic_folder(out) as folder:
            write_rows(folder / PAIRS_FILE, [pair.to_row() for pair in pairs], PAIR)
            write_manifest(folder, manifest)
        logger.info("%s: %d pairs. Dropped: %s.", Path(out) / PAIRS_FILE, len(pairs), _dropped(counts))
        return manifest


def _read_replies(
    paths: Sequence[str | PathLike[str]], steps: Sequence[Step], counts: Counter[str]
) -> dict[str, Alternatives]:
    """State id -> replies, for `steps`. Raises `DataError` if a state occurs twice, or none is in the trajectories."""
    replies = read_alternatives(paths)
    by_state = {step.state_id: replies[step.state_id] for step in steps if step.state_id in replies}
    counts["states_of_other_trajectories"] += len(replies) - len(by_state)
    if counts["states_of_other_trajectories"] and not by_state:
        names = ", ".join(map(str, paths))
        raise DataError(
            f"{names}: none of its states is in the trajectories; pass the trajectories that were sampled from."
        )
    return by_state


def _bound_inadmissible(pairs: list[Pair], settings: PairsSettings, counts: Counter[str]) -> list[Pair]:
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


def _dropped(counts: Mapping[str, int]) -> str:
    """The counts of everything dropped, as text."""
    totals = {"states", "replies", "states_not_inferable"}
    dropped = {name: count for name, count in counts.items() if count and not name.startswith("pairs")}
    return ", ".join(f"{name} {dropped[name]}" for name in sorted(dropped.keys() - totals)) or "nothing"
