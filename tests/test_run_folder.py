"""The layout of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_act.errors import DataError
from verl_act.run_folder import PlannedStage, RunFolder


def planned(*titles: str, seed: int | None = None) -> list[PlannedStage]:
    return [PlannedStage(title, title.replace(" ", "/"), title == "critic", seed=seed) for title in titles]


def test_a_plan_has_data_first_then_each_seed_then_the_tables(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.plan == []
    folder.add_to_plan([*planned("games"), *planned("critic", "evaluate critic", seed=3)])
    folder.add_to_plan(planned("methods", "report"))
    folder.add_to_plan(
        [*planned("games", "expert train"), *planned("critic", seed=-1), *planned("critic", "critic+seed 5 il", seed=3)]
    )
    names = [stage.name for stage in folder.plan]
    data, seeds = (
        ["games", "expert train"],
        ["seed -1 critic", "seed 3 critic", "seed 3 evaluate critic", "seed 3 critic+seed 5 il"],
    )
    assert names == [*data, *seeds, "methods", "report"]
    assert [stage.trains for stage in folder.plan].count(True) == 2
    assert [stage.seed for stage in folder.plan] == [None, None, -1, 3, 3, 3, None, None]


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path).add_to_plan(planned("games"))
    (file,) = (tmp_path / ".done").glob("*.json")
    for text in ('[{"title": "games"}]', "[", '{"a": 1}'):
        file.write_text(text)
        with pytest.raises(DataError, match=r"plan\.json"):
            _ = RunFolder(tmp_path).plan


def test_training_stages_are_found_by_their_metrics_or_their_work(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 1)
    done, begun = folder.training(["il"]), folder.training(["il", "action:20"])
    assert begun.path == tmp_path / "seed-1" / "il+action-20"
    done.path.mkdir(parents=True)
    (done.path / "metrics.jsonl").touch()
    begun.work.mkdir()
    for attempt in (0, 10, 2):
        begun.metrics(attempt).touch()
        begun.started(attempt).touch()
    assert folder.trainings == [done, begun]
    assert done.metrics_files == [done.path / "metrics.jsonl"]
    assert begun.metrics_files == [begun.metrics(attempt) for attempt in (0, 2, 10)] and begun.attempts == 3
    assert [seed.seed for seed in RunFolder(tmp_path).seeds] == [1]
