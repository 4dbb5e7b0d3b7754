"""Rows for supervised training, from every kind of data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from samples import embedded_models

from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.errors import DataError
from verl_act.schema import REFLECTION, SFT, read_steps, read_table, write_rows
from verl_act.settings.data import SftSettings


def test_rows_for_sft(trajectories: Path, tmp_path: Path) -> None:
    step = read_steps([trajectories])[3]
    row = {"state_id": step.state_id, "action": step.action, "outcome": "", "alternatives": [], "model": "m"}
    write_rows(tmp_path / "r.parquet", [{**row, "reply": "x", "reflection": "It is there."}], REFLECTION)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options: dict[str, Any] = {"template": "compact", "seed": seed}
        make_sft(
            SftSettings(
                trajectories=[trajectories],
                model=str(embedded_models()["alfworld"]),
                kind="reflection",
                reflections=[tmp_path / "r.parquet"],
                **options,
            ),
            tmp_path / name,
        )
    first, again, other = (read_table(tmp_path / name / "sft.parquet", SFT).to_pylist() for name in "abc")
    assert first == again != other
    assert Counter(map(str, first)) == Counter(map(str, other)), "only the order differs"
    assert len(first) == len(read_steps([trajectories])) + 1
    (reflected,) = (entry for entry in first if entry["source"] == "reflection")
    reply = reflected["messages"][-1]
    assert reply == {"role": "assistant", "content": f"<think>It is there.</think><action>{step.action}</action>"}
    kind: Any = {"kind": "reflection", "trajectories": [trajectories], "model": str(embedded_models()["alfworld"])}
    with pytest.raises(DataError, match="occurs twice"):
        make_sft(SftSettings(reflections=[tmp_path / "r.parquet", tmp_path / "r.parquet"], **kind), tmp_path / "d")
    write_rows(tmp_path / "r.parquet", [{**row, "state_id": "?", "reply": "", "reflection": "x"}], REFLECTION)
    with pytest.raises(DataError, match=r"state \?"):
        make_sft(
            SftSettings(
                trajectories=[trajectories],
                model=str(embedded_models()["alfworld"]),
                kind="reflection",
                reflections=[tmp_path / "r.parquet"],
            ),
            tmp_path / "d",
        )


def test_rows_that_verl_would_refuse_are_left_out_and_counted(trajectories: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from verl_act.data.sft_dataset import ActSFTDataset

    model = str(embedded_models()["alfworld"])
    everything = make_sft(
        SftSettings(trajectories=[trajectories], model=model, template="compact"), tmp_path / "all"
    ).counts
    settings = {"max_length": 4096, "truncation": "error", "messages_key": "messages", "pad_mode": "no_padding"}

    def lengths(folder: str, **changes: Any) -> list[int]:
        config = OmegaConf.create({**settings, **changes})
        files = [str(tmp_path / folder / "sft.parquet")]
        rows = ActSFTDataset(parquet_files=files, tokenizer=AutoTokenizer.from_pretrained(model), config=config)
        return [len(rows[at]["input_ids"]) for at in range(len(rows))]

    limit = sorted(lengths("all"))[everything["rows"] // 2]
    counts = make_sft(
        SftSettings(trajectories=[trajectories], model=model, template="compact", max_length=limit), tmp_path / "short"
    ).counts
    kept = lengths("short", max_length=limit)  # verl would raise at a longer one
    assert kept and sorted(kept) == sorted(length for length in lengths("all") if length <= limit)
    assert counts["too_long"] == everything["rows"] - len(kept) > 0 == everything["too_long"]
    with pytest.raises(DataError, match="max-length"):
        make_sft(
            SftSettings(trajectories=[trajectories], model=model, template="compact", max_length=3), tmp_path / "none"
        )
