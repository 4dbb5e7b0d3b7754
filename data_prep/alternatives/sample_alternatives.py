"""Sample alternative actions from the initial policy at every expert state (paper section 3).

Raw replies are stored; `build_pairs` parses actions from them. A shard of states is saved when it is whole, so a killed
run resumes with the missing ones. The engine does not wait for the last reply of a shard: it samples the next ones
meanwhile. By default one vLLM engine runs for this process; with `workers`, Ray Data distributes the shards over that
many engines on a cluster.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from tqdm import tqdm

from verl_act.concurrency import for_each
from verl_act.engine import Engine, check_engine, model_digest, request_seed
from verl_act.errors import DataError
from verl_act.journal import journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.parse import parse_action
from verl_act.ray_session import ray_session, worker_failed
from verl_act.run_folder import ALTERNATIVES as ALTERNATIVES_FILE
from verl_act.sampling import sampling_key
from verl_act.schema import ALTERNATIVES, Alternatives, Step, read_steps, steps_to_learn, write_rows
from verl_act.settings.data import AlternativesSettings

SHARD_STATES = 256

SHARDS_IN_FLIGHT = 4
"""Shards that an engine on Ray samples at once."""

_Rows = list[dict[str, Any]]


@writes_folder("sample_alternatives")
def sample_alternatives(settings: AlternativesSettings, out: str | PathLike[str]) -> Manifest:
    """Write `out/alternatives.parquet` (schema ALTERNATIVES, one row per state in trajectory order) and a manifest.

    The limit bounds the states per split: whole trajectories are sampled until it is reached, in the order in which
    `build_pairs` with a limit and the same seed uses them. Where every request has a seed of its own (`seed_requests`
    of the engine options), the same seed and engine give the same replies, even if the run is interrupted. Otherwise a
    repeated or resumed run samples other ones; shards that are saved are kept.

    Raises `DataError` after the first shard if no reply has an action, unless `allow_degenerate`.
    """
    check_settings(settings)
    known = sampled_trajectories(read_steps(settings.trajectories), settings.limit, settings.seed)
    steps = steps_to_learn(known)
    if not steps:
        raise DataError(
            f"{', '.join(map(str, settings.trajectories))}: no expert states to sample at; collect trajectories first."
        )
    manifest = make_manifest(
        "sample_alternatives",
        settings={**settings.recorded(), "model_digest": model_digest(settings.model), "states": len(steps)},
        inputs=settings.inputs(),
        seed=settings.seed,
    )
    shards = dict(enumerate(steps[start : start + SHARD_STATES] for start in range(0, len(steps), SHARD_STATES)))
    with journal(out, key_of(manifest)) as saved:
        sampled = {index: record["rows"] for index in shards if (record := saved.get("shard", index)) is not None}
        missing = {index: shard for index, shard in shards.items() if index not in sampled}
        before = [row for rows in sampled.values() for row in rows]
        if before:
            _require_action(before, settings)
        with tqdm(total=len(steps), initial=len(before), desc="sampling alternatives", unit="state") as progress:

            def keep(index: int, rows: _Rows) -> None:
                sampled[index] = rows
                saved.add("shard", index, {"rows": rows})
                progress.update(len(rows))
                if len(sampled) == 1:
                    _require_action(rows, settings)

            if missing and settings.workers:
                _on_ray(missing, settings, keep)
            elif missing:
                sampler = Sampler(settings)
                with sampler.engine as engine:
                    engine.run(sampler.sample(missing, keep))
        rows = [row for index in shards for row in sampled[index]]
        replies = [reply for row in rows for reply in row["replies"]]
        counts = {
            "states": len(rows),
            "states_expert_inadmissible": len(known) - len(steps),
            "replies": len(replies),
            "empty": replies.count(""),
        }
        manifest = replace(manifest, counts=counts, seconds=saved.seconds)
        with atomic_folder(out) as folder:
            write_rows(folder / ALTERNATIVES_FILE, rows, ALTERNATIVES)
            write_manifest(folder, manifest)
    return manifest


def check_settings(settings: AlternativesSettings) -> None:
    """Raise `ConfigError` for an invalid setting."""
    check_engine(settings, settings.sampling)
    settings.make_template()


def _require_action(rows: _Rows, settings: AlternativesSettings) -> None:
    """Raise `DataError` if no reply has an action, unless `allow_degenerate`."""
    replies = [reply for row in rows for reply in row["replies"]]
    if settings.allow_degenerate or any(parse_action(reply).action is not None for reply in replies):
        return
    reasons = Counter(str(parse_action(reply).malformed) for reply in replies)
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise DataError(
        f"{settings.model}: none of the {len(replies)} replies for the first {len(rows)} states has an action "
        f"({listed}), so the model would give no alternatives. First reply: {replies[0][:200]!r}. If replies are cut "
        "(unclosed_think, unclosed), raise --max-tokens; otherwise use a model that follows the template "
        f"{settings.template!r}. To continue anyway, add --allow-degenerate (in a recipe: allow_degenerate: true); "
        "pairs then use random actions."
    )


def sampled_trajectories(steps: Sequence[Step], limit: int | None, seed: int) -> list[Step]:
    """Sample trajectories until each split has `limit` states, or all of its states; return their steps in order."""
    if limit is None:
        return list(steps)
    counts = Counter((step.split, step.trajectory_id) for step in steps)
    sampled, states = set[tuple[str, str]](), Counter[str]()
    for split, name in sorted(counts, key=lambda trajectory: sampling_key(seed, trajectory[1])):
        if states[split] < limit:
            sampled.add((split, name))
            states[split] += counts[split, name]
    return [step for step in steps if (step.split, step.trajectory_id) in sampled]


class Sampler:
    """Samples replies from one engine. Ray Data runs it as an actor."""

    def __init__(self, settings: AlternativesSettings) -> None:
        self.engine = Engine(settings, seed=settings.seed)
        self.settings = settings
        self.sampling = settings.sampling
        self.template = settings.make_template()

    async def sample(self, shards: Mapping[int, Sequence[Step]], keep: Callable[[int, _Rows], None]) -> None:
        """Call `keep` with each shard's index and rows of schema ALTERNATIVES as soon as all of its states are sampled.

        States are sampled in order, twice as many at once as the engine runs, so that some always wait for it.
        """
        rows: dict[int, dict[int, dict[str, Any]]] = {index: {} for index in shards}
        states = [(index, position) for index, shard in shards.items() for position in range(len(shard))]

        async def sample_state(state: tuple[int, int]) -> None:
            index, position = state
            rows[index][position] = await self._sample_one(shards[index][position])
            if len(rows[index]) == len(shards[index]):
                complete = rows.pop(index)
                keep(index, [complete[position] for position in sorted(complete)])

        await for_each(sample_state, states, math.ceil(2 * self.engine.max_num_seqs / self.sampling.n))

    async def _sample_one(self, step: Step) -> dict[str, Any]:
        messages = self.template.action_messages(step.context)
        replies = await self.engine.reply(messages, self.sampling, seed=request_seed(self.settings.seed, step.state_id))
        record = Alternatives(
            state_id=step.state_id,
            replies=tuple(replies),
            model=self.settings.model,
            sampling=json.dumps({**self.sampling.model_dump(), "seed": self.settings.seed}, sort_keys=True),
        )
        return record.to_row()

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's interface: takes a batch of shards and returns their rows. Calls run concurrently."""
        shards = {
            int(index): [Step.from_row(row) for row in json.loads(shard)]
            for index, shard in zip(batch["index"], batch["steps"], strict=True)
        }
        sampled: dict[int, _Rows] = {}
        await self.sample(shards, sampled.__setitem__)
        return {"index": list(sampled), "rows": [json.dumps(rows) for rows in sampled.values()]}


def _on_ray(
    shards: Mapping[int, Sequence[Step]], settings: AlternativesSettings, keep: Callable[[int, _Rows], None]
) -> None:
    import ray

    items = [
        {"index": index, "steps": json.dumps([step.to_row() for step in shard])} for index, shard in shards.items()
    ]
    with ray_session():
        ray.data.DataContext.get_current().enable_progress_bars = False  # the progress bar of this module counts states
        sampled = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Sampler,
            fn_constructor_args=(settings,),
            batch_size=1,
            num_gpus=settings.gpus_per_worker,
            max_concurrency=SHARDS_IN_FLIGHT,
            compute=ray.data.ActorPoolStrategy(size=settings.workers, max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT),
        )
        try:
            for row in sampled.iter_rows():
                keep(int(row["index"]), json.loads(row["rows"]))
        except ray.exceptions.RayError as error:
            raise worker_failed(error) from error
