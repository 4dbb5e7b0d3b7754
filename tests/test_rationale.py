"""The rationale intervention: what it puts into the model's mouth, for every prompt template and chat template."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from samples import ALTERNATING, alternating_tokenizer, embedded_models, make_pair
from transformers import AutoTokenizer

from verl_act.engine import Engine, Reply
from verl_act.envs.registry import choice_prompt
from verl_act.errors import OptionError
from verl_act.evaluate.evaluation import Answers, check_settings, evaluation_manifest, write_evaluation
from verl_act.evaluate.metric_registry import read_metrics
from verl_act.evaluate.rationale import Rationale, evaluate_rationales, opening
from verl_act.evaluate.rollouts import PolicyUnderTest
from verl_act.parse import has_thought, parse_action
from verl_act.prompts import get_template
from verl_act.prompts.plain_text import reply_prefix
from verl_act.settings.evaluation import EvaluationSettings
from verl_act.settings.model import Sampling

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = "<|im_start|>assistant\n"
CHAT_TEMPLATES = {
    "chatml": CHATML + "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}",
    "opens the thought": CHATML + "{% if add_generation_prompt %}" + ASSISTANT + "<think>\n{% endif %}",
    "opens the thought in the line": CHATML + "{% if add_generation_prompt %}" + ASSISTANT + "<think>{% endif %}",
    # As Qwen3's with enable_thinking=False.
    "no thought": CHATML + "{% if add_generation_prompt %}" + ASSISTANT + "<think>\n\n</think>\n\n{% endif %}",
    **dict(zip(("gemma", "mistral"), ALTERNATING, strict=True)),
}


def engine_of(chat_template: str) -> Engine:
    """An engine as far as it makes prompts, without vLLM."""
    engine = Engine.__new__(Engine)
    if chat_template in ALTERNATING:
        engine.tokenizer = alternating_tokenizer(chat_template)
    else:
        engine.tokenizer = AutoTokenizer.from_pretrained(embedded_models()["alfworld"])
        engine.tokenizer.chat_template = chat_template
    engine.chat_template_kwargs = {}
    engine.reply_prefix = reply_prefix(engine.tokenizer)
    return engine


@pytest.mark.parametrize("chat_template", CHAT_TEMPLATES.values(), ids=CHAT_TEMPLATES)
@pytest.mark.parametrize("name", ["cot", "compact"])
@pytest.mark.parametrize("rationale", [Rationale.NONE, Rationale.WRONG])
def test_a_prompt_ends_with_one_finished_thought(name: str, chat_template: str, rationale: Rationale) -> None:
    engine, template, pair = engine_of(chat_template), get_template(name), make_pair()
    start = opening(template, rationale, pair)
    messages = template.action_messages(pair.context)
    asked = engine.tokenizer.decode(engine.encode(messages))
    text = engine.tokenizer.decode(engine.encode(messages, start))
    common = asked.removesuffix("<think>\n\n</think>\n\n").removesuffix("\n").removesuffix("<think>")
    assert text.startswith(common.rstrip("\n"))
    said = text[len(common.rstrip("\n")) :]
    assert (said.count("<think>"), said.count("</think>")) == (1, 1)
    assert "".join(said.split()) == "".join(start.split())
    assert (pair.alternative_action in said) == (rationale is Rationale.WRONG)
    reply = f"{start.removesuffix('<action>')}<action>look</action>"
    assert start.endswith("<action>") == (rationale is Rationale.NONE)
    assert parse_action(reply).action == "look"
    assert has_thought(reply) == (rationale is Rationale.WRONG)
    assert engine.encode(messages) == engine.encode(messages, opening(template, Rationale.FREE, pair))


def test_the_choice_is_asked_as_in_training_and_evaluation() -> None:
    """Candidates that are admissible, and not in the environment's list, are in the prompt's."""
    asked: list[str] = []

    class Hears:
        async def reply(self, messages: Any, *_: object, **__: object) -> list[str]:
            asked.append(messages[-1]["content"])
            return ["<action>look</action>"]

    pair = make_pair(env="webshop", expert_action="search[red mug]", alternative_action="search[mug]")
    template = get_template("cot", admissible_in_choice=True)
    policy = PolicyUnderTest(cast(Any, Hears()), template, Sampling(temperature=0))
    asyncio.run(evaluate_rationales(policy, [pair], [Rationale.FREE]))
    for candidates in ((pair.expert_action, pair.alternative_action), (pair.alternative_action, pair.expert_action)):
        assert choice_prompt(template, pair, candidates)[-1]["content"] in asked


def test_control_tokens_of_an_action_stay_text() -> None:
    engine, template = engine_of(CHAT_TEMPLATES["chatml"]), get_template("cot")
    pair = make_pair(alternative_action="say <|im_end|>")
    messages = template.action_messages(pair.context)
    ends = [engine.encode(messages, opening(template, arm, pair)).count(end_of_turn(engine)) for arm in Rationale]
    assert len(set(ends)) == 1


def end_of_turn(engine: Engine) -> int:
    return cast(int, engine.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings(**{"model": "a/model", "pairs": [Path("pairs.parquet")], **changes})


@pytest.mark.parametrize("rationale", [["none"], ["free", "wrong"]])
def test_a_template_without_thoughts_is_refused(rationale: list[str]) -> None:
    for name, options in (("plain", {}), ("cot", {"reasoning": False})):
        with pytest.raises(OptionError) as error:
            check_settings(settings(template=name, template_options=options, rationale=rationale))
        assert error.value.option == "rationale"
    check_settings(settings(template="compact", rationale=rationale))
    for change in ({"rationale": ["mine"]}, {"rationale": rationale, "pairs": []}):
        with pytest.raises(OptionError) as error:
            settings(**change)
        assert error.value.option.startswith("rationale")


class Obeys:
    """Takes the last action that its own opened reply names, or else the expert's: its thoughts decide."""

    def __init__(self) -> None:
        self.seeds: list[int | None] = []

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None, opening: str = "") -> list[str]:
        self.seeds.append(seed)
        action = "go to shelf 1" if "go to shelf 1" in opening else "take mug 0 from desk 1"
        thought = opening.removesuffix("<action>") or "<think>the mug is here</think>"
        return [f"{thought}<action>{action}</action>"]

    async def scored_reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[Reply]:
        raise AssertionError("an intervention needs no log-probability")


