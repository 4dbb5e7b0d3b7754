"""Rationale intervention: what becomes of the answers when the thought before them is taken away or replaced.

It tests whether thoughts cause answers (paper, second version). The same held-out pairs are asked as choices, in all
orders, and for the next action.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl_act.envs.registry import choice_prompt
from verl_act.errors import OptionError
from verl_act.evaluate.choices import ChoiceQuestion, choice_questions, judged_choice
from verl_act.evaluate.rollouts import PolicyUnderTest, answer_all
from verl_act.journal import Journal, Record
from verl_act.parse import has_thought, match_action, parse_action
from verl_act.prompts import Template
from verl_act.schema import Pair
from verl_act.settings.evaluation import Rationale

_ANSWER = "<action>"
CHOICE, NEXT_ACTION = "choice", "next_action"


def require_rationales(template: Template, name: str) -> None:
    """Raise `OptionError` if replies to prompts of the template `name` have no thoughts to intervene in."""
    if template.rationale("one action", "another action") is None:
        raise OptionError(
            "rationale",
            f"needs replies with thoughts, but template {name!r} asks for none. Use the template 'cot' or, in one of "
            "your own, implement `rationale`.",
        )


def opening(template: Template, rationale: Rationale, pair: Pair) -> str:
    """The beginning of the reply that the intervention prescribes; empty for `FREE`."""
    if rationale is Rationale.FREE:
        return ""
    if rationale is Rationale.NONE:
        return template.reply_opening("") + _ANSWER
    return template.reply_opening(template.rationale(pair.alternative_action, pair.expert_action) or "")


async def evaluate_rationales(
    policy: PolicyUnderTest, pairs: Sequence[Pair], rationales: Sequence[Rationale], journal: Journal | None = None
) -> list[Record]:
    """Ask every pair's choice (in all orders) and next action under every one of `rationales`.

    `right`: the answer is the expert's action; `follows`: it is the alternative that the wrong thought argues for,
    whether or not that was injected.
    """

    async def choose(item: tuple[Rationale, ChoiceQuestion]) -> Record:
        rationale, question = item
        messages = choice_prompt(policy.template, question.pair, question.candidates)
        start = opening(policy.template, rationale, question.pair)
        reply = await policy.answer(messages, f"{rationale} choice {question.name}", start)
        judged = judged_choice(question, reply)
        chosen = None if judged["chosen"] is None else question.candidates[judged["chosen"]]
        return {
            **_described(question.pair, rationale, CHOICE, reply, question.order),
            "candidates": list(question.candidates),
            "well_formed": judged["well_formed"],
            "right": judged["right"],
            "follows": chosen == question.pair.alternative_action,
        }

    async def act(item: tuple[Rationale, Pair]) -> Record:
        rationale, pair = item
        start = opening(policy.template, rationale, pair)
        messages = policy.template.action_messages(pair.context)
        reply = await policy.answer(messages, f"{rationale} next action {pair.pair_id}", start)
        parsed = parse_action(reply)
        action = parsed.action or ""
        return {
            **_described(pair, rationale, NEXT_ACTION, reply),
            "well_formed": parsed.malformed is None,
            "right": match_action(action, [pair.expert_action]) is not None,
            "follows": match_action(action, [pair.alternative_action]) is not None,
        }

    questions = [(rationale, question) for rationale in rationales for question in choice_questions(pairs)]
    states = [(rationale, pair) for rationale in rationales for pair in pairs]
    choices = await answer_all(policy, choose, questions, "rationales, choices", journal)
    return choices + await answer_all(policy, act, states, "rationales, next actions", journal)


def _described(pair: Pair, rationale: Rationale, question: str, reply: str, order: int = 0) -> Record:
    return {
        "pair_id": pair.pair_id,
        "task_id": pair.task_id,
        "split": pair.split,
        "inferable": pair.inferable,
        "rationale": str(rationale),
        "question": question,
        "order": order,
        "expert_action": pair.expert_action,
        "alternative_action": pair.alternative_action,
        "reply": reply,
        "thought": has_thought(reply),
    }
