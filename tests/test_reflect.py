"""Reflections: what the alternatives of a state lead to, and which texts of the model are kept."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import embedded_models, make_pair

from verl_act.data_prep.sft.reflect import ReflectionFault, alternatives_by_state, outcomes, reflect, reflection_text
from verl_act.engine import Reply
from verl_act.prompts import get_template
from verl_act.schema import PAIR, read_pairs, read_steps, write_rows
from verl_act.settings.data import ReflectSettings
from verl_act.settings.model import Sampling


def reflecting(games: Path, workers: int = 0) -> ReflectSettings:
    settings = {"env_settings": {"data": str(games)}, "workers": workers}
    return ReflectSettings(model="none", trajectories=[], pairs=[], **settings)


def test_outcomes_are_what_the_environment_shows(trajectories: Path, pairs: Path, games: Path) -> None:
    steps = read_steps([trajectories])
    following = {(step.trajectory_id, step.step): step for step in steps}
    alternatives = {pair.state_id: [pair.alternative_action] for pair in read_pairs([pairs])}
    counts: Counter[str] = Counter()
    compared = 0
    for step, taken, others in outcomes(steps, alternatives, reflecting(games), counts):
        assert [turn.action for turn in others] == alternatives[step.state_id]
        assert all(turn.observation for turn in others)
        if after := following.get((step.trajectory_id, step.step + 1)):
            assert taken.observation == after.context.observation
            compared += 1
    assert counts["states"] == len(alternatives) and compared > 20


def test_processes_share_outcomes_and_change_nothing(trajectories: Path, pairs: Path, games: Path) -> None:
    steps = read_steps([trajectories])
    alternatives = alternatives_by_state([pairs])
    counts: list[Counter[str]] = [Counter(), Counter()]
    one, two = (
        list(outcomes(steps, alternatives, reflecting(games, workers), counts[workers - 1])) for workers in (1, 2)
    )
    assert one == two and counts[0] == counts[1]


def test_every_alternative_of_a_state_is_tried_once(tmp_path: Path) -> None:
    pairs = [make_pair(0, further_alternatives=("look", "inventory")), make_pair(0, alternative_action="look")]
    write_rows(tmp_path / "pairs.parquet", [pair.to_row() for pair in [*pairs, make_pair(1)]], PAIR)
    assert alternatives_by_state([tmp_path / "pairs.parquet"]) == {
        pairs[0].state_id: ["go to shelf 1", "look", "inventory"],
        make_pair(1).state_id: ["go to shelf 1"],
    }


@given(st.text())
def test_a_reflection_cannot_end_its_own_reasoning(reply: str) -> None:
    text = reflection_text(f"<think>{reply}</think><action>go</action>", "go")
    assert not re.search("</?(think|action)>", text)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("It is near.", "It is near."),
        ("<think>What do they want?</think> The desk is near.", "The desk is near."),
        ("<think>The desk is near.</think><action>go to desk 1</action>", "The desk is near."),
        ("It is near. <action>Go to  desk 1</action>", "It is near."),
        ("<think>The desk is near, and what", ReflectionFault.CUT),
        ("<think>The shelf is near.</think><action>go to shelf 1</action>", ReflectionFault.OTHER_ACTION),
        ("It is near. <action>go to desk 1</action> or <action>look</action>", ReflectionFault.OTHER_ACTION),
        ("It is near. <action>go to desk", ReflectionFault.OTHER_ACTION),
        ("<action>go to desk 1</action>", ReflectionFault.EMPTY),
        ("", ReflectionFault.EMPTY),
    ],
)
def test_a_reflection_is_what_was_written_for_the_experts_action(reply: str, text: str) -> None:
    assert reflection_text(reply, "go to desk 1") == text
    assert reflection_text(reply, "go to desk 1", cut=True) is ReflectionFault.CUT


def test_where_a_template_asks_for_an_answer_a_reflection_must_conclude() -> None:
    assert get_template("compact").reflections_conclude and not get_template("cot").reflections_conclude
    assert reflection_text("It is near.", "go to desk 1", concludes=True) is ReflectionFault.OTHER_ACTION
    reply = "<think>The desk is near.</think><action>go to desk 1</action>"
    assert reflection_text(reply, "go to desk 1", concludes=True) == "The desk is near."


class FourAtOnce:
    """An engine that runs four requests at once."""

    max_num_seqs = 4

    def __init__(self) -> None:
        self.running = self.most = 0

    def __enter__(self) -> FourAtOnce:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, coroutine: Any) -> Any:
        return asyncio.run(coroutine)

    async def scored_reply(self, messages: Any, sampling: Sampling, seed: int) -> list[Reply]:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return [Reply("It is near.", -0.5)]


def test_states_are_asked_about_at_once_and_keep_the_engine_full(
    trajectories: Path, pairs: Path, games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FourAtOnce()
    monkeypatch.setattr("verl_act.data_prep.sft.reflect.Engine", lambda *_, **__: engine)
    model = str(embedded_models()["alfworld"])
    where: dict[str, Any] = {"env_settings": {"data": str(games)}, "workers": 0}
    settings = ReflectSettings(model=model, trajectories=[trajectories], pairs=[pairs], **where)
    counts = reflect(settings, tmp_path / "out").counts
    assert counts["reflections"] == counts["states"] > 2 * engine.max_num_seqs
    assert engine.most == 2 * engine.max_num_seqs, "some always wait for it"
