"""The figures of an evaluation, against values worked out by hand, and their tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_act.engine import EngineSettings, Sampling
from verl_act.errors import ConfigError, DataError
from verl_act.evaluate.figures import answer_figures, by_split, episode_figures, grouped, share, wilson_interval
from verl_act.evaluate.run import evaluate, some_of_each_split
from verl_act.evaluate.table import compare, comparison, markdown


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Brown, Cai and DasGupta's formula, as statsmodels' proportion_confint(method="wilson") gives it.
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 29, 0.0061, 0.1718),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_holds_the_share(case: tuple[int, int]) -> None:
    successes, count = case
    low, high = wilson_interval(successes, count)
    assert 0 <= low <= successes / count + 1e-12
    assert successes / count - 1e-12 <= high <= 1


def test_nothing_counted_says_nothing() -> None:
    assert share([], "right") == {"share": None, "count": 0, "low": 0.0, "high": 1.0}
    assert episode_figures([])["steps"] is None
    assert answer_figures([])["right"]["share"] is None


@dataclass(frozen=True)
class Item:
    split: str
    name: str


def test_a_limit_draws_from_the_whole_of_each_split() -> None:
    """The files are sorted by task type."""
    items = [Item(split, f"{kind}-{number}") for split in "ab" for kind in "xyz" for number in range(50)]
    kept = some_of_each_split(items, 30, lambda item: item.name)
    assert [item for item in items if item in kept] == kept
    for split in "ab":
        kinds = [item.name[0] for item in kept if item.split == split]
        assert len(kinds) == 30 and min(map(kinds.count, "xyz")) >= 5
    # The same ones, whatever else was asked.
    assert some_of_each_split(items[150:], 30, lambda item: item.name) == kept[30:]
    assert some_of_each_split(items, None, lambda item: item.name) == items


def episode(**changes: Any) -> dict[str, Any]:
    base = {"split": "valid_seen", "task_type": "pick_and_place", "success": 1.0, "steps": 6.0}
    return {**base, "inadmissible_share": 0.0, "malformed_share": 0.0, "longest_failed_repeat": 0.0, **changes}


def test_figures_of_episodes() -> None:
    records = [
        episode(),
        episode(steps=10.0, inadmissible_share=0.5, longest_failed_repeat=2.0),
        episode(success=0.0, steps=50.0, malformed_share=0.25, longest_failed_repeat=3.0, task_type="look_at_obj"),
        episode(success=0.0, steps=50.0, longest_failed_repeat=40.0, task_type="look_at_obj"),
    ]
    figures = episode_figures(records)
    assert (figures["success"]["share"], figures["success"]["count"]) == (0.5, 4)
    assert {name: entry["share"] for name, entry in figures["by_task_type"].items()} == {
        "look_at_obj": 0.0,
        "pick_and_place": 1.0,
    }
    assert figures["steps"] == 29.0
    assert figures["steps_to_success"] == 8.0
    assert figures["inadmissible_share"] == 0.125
    assert figures["malformed_share"] == 0.0625
    assert figures["longest_failed_repeat"] == 40.0
    assert figures["loop_share"] == 0.5


def choice(**changes: Any) -> dict[str, Any]:
    base = {"split": "valid_seen", "verb": "go", "inferable": True, "well_formed": True, "admissible": True}
    return {**base, "right": True, "named_a_candidate": True, "expert_position": 0, **changes}


def test_figures_of_answers() -> None:
    records = [
        choice(),
        choice(right=False, expert_position=1),
        choice(verb="take", expert_position=1, inferable=False),
        choice(verb="take", right=False, well_formed=False, admissible=False, named_a_candidate=False, inferable=False),
    ]
    figures = answer_figures(records)
    assert figures["right"]["share"] == 0.5
    assert (figures["right_inferable"]["share"], figures["right_inferable"]["count"]) == (0.5, 2)
    assert figures["well_formed"]["share"] == figures["admissible"]["share"] == 0.75
    assert figures["named_a_candidate"]["share"] == 0.75
    assert {verb: entry["count"] for verb, entry in figures["by_verb"].items()} == {"go": 2, "take": 2}
    # A model that always picks the first action would show 1 and 0 here.
    assert {place: entry["share"] for place, entry in figures["by_position"].items()} == {"0": 0.5, "1": 0.5}


def test_figures_of_next_actions_know_no_candidates() -> None:
    record = {name: value for name, value in choice().items() if name not in ("named_a_candidate", "expert_position")}
    assert not {"named_a_candidate", "by_position"} & set(answer_figures([record]))


def test_splits_stand_apart_and_in_order() -> None:
    records = [episode(split="valid_unseen", success=0.0), episode(), episode(split="valid_unseen")]
    figures = by_split(records, episode_figures)
    assert list(figures) == ["valid_seen", "valid_unseen"]
    assert [entry["success"]["share"] for entry in figures.values()] == [1.0, 0.5]
    assert [(name, len(group)) for name, group in grouped(records, "split")] == [("valid_seen", 1), ("valid_unseen", 2)]


def written(folder: Path, name: str, episodes: list[dict[str, Any]], choices: list[dict[str, Any]]) -> Path:
    """A folder as `evaluate` leaves it."""
    figures = {
        "name": name,
        "episodes": by_split(episodes, episode_figures),
        "next_action": {},
        "choice": by_split(choices, answer_figures),
    }
    target = folder / name
    target.mkdir()
    (target / "figures.json").write_text(json.dumps(figures))
    return target


def test_evaluations_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path, "before", [episode(success=0.0, steps=50.0), episode()], [])
    after = written(tmp_path, "after", [episode(), episode(steps=8.0)], [choice()])
    compare([before, after], tmp_path / "comparison")
    shown = capsys.readouterr().out
    assert "before" in shown and "after" in shown
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    assert table.startswith("| figure | before | after |\n| --- | ---: | ---: |\n")
    assert "| episodes valid seen success | 50.0% [9.5%, 90.5%] n=2 | 100.0% [34.2%, 100.0%] n=2 |" in table
    assert "| episodes valid seen steps | 28 | 7 |" in table
    assert "| choice valid seen right |  | 100.0% [20.7%, 100.0%] n=1 |" in table
    stored = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [entry["name"] for entry in stored] == ["before", "after"]


def test_a_table_is_rectangular(tmp_path: Path) -> None:
    folders = [
        written(tmp_path, "one", [episode()], []),
        written(tmp_path, "two", [episode(split="valid_unseen")], [choice()]),
    ]
    header, rows = comparison([json.loads((folder / "figures.json").read_text()) for folder in folders])
    assert {len(row) for row in rows} == {len(header)}
    assert len(markdown(header, rows).splitlines()) == len(header) + 1


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}.*give a folder that `evaluate` wrote"):
        compare([tmp_path])


def test_an_evaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate(tmp_path / "out", "model", EngineSettings(model="none"), Sampling())
    with pytest.raises(ConfigError, match="4 samples at temperature 0"):
        Sampling(n=4, temperature=0)
