"""The audit of pairs: sound ones pass, and each planted fault is found by its own check."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from samples import make_context, make_pair
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.data_prep.pairs.check_pairs import AuditReport, check_pairs
from verl_act.errors import ConfigError
from verl_act.schema import (
    PAIR,
    Pair,
    pair_id,
    write_rows,
)
from verl_act.settings.data import AuditSettings


def _audit(folder: Path, pairs: list[Pair], held_out: list[Pair] | None = None) -> AuditReport:
    write_rows(folder / "pairs.parquet", [pair.to_row() for pair in pairs], PAIR)
    write_rows(folder / "held_out.parquet", [pair.to_row() for pair in held_out or []], PAIR)
    return check_pairs(AuditSettings(pairs=[folder / "pairs.parquet"], held_out=[folder / "held_out.parquet"]))


def _sound(count: int = 40) -> list[Pair]:
    """Half of the experts' actions are the longer ones, and no verb tells them apart."""
    pairs = []
    for number in range(count):
        if number % 2:
            pairs.append(make_pair(number))
        else:
            pairs.append(
                make_pair(number, expert_action="go to shelf 1", alternative_action=f"take mug {number} from desk 1")
            )
    return pairs


def _another(pair: Pair, **changes: str) -> Pair:
    """`pair` with other texts, and the id that belongs to them."""
    return make_pair(int(pair.task_id.removeprefix("game-")), **changes)


FAULTS: dict[str, Callable[[list[Pair]], list[Pair]]] = {
    "task leakage": lambda pairs: [replace(pairs[0], split="valid_seen", state_id="other#1"), *pairs],
    "same action": lambda pairs: [
        *pairs[1:],
        _another(pairs[0], expert_action="go to shelf 1", alternative_action="GO  to shelf 1"),
    ],
    "expert's action admissible": lambda pairs: [*pairs[1:], _another(pairs[0], expert_action="dance")],
    "admissible flag": lambda pairs: [*pairs[1:], replace(pairs[0], alternative_admissible=False)],
    "admissible flag ": lambda pairs: [
        *pairs[1:],
        make_pair(
            int(pairs[0].task_id.removeprefix("game-")), further_alternatives=("dance",), further_admissible=(True,)
        ),
    ],
    "pair id": lambda pairs: [*pairs[1:], replace(pairs[0], pair_id="0123456789abcdef")],
    "duplicates": lambda pairs: [*pairs, pairs[0]],
    "label words": lambda pairs: [*pairs[1:], _another(pairs[0], alternative_action="go to the alternative shelf 1")],
    "length": lambda pairs: [make_pair(number) for number in range(40)],
}


def test_sound_pairs_pass(tmp_path: Path) -> None:
    report = _audit(tmp_path, _sound(200), [make_pair(999)])
    assert {finding.level for finding in report.findings} == {"ok"}, report.table()
    assert "200 pairs checked" in report.table()


@pytest.mark.parametrize("check", FAULTS)
def test_a_planted_fault_is_found(check: str, tmp_path: Path) -> None:
    report = _audit(tmp_path, FAULTS[check](_sound()))
    assert check.strip() in {finding.check for finding in report.errors}
    assert check.strip() in report.table()


def test_an_environment_that_is_not_installed_may_have_actions_that_it_does_not_list(tmp_path: Path) -> None:
    strange = [
        replace(
            pair,
            env="elsewhere",
            expert_action="search[shoes]",
            pair_id=pair_id(pair.state_id, "search[shoes]", pair.alternative_action),
        )
        for pair in _sound()
    ]
    checks = {finding.check: finding.level for finding in _audit(tmp_path, strange).findings}
    assert checks["expert's action admissible"] == "ok"


def test_what_the_audit_allows_is_an_option(tmp_path: Path) -> None:
    longer = [make_pair(number) for number in range(40)]
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in longer], PAIR)
    command = ["data", "audit", "--pairs", str(tmp_path / "pairs.parquet")]
    assert CliRunner().invoke(app, command).exit_code == 1
    assert CliRunner().invoke(app, [*command, "--max-length-accuracy", "1.0"]).exit_code == 0
    told = CliRunner().invoke(app, [*command, "--template", "compact", "--template-options", "colour=1"])
    assert isinstance(told.exception, ConfigError) and "colour" in str(told.exception)


SKIPPED: dict[str, tuple[dict[str, object], str]] = {
    "task leakage": ({}, "no held-out pairs"),
    "margin": ({"margin": None}, "margin measured for 0 of 40 pairs"),
    "expert's action admissible": ({"context": replace(make_context(), admissible_actions=())}, "0 of 40"),
    "admissible flag": ({"context": replace(make_context(), admissible_actions=())}, "0 of 40"),
    "verb": ({"expert_action": "go to desk 1"}, "0 of 40"),
    "shortcuts": ({}, "100 training pairs"),
    "length": ({"expert_action": "look at shelf", "alternative_action": "go to shelf 1"}, "0 of 40"),
}


@pytest.mark.parametrize("check", SKIPPED)
def test_a_check_with_nothing_to_look_at_is_skipped(check: str, tmp_path: Path) -> None:
    changes, text = SKIPPED[check]
    report = _audit(tmp_path, [make_pair(number, **changes) for number in range(40)])
    assert {finding.check: finding.level for finding in report.findings}[check] == "skipped"
    assert text in next(finding.text for finding in report.findings if finding.check == check)
    assert check not in {finding.check for finding in report.errors}


def test_a_check_of_some_pairs_says_of_how_many(tmp_path: Path) -> None:
    pairs = [replace(pair, margin=None) if number % 2 else pair for number, pair in enumerate(_sound())]
    (margin,) = (finding for finding in _audit(tmp_path, pairs).findings if finding.check == "margin")
    assert margin.level == "ok" and "20 of 40 pairs" in margin.text


def test_a_task_that_is_held_out_is_found(tmp_path: Path) -> None:
    report = _audit(tmp_path, _sound(), [make_pair(7)])
    assert [finding.check for finding in report.errors] == ["task leakage"]
    assert "game-7 is held out" in report.table()


def test_a_preferred_verb_and_a_margin_of_nothing_are_warnings(tmp_path: Path) -> None:
    report = _audit(tmp_path, [replace(make_pair(number), margin=0) for number in range(40)])
    levels = {finding.check: finding.level for finding in report.findings}
    assert levels["verb"] == levels["margin"] == "warning"


@pytest.mark.parametrize("size", [8, 9, 17, 21, 25, 29, 41])
def test_one_pair_more_in_a_place_is_no_imbalance(size: int, tmp_path: Path) -> None:
    report = _audit(tmp_path, [make_pair(number) for number in range(size)])
    assert "position" not in {finding.check for finding in report.errors}


def test_a_word_that_both_candidates_have_is_no_leak(tmp_path: Path) -> None:
    spoken = {"expert_action": "take the gold mug", "alternative_action": "drop the gold mug"}
    report = _audit(tmp_path, [make_pair(0, **spoken), *_sound()[1:]])
    assert "label words" not in {finding.check for finding in report.errors}


def test_words_that_the_state_uses_itself_are_no_leak(tmp_path: Path) -> None:
    context = replace(make_context(), admissible_actions=("buy expert skis", "look"), observation="The expert skis.")
    pair = make_pair(0, context=context, expert_action="buy expert skis", alternative_action="look")
    report = _audit(tmp_path, [pair, *_sound()[1:]])
    assert "label words" not in {finding.check for finding in report.errors}
