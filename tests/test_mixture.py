"""Ratios of mixed files: exact over an epoch, in every batch, and after a resume through verl's own samplers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import data_config, make_pair, make_tokenizer
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.utils import create_rl_sampler
from verl.utils.dataset.rl_dataset import collate_fn

from verl_act.config.settings import MixtureSettings, StoppingStrategy
from verl_act.data.dataset import ActDataset
from verl_act.data.mixture import mix
from verl_act.errors import ConfigError, DataError
from verl_act.schema import PAIR, write_rows

BATCH = 8


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """13 pairs, and 50 rows in verl's layout."""
    pairs, foreign = tmp_path / "pairs.parquet", tmp_path / "gsm8k.parquet"
    write_rows(pairs, [make_pair(number).to_row() for number in range(13)], PAIR)
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"{number} plus 1?"}],
            "reward_model": {"style": "rule", "ground_truth": str(number + 1)},
            "extra_info": {"index": number},
        }
        for number in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(rows), foreign)
    return [str(pairs), str(foreign)]


def _dataset(files: list[str], mix: dict[str, Any], **keys: Any) -> ActDataset:
    config = data_config({"mix": mix}, train_files=files, train_batch_size=BATCH, **keys)
    return ActDataset(data_files=files, tokenizer=make_tokenizer(), config=config)


def _loader(dataset: ActDataset, shuffle: bool) -> StatefulDataLoader:
    """As verl's trainer makes it."""
    sampler = create_rl_sampler(data_config(shuffle=shuffle, seed=3), dataset)
    return StatefulDataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=collate_fn, drop_last=True)


def _sources(batch: dict[str, Any]) -> Counter[str]:
    return Counter(source.split("/")[0] for source in batch["data_source"])


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_the_ratio_exactly(files: list[str], shuffle: bool) -> None:
    dataset = _dataset(files, {"weights": [1, 3]})
    batches = [_sources(batch) for batch in _loader(dataset, shuffle)]
    assert sum(batches, Counter()) == {"act": 18, "openai": 54}
    assert len(batches) * BATCH == len(dataset), "no last batch is cut off"
    if not shuffle:
        assert set(map(str, batches)) == {str(Counter(openai=6, act=2))}, "in every batch"


def test_a_resumed_epoch_holds_the_same_rows(files: list[str]) -> None:
    whole = [
        [row["index"] for row in batch["extra_info"]] for batch in _loader(_dataset(files, {"weights": [1, 3]}), True)
    ]
    first = _loader(_dataset(files, {"weights": [1, 3]}), True)
    batches = iter(first)
    begun = [[row["index"] for row in next(batches)["extra_info"]] for _ in range(4)]
    state = first.state_dict()
    # Another process, after a restart.
    second = _loader(_dataset(files, {"weights": [1, 3]}), True)
    second.load_state_dict(state)
    assert begun + [[row["index"] for row in batch["extra_info"]] for batch in second] == whole


def test_every_row_is_shown_and_none_much_more_than_another(files: list[str]) -> None:
    dataset = _dataset(files, {"weights": [1, 1]})
    shown = Counter(
        row["extra_info"].get("pair_id") or row["reward_model"]["ground_truth"]
        for row in map(dataset.__getitem__, range(len(dataset)))
    )
    assert len(shown) == 13 + 50
    assert {shown[make_pair(number).pair_id] for number in range(13)} == {4}
    assert {shown[str(number + 1)] for number in range(50)} == {1, 2}


def test_repeated_pairs_show_both_orders(files: list[str]) -> None:
    dataset = _dataset(files, {"weights": [1, 1]})
    rows = [dataset[number] for number in range(len(dataset))]
    places = Counter(row["extra_info"]["expert_position"] for row in rows if "pair_id" in row["extra_info"])
    assert abs(places[0] - places[1]) <= 1


def test_first_exhausted_shows_no_row_twice(files: list[str]) -> None:
    dataset = _dataset(files, {"weights": [0.25, 0.75], "stopping_strategy": "first_exhausted"})
    rows = [dataset[number] for number in range(len(dataset))]
    assert len(rows) == 48
    assert len({row["extra_info"].get("pair_id") or row["reward_model"]["ground_truth"] for row in rows}) == 48


def test_validation_is_not_mixed(files: list[str]) -> None:
    config = data_config({"mix": {"weights": [1, 3]}}, train_files=files, train_batch_size=BATCH)
    assert len(ActDataset(data_files=files[1], tokenizer=make_tokenizer(), config=config)) == 50


def test_settings_that_cannot_work_are_refused(files: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.act\.mix\.weights.*\b3\b.*\b2\b"):
        _dataset(files, {"weights": [1, 1, 1]})
    with pytest.raises(ConfigError, match=r"data\.act\.mix\.weights.* -1\b"):
        _dataset(files, {"weights": [1, -1]})
    with pytest.raises(ConfigError, match=r"0.333333333"):
        _dataset(files, {"weights": [1, 0.333333333]})
    with pytest.raises(ConfigError, match="all_exhausted"):
        _dataset(files, {"weights": [15, 1], "stopping_strategy": "first_exhausted"})
    with pytest.raises(ConfigError, match="'ratio'"):
        _dataset(files, {"ratio": [1, 1]})
    with pytest.raises(ConfigError, match="sometimes"):
        _dataset(files, {"weights": [1, 1], "stopping_strategy": "sometimes"})
    with pytest.raises(DataError, match=r"pairs\.parquet"):
        _dataset(files, {"weights": [1, 1]}, filter_overlong_prompts=True, max_prompt_length=20)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    batch_size=st.integers(1, 16),
    strategy=st.sampled_from(StoppingStrategy),
)
def test_any_mixture(sizes: list[int], weights: list[int], batch_size: int, strategy: StoppingStrategy) -> None:
    settings = MixtureSettings(weights=list(map(float, weights[: len(sizes)])), stopping_strategy=strategy)
    try:
        places = mix(sizes, settings, batch_size, seed=0)
    except ConfigError:
        assert strategy is StoppingStrategy.FIRST_EXHAUSTED
        return
    counts = Counter(file for file, _ in places)
    assert len(places) % batch_size == 0
    assert all(counts[file] * settings.weights[0] == counts[0] * settings.weights[file] for file in range(len(sizes)))
    shown = Counter(places)
    for file, size in enumerate(sizes):
        times = {shown[file, row] for row in range(size)}
        assert max(times) - min(times) <= 1
        assert max(times) <= 1 if strategy is StoppingStrategy.FIRST_EXHAUSTED else min(times) >= 1
