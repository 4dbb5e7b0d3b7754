"""Sample alternative actions from the initial policy at every expert state (paper section 3).

Replies are stored as they came; `build_pairs` reads actions from them. States are sampled a shard at a time, each
shard a file: a killed run goes on where it stopped and samples nothing twice. One machine runs one vLLM engine;
with `workers`, Ray Data spreads the shards over as many engines of a cluster.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.engine import Engine, EngineSettings, Sampling, check_engine, model_digest, request_seed
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import digest, make_manifest, write_manifest
from verl_act.options import Count, NotNegative, Positive, Seed, check_options
from verl_act.output_folder import atomic_folder, work_path, writes_folder
from verl_act.parse import parse_action
from verl_act.prompts import get_template
from verl_act.ray_session import ray_session
from verl_act.sampling import sampling_key
from verl_act.schema import ALTERNATIVES, Alternatives, Step, read_steps, read_table, steps_to_learn, write_rows

FILE_NAME = "alternatives.parquet"
SHARD_STATES = 256


@writes_folder("sample_alternatives")
def sample_alternatives(
    out: Path,
    trajectories: Sequence[Path],
    engine: EngineSettings,
    sampling: Sampling,
    *,
    template: str = "cot",
    template_options: dict[str, Any] | None = None,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    gpus_per_worker: float = 1,
    allow_degenerate: bool = False,
) -> None:
    """Write `out/alternatives.parquet` (schema ALTERNATIVES, one row per state in the trajectories' order) and a
    manifest.

    `limit` bounds the states of each split: whole trajectories are drawn, first those that `build_pairs` with a limit
    and the same seed takes first, until there are so many. `workers` engines on a Ray cluster (0: one, in this
    process). The same seed and engine give the same replies, however often the run was interrupted.

    Raises `DataError` after the first shards where none of their replies has an action, unless `allow_degenerate`.
    """
    check_settings(
        engine,
        sampling,
        template=template,
        template_options=template_options,
        seed=seed,
        limit=limit,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )
    started = time.monotonic()
    known = drawn_trajectories(read_steps(trajectories), limit, seed)
    steps = steps_to_learn(known)
    if not steps:
        raise DataError(
            f"{', '.join(map(str, trajectories))}: no expert states to sample at; collect trajectories first."
        )
    settings = {
        "engine": asdict(engine),
        "model_digest": model_digest(engine.model),
        "sampling": asdict(sampling),
        "template": template,
        "template_options": template_options or {},
        "seed": seed,
        "states": len(steps),
        "trajectories": [digest(path) for path in trajectories],
    }
    shards_folder = _open_shards(out, settings)
    shards = [steps[start : start + SHARD_STATES] for start in range(0, len(steps), SHARD_STATES)]
    missing = [number for number in range(len(shards)) if not _shard(shards_folder, number).exists()]
    job = (engine, sampling, template, template_options or {}, seed)
    run = _on_ray(shards, missing, job, workers, gpus_per_worker) if workers else _here(shards, missing, job)
    done = len(steps) - sum(len(shards[number]) for number in missing)
    sampled = [row for number in range(len(shards)) if number not in missing for row in _read(shards_folder, number)]
    usable = allow_degenerate or _has_action(sampled)
    if sampled and not usable:
        raise _no_action(sampled, engine.model, template)
    with closing(run), tqdm(total=len(steps), initial=done, desc="sampling alternatives", unit="state") as progress:
        for number, rows in run:
            write_rows(_shard(shards_folder, number), rows, ALTERNATIVES)
            progress.update(len(rows))
            usable = usable or _has_action(rows)
            if not usable:
                raise _no_action(rows, engine.model, template)
    rows = [row for number in range(len(shards)) for row in _read(shards_folder, number)]
    with atomic_folder(out) as folder:
        write_rows(folder / FILE_NAME, rows, ALTERNATIVES)
        replies = [reply for row in rows for reply in row["replies"]]
        counts = {
            "states": len(rows),
            "states_expert_inadmissible": len(known) - len(steps),
            "replies": len(replies),
            "empty": replies.count(""),
        }
        manifest = make_manifest(
            "sample_alternatives",
            settings=settings,
            inputs=list(trajectories),
            counts=counts,
            seed=seed,
            seconds=time.monotonic() - started,
        )
        write_manifest(folder, manifest)
    shutil.rmtree(shards_folder)


def check_settings(
    engine: EngineSettings,
    sampling: Sampling,
    *,
    template: str = "cot",
    template_options: dict[str, Any] | None = None,
    seed: Seed = 0,
    limit: Positive | None = None,
    workers: Count = 0,
    gpus_per_worker: NotNegative = 1,
) -> None:
    """Raise `ConfigError` for a setting that cannot work."""
    check_engine(engine, sampling)
    options = {"seed": seed, "limit": limit, "workers": workers, "gpus_per_worker": gpus_per_worker}
    check_options(check_settings, options)
    get_template(template, **(template_options or {}))


def _has_action(rows: Sequence[dict[str, Any]]) -> bool:
    return any(parse_action(reply).action is not None for row in rows for reply in row["replies"])


def _no_action(rows: Sequence[dict[str, Any]], model: str, template: str) -> DataError:
    replies = [reply for row in rows for reply in row["replies"]]
    reasons = Counter(str(parse_action(reply).malformed) for reply in replies)
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return DataError(
        f"{model}: not one of {len(replies)} replies at the first {len(rows)} states has an action ({listed}), so no "
        f"alternative would come from the model; a reply: {replies[0][:200]!r}. Raise --max-tokens where they are cut "
        f"(unclosed_think, unclosed), or give a model that follows the template {template!r}. To sample on, add "
        "--allow-degenerate (in a recipe: allow_degenerate: true); random admissible actions then become the pairs."
    )


def drawn_trajectories(steps: Sequence[Step], limit: int | None, seed: int) -> list[Step]:
    """The steps of so many trajectories that each split has `limit` states, or all that it has; in their order."""
    if limit is None:
        return list(steps)
    counts = Counter((step.split, step.trajectory_id) for step in steps)
    drawn, states = set(), Counter[str]()
    for split, name in sorted(counts, key=lambda found: sampling_key(seed, found[1])):
        if states[split] < limit:
            drawn.add((split, name))
            states[split] += counts[split, name]
    return [step for step in steps if (step.split, step.trajectory_id) in drawn]


class Sampler:
    """One engine and what to ask it; also the actor that Ray Data runs."""

    def __init__(
        self, engine: EngineSettings, sampling: Sampling, template: str, template_options: dict[str, Any], seed: int
    ) -> None:
        self.engine = Engine(engine)
        self.sampling = sampling
        self.template = get_template(template, **template_options)
        self.seed = seed
        self.model = engine.model

    def sample(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """Rows of schema ALTERNATIVES, in the order of `steps`."""
        return self.engine.run(self._sample(steps))

    async def _sample(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(self._sample_one, steps)))

    async def _sample_one(self, step: Step) -> dict[str, Any]:
        messages = self.template.action_messages(step.context)
        replies = await self.engine.reply(messages, self.sampling, seed=request_seed(self.seed, step.state_id))
        record = Alternatives(
            state_id=step.state_id,
            replies=tuple(replies),
            model=self.model,
            sampling=json.dumps({**asdict(self.sampling), "seed": self.seed}, sort_keys=True),
        )
        return record.to_row()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's interface: a batch of shards in, the same shards sampled out."""
        steps = [[Step.from_row(row) for row in json.loads(shard)] for shard in batch["steps"]]
        return {"number": batch["number"], "rows": [json.dumps(self.sample(shard)) for shard in steps]}


def _here(
    shards: Sequence[Sequence[Step]], numbers: Sequence[int], job: tuple
) -> Generator[tuple[int, list[dict]], None, None]:
    if not numbers:
        return
    sampler = Sampler(*job)
    try:
        for number in numbers:
            yield number, sampler.sample(shards[number])
    finally:
        sampler.engine.close()


def _on_ray(
    shards: Sequence[Sequence[Step]], numbers: Sequence[int], job: tuple, workers: int, gpus_per_worker: float
) -> Generator[tuple[int, list[dict]], None, None]:
    if not numbers:
        return
    import ray

    items = [{"number": number, "steps": json.dumps([step.to_row() for step in shards[number]])} for number in numbers]
    with ray_session():
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts states
        sampled = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Sampler,
            fn_constructor_args=job,
            batch_size=1,
            num_gpus=gpus_per_worker,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for row in sampled.iter_rows():
            yield int(row["number"]), json.loads(row["rows"])


def _open_shards(out: Path, settings: dict[str, Any]) -> Path:
    """The folder of finished shards. One left by a run with other settings is refused, not mixed in and not deleted."""
    folder = work_path(out, "shards")
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "settings.json"
    wanted = json.dumps(settings, sort_keys=True, default=str)
    if stamp.exists() and stamp.read_text(encoding="utf-8") != wanted and any(folder.glob("*.parquet")):
        raise ConfigError(
            f"{folder}: holds shards sampled with other settings or trajectories. "
            "Repeat that command to finish them, or remove the folder to start anew."
        )
    stamp.write_text(wanted, encoding="utf-8")
    return folder


def _read(folder: Path, number: int) -> list[dict[str, Any]]:
    return read_table(_shard(folder, number), ALTERNATIVES).to_pylist()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.parquet"