def test_a_model_whose_thoughts_decide_follows_the_injected_one(tmp_path: Path) -> None:
    engine = Obeys()
    policy = PolicyUnderTest(cast(Any, engine), get_template("compact"), Sampling())
    pairs = [make_pair(), make_pair(split="valid_seen", state_id="other#2", further_alternatives=("look",))]
    records = asyncio.run(evaluate_rationales(policy, pairs, list(Rationale)))
    assert len(records) == len(set(engine.seeds)) == 3 * (2 + 3 + 2)
    for arm, (right, follows, thought) in {"free": (1, 0, 1), "none": (1, 0, 0), "wrong": (0, 1, 1)}.items():
        answers = [record for record in records if record["rationale"] == arm]
        assert {(record["right"], record["follows"], record["thought"]) for record in answers} == {
            (right, follows, thought)
        }
        assert all(record["well_formed"] for record in answers)
    evaluation = settings(template="compact", pairs=[])
    write_evaluation(
        tmp_path / "out", evaluation, evaluation_manifest(evaluation), Answers([], [], [], rationales=records)
    )
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    follows = written["metrics"]["train"]["rationale_choice_follows"]
    assert {group: (entry["value"], entry["items"]) for group, entry in follows.items()} == {
        "free thought": (0, 1),
        "no thought": (0, 1),
        "wrong thought": (1, 1),
    }
    values = read_metrics(tmp_path / "out")
    assert [item.amount for item in values["train", "rationale_choice", "wrong thought"].values()] == [0.0]
    assert [item.amount for item in values["valid_seen", "rationale_next_action", "no thought"].values()] == [1.0]
