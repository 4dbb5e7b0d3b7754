"""The table of a comparison of methods: what it says of its answers, and which it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verl_act.errors import DataError
from verl_act.evaluate.method_comparison import compare_methods
from verl_act.evaluate.statistics import (
    ItemOutcome,
    against,
    estimate,
    holm,
)
from verl_act.manifest import make_manifest, write_manifest
from verl_act.settings.evaluation import MethodsTableSettings


def table_of(settings: MethodsTableSettings, out: Path) -> Any:
    """The content of `methods.json`."""
    compare_methods(settings, out)
    return json.loads((out / "methods.json").read_text(encoding="utf-8"))


def three_methods(tmp_path: Path, seeds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    methods: dict[str, Any] = {}
    for name, chance in (("Prompting", 0.1), ("RL", 0.5), ("RL + ACT", 0.9)):
        trained = name != "Prompting"
        paths = {str(seed): f"{name}-{seed}" for seed in range(seeds if trained else 1)}
        for path in paths.values():
            write_evaluation(tmp_path / path, rng, chance)
        against = {"Prompting": [], "RL": ["Prompting"], "RL + ACT": ["RL", "Prompting"]}[name]
        methods[name] = {
            "steps": {"action": 40} if trained else {},
            "against": against,
            "evaluations": paths,
            "stages": [],
        }
    return methods


def test_one_seed_has_no_p(tmp_path: Path) -> None:
    whole = table_of(MethodsTableSettings(run=tmp_path, methods=three_methods(tmp_path, seeds=1)), tmp_path / "methods")
    tests = [test for item in whole["entries"] for test in item["against"].values()]
    assert tests and all(test["p"] is None and test["p_seeds"] is None for test in tests)
    text = (tmp_path / "methods" / "methods.md").read_text()
    assert not re.search(r"p [=<] 0", text) and "points [+" in text
    assert re.search(r"\[\+[\d.]+, \+[\d.]+\], one seed", text)


def test_p_is_the_larger_one_corrected_for_the_whole_table(tmp_path: Path) -> None:
    whole = table_of(MethodsTableSettings(run=tmp_path, methods=three_methods(tmp_path, seeds=3)), tmp_path / "methods")
    tests = {
        (item["method"], item["metric"], other): test
        for item in whole["entries"]
        for other, test in item["against"].items()
    }
    tested = {key: test for key, test in tests.items() if key[1] in ("success", "choice")}
    assert {key for key, test in tests.items() if test["p"] is not None} == set(tested)
    raw = {key: max(test["p_tasks"], test["p_seeds"]) for key, test in tested.items()}
    lowest = min(raw, key=raw.__getitem__)
    assert len(tested) == 6 and tested[lowest]["p"] == pytest.approx(min(1.0, 6 * raw[lowest]))
    assert [test["p"] for test in tested.values()] == pytest.approx(holm(list(raw.values())))
    assert tested["RL + ACT", "success", "Prompting"]["p"] < 0.05


def write_evaluation(folder: Path, rng: np.random.Generator, chance: float) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"model": "the initial model"}))
    episodes = [
        {
            "task_id": f"t{number}",
            "split": "valid_seen",
            "task_type": f"type_{number % 2}",
            "success": bool(rng.random() < chance),
            "end": "turns",
            "longest_failed_repeat": number % 5,
            "inadmissible_share": 0.25,
            "malformed_share": 0.0,
            "steps": 4.0,
            "reply_tokens": 20,
            "useful_tokens": 15,
        }
        for number in range(30)
    ]
    choices = [
        {
            "pair_id": f"p{number}",
            "split": "valid_seen",
            "right": bool(rng.random() < chance),
            "inferable": number % 3 == 0,
            "reply": "A",
            "well_formed": True,
            "admissible": True,
            "named_a_candidate": True,
            "expert_position": number % 2,
            "order": 0,
            "candidates": ["a", "b"],
            "chosen": 0,
            "consistent": True,
            "margin": number % 4 or None,
        }
        for number in range(60)
    ]
    for name, records in (("episodes", episodes), ("choices", choices)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def entry(whole: dict[str, Any], **wanted: str) -> dict[str, Any]:
    wanted.setdefault("group", "")
    (found,) = (item for item in whole["entries"] if all(item[key] == value for key, value in wanted.items()))
    return found


def test_the_table_says_what_the_answers_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    methods: dict[str, Any] = {}
    for name, chance in (("Prompting", 0.2), ("RL", 0.5), ("RL + ACT", 0.9)):
        seeds = [0] if name == "Prompting" else [0, 1, 2]
        paths = {str(seed): f"seed-{seed}/evaluation/{name}" for seed in seeds}
        for path in paths.values():
            write_evaluation(tmp_path / path, rng, chance)
        steps = {} if name == "Prompting" else {"action": 40}
        methods[name] = {"steps": steps, "against": ["Prompting"], "evaluations": paths, "stages": []}
    methods["Prompting"]["against"] = []
    methods["RL + ACT"]["against"] = ["RL", "Prompting"]
    whole = table_of(
        MethodsTableSettings(run=tmp_path, methods=methods, initial_model="models/tiny"), tmp_path / "methods"
    )
    assert whole["initial_model"] == "models/tiny"
    for name, method in methods.items():
        means = []
        for path in method["evaluations"].values():
            records = list(map(json.loads, (tmp_path / path / "episodes.jsonl").read_text().splitlines()))
            means.append(np.mean([record["success"] for record in records]))
        found = entry(whole, method=name, metric="success")["estimate"]
        assert found["by_seed"] == pytest.approx(means) and found["value"] == pytest.approx(np.mean(means))
    tests = entry(whole, method="RL + ACT", metric="success")["against"]
    assert list(tests) == ["RL", "Prompting"] and tests["Prompting"]["p_tasks"] < 0.001
    assert entry(whole, method="Prompting", metric="success")["against"] == {}
    values = {}
    for name in ("RL", "RL + ACT"):
        won: dict[str, list[bool]] = {}
        for path in methods[name]["evaluations"].values():
            for line in (tmp_path / path / "episodes.jsonl").read_text().splitlines():
                record = json.loads(line)
                won.setdefault(record["task_id"], []).append(record["success"])
        values[name] = np.array([np.mean(won[task]) for task in sorted(won)])
    differences = values["RL + ACT"] - values["RL"]
    assert tests["RL"]["difference"] == pytest.approx(differences.mean())
    assert tests["RL"]["items"] == len(differences)
    assert tests["RL"]["p_tasks"] == pytest.approx(random_signs_p(differences), abs=0.02)
    middle, spread = differences.mean(), 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
    assert (tests["RL"]["low"], tests["RL"]["high"]) == pytest.approx((middle - spread, middle + spread), abs=0.03)
    assert entry(whole, method="RL", metric="loops")["estimate"]["value"] == pytest.approx(0.4)
    assert entry(whole, method="RL", metric="reply_length")["estimate"]["value"] == 5
    assert entry(whole, method="RL", metric="useful_tokens")["estimate"]["value"] == 0.75
    groups = {item["group"] for item in whole["entries"] if item["metric"] == "choice_by_margin"}
    assert groups == {"1", "2", "3–4", "unknown"}
    table = (tmp_path / "methods" / "methods.md").read_text()
    assert "| RL + ACT | action 40 | RL; Prompting | 0, 1, 2 |" in table
    assert "### Better action chosen by its position, valid_seen" in table
    assert re.search(r"; \+\d\d\.\d points \[\+\d\d\.\d, \+\d\d\.\d\], p = 0\.\d{3}", table)
    assert re.search(r"; \+\d\d\.\d points \[[^]]*\] to RL, p [<=]", table)
    assert json.loads((tmp_path / "methods" / "methods.json").read_text()) == json.loads(json.dumps(whole))


def test_steps_that_epochs_decided_are_those_that_were_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = {"il": -1, "action": 5}
    method = {"stages": list(steps), "steps": steps, "against": [], "evaluations": {"0": "a"}}
    write_evaluation(tmp_path / "a", rng, 0.5)
    log = tmp_path / "seed-0" / "il" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"step": step, "data": {}}) + "\n" for step in (1, 7)))
    assert table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")["methods"]["A"][
        "steps"
    ] == {"il": 7, "action": 5}
    assert "| A | il 7, action 5 |" in (tmp_path / "out" / "methods.md").read_text()


def test_a_stage_that_a_method_repeats_counts_with_all_of_its_trainings(tmp_path: Path) -> None:
    names = ["critic", "critic+critic", "critic+critic+action"]
    for name, last in zip(names, (3, 4, 50), strict=True):
        log = tmp_path / "seed-0" / name / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps({"step": last, "data": {}}) + "\n")
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    method = {
        "stages": ["critic", "critic", "action"],
        "steps": {"critic": -2, "action": -1},
        "against": [],
        "evaluations": {"0": "a"},
    }
    whole = table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    assert whole["methods"]["A"]["steps"] == {"critic": 7, "action": 50}


def test_seeds_are_compared_on_the_tasks_that_all_of_them_have() -> None:
    """A seed whose hard tasks were lost to the environment is no better than the others."""
    every = {f"t{number}": ItemOutcome(float(number < 5), 1.0, f"t{number}") for number in range(10)}
    easy = {item: outcome for item, outcome in every.items() if outcome.amount}
    result = against([every, easy], [every, every])
    assert result is not None and (result.difference, result.p_seeds) == (0.0, 1.0)
    assert estimate([every, easy], is_share=True).by_seed == [1.0, 1.0]


def test_episodes_that_the_environment_lost_are_named(tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "stages": []}
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    path = tmp_path / "a" / "episodes.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0] |= {"end": "error", "error": "no memory"}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = {"episodes": len(records), "episode_errors": 1}
    write_manifest(tmp_path / "a", make_manifest("evaluate", settings={}, inputs=[], counts=counts))
    whole = table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    assert whole["methods"]["A"]["failed"] == {"0": [1, len(records)]}
    assert f"**A, seed 0: 1 of {len(records)} episodes ended in an error" in (tmp_path / "out/methods.md").read_text()


def test_judging_is_told_from_naming_a_candidate(tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "stages": []}
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    path = tmp_path / "a" / "choices.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for number, record in enumerate(records):
        named = number % 2 == 0
        record |= {"inferable": True, "named_a_candidate": named, "right": named and number % 4 == 0}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    whole = table_of(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    named, right = (sum(record[key] for record in records) for key in ("named_a_candidate", "right"))
    values = {name: entry(whole, method="A", metric=name)["estimate"]["value"] for name in CHOICE_METRICS}
    assert values == pytest.approx(
        {
            "choice_inferable": right / len(records),
            "choice_named": named / len(records),
            "choice_of_named_inferable": right / named,
        }
    )


CHOICE_METRICS = ("choice_inferable", "choice_named", "choice_of_named_inferable")


def random_signs_p(differences: np.ndarray) -> float:
    """The share of random signs that make the sum as extreme as it is."""
    signs = np.random.default_rng(5).choice([-1, 1], (20_000, len(differences)))
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())


def test_a_missing_or_doubled_evaluation_is_refused(tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "stages": []}
    with pytest.raises(DataError, match=str(tmp_path / "a")):
        compare_methods(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    lines = (tmp_path / "a" / "episodes.jsonl").read_text()
    (tmp_path / "a" / "episodes.jsonl").write_text(lines + lines)
    with pytest.raises(DataError, match=r"valid_seen/t0\b"):
        compare_methods(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")


@pytest.mark.parametrize("cut", ["half a line", "whole lines"])
def test_answers_that_were_cut_are_refused(cut: str, tmp_path: Path) -> None:
    method = {"steps": {}, "against": [], "evaluations": {"0": "a"}, "stages": []}
    write_evaluation(tmp_path / "a", np.random.default_rng(0), 0.5)
    path = tmp_path / "a" / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    counts = {"episodes": len(lines)}
    write_manifest(tmp_path / "a", make_manifest("evaluate", settings={}, inputs=[], counts=counts))
    path.write_text("".join(lines[:-1]) + (lines[-1][:20] if cut == "half a line" else ""))
    message = r"episodes\.jsonl, line 30\b" if cut == "half a line" else r"episodes\.jsonl.*\b29\b.*\b30\b"
    with pytest.raises(DataError, match=message):
        compare_methods(MethodsTableSettings(run=tmp_path, methods={"A": method}), tmp_path / "out")
