"""How often a pair is shown, so that its verbs do not tell the label."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import data_config, make_pair, make_tokenizer

from verl_act.data.dataset import ActDataset
from verl_act.data.sources import repeats
from verl_act.errors import ConfigError
from verl_act.schema import PAIR, write_rows

VERBS = st.sampled_from(["go", "take", "move"])


def test_the_rarer_direction_catches_up() -> None:
    verbs = [("move", "go")] * 12 + [("go", "move")] * 3 + [("go", "go")] * 5 + [("take", "look")]
    assert repeats(verbs, most=10).tolist() == [1] * 12 + [4] * 3 + [1] * 5 + [1]
    assert repeats(verbs, most=2).tolist() == [1] * 12 + [2] * 3 + [1] * 5 + [1]


@given(st.lists(st.tuples(VERBS, VERBS), max_size=60), st.integers(1, 9))
def test_it_never_makes_the_verbs_tell_more(verbs: list[tuple[str, str]], most: int) -> None:
    times = repeats(verbs, most)
    assert ((times >= 1) & (times <= most)).all()
    before, after = Counter(verbs), Counter()
    for pair, count in zip(verbs, times, strict=True):
        after[pair] += int(count)
    for better, worse in before:
        lead = abs(before[better, worse] - before[worse, better])
        assert abs(after[better, worse] - after[worse, better]) <= lead


def make_file(folder: Path, split: str) -> str:
    """Nine pairs in which "take" beats "go" eight times, and once the other way round."""
    rows = [make_pair(number).to_row() | {"split": split} for number in range(9)]
    for row in rows[1:]:
        row |= {"expert_action": "take mug 2 from desk 1", "alternative_action": "go to shelf 1"}
    rows[0] |= {"expert_action": "go to shelf 1", "alternative_action": "take mug 2 from desk 1"}
    path = str(folder / f"{split}.parquet")
    write_rows(path, rows, PAIR)
    return path


def open_dataset(path: str, **act: object) -> ActDataset:
    return ActDataset(data_files=path, tokenizer=make_tokenizer(), config=data_config({"template": "compact", **act}))


def test_training_pairs_are_repeated_in_both_orders(tmp_path: Path) -> None:
    dataset = open_dataset(make_file(tmp_path, "train"), verb_balance=4)
    rows = [dataset[number]["extra_info"] for number in range(len(dataset))]
    assert len(rows) == 12
    repeated = [row["expert_position"] for row in rows if row["pair_id"] == make_pair(0).pair_id]
    assert sorted(repeated) == [0, 0, 1, 1]
    assert Counter(row["expert_position"] for row in rows) == {0: 6, 1: 6}


def test_held_out_pairs_never_are(tmp_path: Path) -> None:
    assert len(open_dataset(make_file(tmp_path, "valid_seen"), verb_balance=4)) == 9


def test_by_default_every_pair_is_shown_once(tmp_path: Path) -> None:
    assert len(open_dataset(make_file(tmp_path, "train"))) == 9


def test_a_balance_that_would_drop_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="verb_balance is 0"):
        open_dataset(make_file(tmp_path, "train"), verb_balance=0)
