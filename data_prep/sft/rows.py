"""Rows for supervised training, one function for each kind: pure functions of records and a template.

`imitation`, `reflection`, `choice` and `rejection` give rows of schema SFT, `preference` those of schema DPO.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from verl_act.data.order import candidate_order, expert_positions
from verl_act.envs.registry import choice_prompt
from verl_act.parse import normalise, parse_action
from verl_act.prompts import Message, Template
from verl_act.schema import Alternatives, Pair, Step

Row = dict[str, Any]


def imitation(steps: Iterable[Step], template: Template) -> Iterator[Row]:
    """The action prompt of each step, and the expert's action after its thought, if it has one."""
    for step in steps:
        yield _action_row(step, "expert", template, action_reply(step.action, step.thought))


def reflection(steps: Iterable[Step], reflections: Mapping[str, str], template: Template) -> Iterator[Row]:
    """The action prompt of each step with a reflection (state id -> text), which the reply has before the action."""
    for step in steps:
        if step.state_id in reflections:
            reply = action_reply(step.action, reflections[step.state_id])
            yield _action_row(step, "reflection", template, reply)


def choice(pairs: Sequence[Pair], template: Template, seed: int = 0) -> Iterator[Row]:
    """The choice prompt of each pair, and the expert's action without a thought.

    The candidates are in the order of `data.act.order: hash` with the same seed.
    """
    positions = expert_positions([pair.pair_id for pair in pairs], [1 + len(pair.alternatives) for pair in pairs], seed)
    for pair, position in zip(pairs, positions, strict=True):
        candidates = candidate_order(pair.pair_id, pair.expert_action, pair.alternatives, int(position))
        reply = action_reply(template.choice_answer(candidates, int(position)))
        messages = [*choice_prompt(template, pair, candidates), _assistant(reply)]
        yield {"state_id": pair.state_id, "source": "choice", "messages": messages}


def rejection(steps: Iterable[Step], alternatives: Mapping[str, Alternatives], template: Template) -> Iterator[Row]:
    """The action prompt of each step, and the first reply of the initial policy with the expert's action, thoughts
    included. `alternatives`: state id -> sampled replies.
    """
    for step in steps:
        sampled = alternatives[step.state_id].replies if step.state_id in alternatives else ()
        expert = normalise(step.action)
        accepted = (reply.strip() for reply in sampled if normalise(parse_action(reply).action or "") == expert)
        if (reply := next(accepted, None)) is not None:
            yield _action_row(step, "rejection", template, reply)


def preference(pairs: Iterable[Pair], template: Template) -> Iterator[Row]:
    """The action prompt of each pair, with the expert's action chosen and an alternative rejected.

    One row for each alternative, in the conversational format of TRL's `DPOTrainer`.
    """
    for pair in pairs:
        for alternative in pair.alternatives:
            yield {
                "state_id": pair.state_id,
                "prompt": template.action_messages(pair.context),
                "chosen": [_assistant(action_reply(pair.expert_action))],
                "rejected": [_assistant(action_reply(alternative))],
            }


def _action_row(step: Step, source: str, template: Template, reply: str) -> Row:
    messages = [*template.action_messages(step.context), _assistant(reply)]
    return {"state_id": step.state_id, "source": source, "messages": messages}


def action_reply(action: str, thought: str | None = None) -> str:
    """A reply with an action, after a thought if there is one."""
    return f"<think>{thought}</think><action>{action}</action>" if thought else f"<action>{action}</action>"


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
