"""Cross-cutting: choices among more than two candidates, from the builder to the reward, and files of two as before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import data_config, make_context, make_pair, make_tokenizer

from verl_act.data.dataset import ActDataset
from verl_act.data.order import candidate_order, expert_positions
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.pairs.check_pairs import check_pairs
from verl_act.errors import ConfigError
from verl_act.prompts import get_template
from verl_act.reward_fns.route import compute_score
from verl_act.schema import PAIR, Pair, pair_id, read_pairs, write_rows
from verl_act.settings.data import AuditSettings, ExpertSettings, PairsSettings

FURTHER = ("look", "inventory")


def several(number: int, further: tuple[str, ...] = FURTHER) -> Pair:
    pair = make_pair(number, further_alternatives=further)
    name = pair_id(pair.state_id, pair.expert_action, *pair.alternatives)
    return make_pair(number, further_alternatives=further, pair_id=name)


def dataset(path: Path, **act: object) -> ActDataset:
    return ActDataset(data_files=str(path), tokenizer=make_tokenizer(), config=data_config(act))


def test_a_file_of_pairs_from_before_is_read_as_it_was(tmp_path: Path) -> None:
    path, old = tmp_path / "pairs.parquet", tmp_path / "old.parquet"
    pairs = [make_pair(number) for number in range(11)]
    write_rows(path, [pair.to_row() for pair in pairs], PAIR)
    pq.write_table(pq.read_table(path).drop_columns(["further_alternatives", "further_admissible"]), old)
    assert read_pairs([old]) == pairs
    rows = [[one[number] for number in range(11)] for one in (dataset(path), dataset(old))]
    for new, before in zip(*rows, strict=True):
        assert new["raw_prompt"] == before["raw_prompt"]
        assert new["extra_info"]["candidates"] == before["extra_info"]["candidates"]


def test_two_candidates_stand_in_the_order_they_always_had() -> None:
    """The positions of seed 0, written down before there were choices of several."""
    ids = [make_pair(number).pair_id for number in range(8)]
    assert expert_positions(ids, [2] * 8, seed=0).tolist() == [1, 1, 1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [True, True, False]),
        ({"alternative_admissible": False, "further_admissible": (False, True)}, [False, False, True]),
    ],
)
def test_the_reward_knows_which_candidates_the_environment_takes(
    flags: dict[str, Any], expected: list[bool], tmp_path: Path
) -> None:
    """By the flags of the file, whatever the list says; by the list where an older file has no flag."""
    pairs = [make_pair(number, further_alternatives=("look", "fly"), **flags) for number in range(9)]
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in pairs], PAIR)
    assert read_pairs([tmp_path / "pairs.parquet"]) == pairs
    rows = dataset(tmp_path / "pairs.parquet")
    for number, pair in enumerate(pairs):
        row = rows[number]
        admissible = dict(zip(pair.alternatives, expected, strict=True))
        for label, candidate in enumerate(row["extra_info"]["candidates"], 1):
            if candidate in admissible:
                reply = f"<action>{label}</action>"
                score = compute_score(row["data_source"], reply, pair.expert_action, row["extra_info"])
                assert (score["score"], score["adm"]) == ((0.1, 1.0) if admissible[candidate] else (0.0, 0.0))


def test_a_choice_of_four(tmp_path: Path) -> None:
    pairs = [several(number) for number in range(12)]
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in pairs], PAIR)
    rows = [dataset(tmp_path / "pairs.parquet")[number] for number in range(12)]
    assert Counter(row["extra_info"]["expert_position"] for row in rows) == {0: 3, 1: 3, 2: 3, 3: 3}
    for pair, row in zip(pairs, rows, strict=True):
        candidates, truth = row["extra_info"]["candidates"], row["reward_model"]["ground_truth"]
        assert sorted(candidates) == sorted((pair.expert_action, *pair.alternatives))
        assert row["raw_prompt"] == get_template("cot").choice_messages(pair.context, candidates)
        for position, candidate in enumerate(candidates):
            wanted = 1.0 if candidate == truth else 0.1
            for answer in (candidate, f"Action {position + 1}", "ABCD"[position]):
                score = compute_score(row["data_source"], f"<action>{answer}</action>", truth, row["extra_info"])
                assert score["score"] == wanted
    assert len(dataset(tmp_path / "pairs.parquet", order="both")) == 48


def test_pairs_and_larger_choices_in_one_file(tmp_path: Path) -> None:
    pairs = [make_pair(number) if number % 2 else several(number, FURTHER[:1]) for number in range(12)]
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in pairs], PAIR)
    one = dataset(tmp_path / "pairs.parquet")
    shown = Counter(
        (len(info["candidates"]), info["expert_position"])
        for info in (one[number]["extra_info"] for number in range(12))
    )
    assert shown == {(2, 0): 3, (2, 1): 3, (3, 0): 2, (3, 1): 2, (3, 2): 2}
    one.set_epoch(1)
    assert (
        one[0]["extra_info"]["expert_position"]
        != dataset(tmp_path / "pairs.parquet")[0]["extra_info"]["expert_position"]
    )


@pytest.mark.parametrize("name", ["cot", "plain", "compact"])
def test_templates_ask_for_the_best_of_several(name: str) -> None:
    template = get_template(name)
    two = template.choice_messages(make_context(), ["look", "inventory"])[0]["content"]
    three = template.choice_messages(make_context(), ["look", "inventory", "go to desk 1"])[0]["content"]
    assert "best" not in two and "better" not in three
    assert "go to desk 1" in three


def test_the_builder_puts_alternatives_together(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, limit=2, workers=0), tmp_path / "expert"
    )
    files = [tmp_path / "expert" / "trajectories.parquet"]
    for candidates in (2, 4):
        build_pairs(
            PairsSettings(
                trajectories=files,
                alternatives=[],
                env_settings=settings,
                source="admissible",
                max_alternatives_per_state=3,
                candidates=candidates,
                workers=0,
            ),
            tmp_path / str(candidates),
        )
    two, four = (read_pairs([tmp_path / name / "pairs.parquet"]) for name in ("2", "4"))
    assert all(len(pair.alternatives) == 1 for pair in two)
    assert Counter(len(pair.alternatives) for pair in four)[3] > len(four) / 2
    by_state: dict[str, list[Pair]] = {}
    for pair in two:
        by_state.setdefault(pair.state_id, []).append(pair)
    for pair in four:
        assert pair.alternatives == tuple(single.alternative_action for single in by_state[pair.state_id])
        assert pair.margin == min(single.margin or 0 for single in by_state[pair.state_id])
    assert not [
        finding
        for finding in check_pairs(AuditSettings(pairs=[tmp_path / "4" / "pairs.parquet"])).errors
        if finding.check != "length"
    ]
    with pytest.raises(ConfigError, match="candidates is 3"):
        build_pairs(
            PairsSettings(
                trajectories=files, alternatives=[], env_settings=settings, source="admissible", candidates=3, workers=0
            ),
            tmp_path / "no",
        )


@given(st.lists(st.integers(2, 6), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 9))
def test_every_place_is_used_equally(counts: list[int], seed: int, epoch: int) -> None:
    ids = [f"pair {number}" for number in range(len(counts))]
    positions = expert_positions(ids, counts, seed, epoch)
    for count in set(counts):
        used = Counter(position for position, other in zip(positions.tolist(), counts, strict=True) if other == count)
        assert max(used.values()) - min(used[place] for place in range(count)) <= 1
        assert set(used) <= set(range(count))


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6, unique=True), st.data())
def test_candidates_are_arranged_around_the_experts(alternatives: list[str], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(alternatives)))
    candidates = candidate_order("pair", "the expert's action", alternatives, position)
    assert candidates[position] == "the expert's action"
    assert sorted(candidates[:position] + candidates[position + 1 :]) == sorted(alternatives)
    assert candidates == candidate_order("pair", "the expert's action", alternatives[::-1], position)
