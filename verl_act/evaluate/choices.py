"""Choices between candidates: every pair is asked in all rotations of its candidates, with two in both orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from verl_act.data.order import candidate_rotations
from verl_act.data_prep.pairs.probe import probe_pairs
from verl_act.envs.registry import admissible_candidates, choice_prompt, is_admissible
from verl_act.evaluate.rollouts import PolicyUnderTest, answer_all
from verl_act.journal import Journal, Record
from verl_act.parse import has_thought, parse_choice, verb
from verl_act.schema import Pair


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A pair with its candidates in one of their orders, which `order` counts from 0."""

    pair: Pair
    order: int
    candidates: Sequence[str]

    @property
    def name(self) -> str:
        """Unique among the questions of all pairs."""
        return f"{self.pair.pair_id}#{self.order}"


def choice_questions(pairs: Sequence[Pair]) -> list[ChoiceQuestion]:
    """All orders of all pairs. Each candidate is at each position once, so choosing by position gains nothing."""
    return [
        ChoiceQuestion(pair, order, candidates)
        for pair in pairs
        for order, candidates in enumerate(candidate_rotations(pair.pair_id, pair.expert_action, pair.alternatives))
    ]


async def evaluate_choices(
    policy: PolicyUnderTest, pairs: Sequence[Pair], journal: Journal | None = None
) -> list[Record]:
    """Ask for the best candidate of every pair in every order: one record per pair and order.

    A reply is right if it chooses the expert's action. `consistent`: the same action was chosen in all orders.
    """

    async def one(question: ChoiceQuestion) -> Record:
        pair = question.pair
        messages = choice_prompt(policy.template, pair, question.candidates)
        reply = await policy.scored_answer(messages, f"choice {question.name}")
        return {
            "pair_id": pair.pair_id,
            "order": question.order,
            "task_id": pair.task_id,
            "split": pair.split,
            "inferable": pair.inferable,
            "margin": pair.margin,
            "verb": verb(pair.expert_action),
            "candidates": list(question.candidates),
            "expert_position": question.candidates.index(pair.expert_action),
            "reply": reply.text,
            "log_probability": reply.log_probability,
            **judged_choice(question, reply.text),
        }

    return _with_consistency(await answer_all(policy, one, choice_questions(pairs), "choices", journal))


def with_probe(records: Sequence[Record], pairs: Sequence[Pair]) -> list[Record]:
    """The records of `evaluate_choices` with what the shortcut probe makes of their pairs: `probe` (1: it prefers the
    expert's action, 0.5: it is undecided) and `hard`.

    The probe is cross-validated by task on `pairs`, all pairs of the files. Too few have no probe, and no hard pairs.
    """
    result = probe_pairs(pairs)
    if result is None:
        return list(records)
    by_pair = {
        (pair.split, pair.pair_id): {"probe": outcome, "hard": hard}
        for pair, outcome, hard in zip(pairs, result.outcomes.tolist(), result.hard.tolist(), strict=True)
    }
    return [{**record, **by_pair[record["split"], record["pair_id"]]} for record in records]


def judged_choice(question: ChoiceQuestion, reply: str) -> Record:
    """What `reply` chose, and whether that is right and admissible."""
    pair, candidates = question.pair, question.candidates
    parsed = parse_choice(reply, candidates)
    listed = pair.context.admissible_actions
    if parsed.index is None:
        admissible = is_admissible(pair.env, parsed.text or "", listed)
    else:
        admissible = admissible_candidates(pair.env, candidates, listed, pair.judged_admissible)[parsed.index]
    return {
        "thought": has_thought(reply),
        "well_formed": parsed.malformed is None,
        "named_a_candidate": parsed.index is not None,
        "chosen": parsed.index,
        "admissible": admissible,
        "right": parsed.index is not None and candidates[parsed.index] == pair.expert_action,
    }


def _with_consistency(records: Sequence[Record]) -> list[Record]:
    """The records with `consistent`, which no single reply decides. If no candidate is named, no action is chosen."""
    chosen: defaultdict[tuple[str, str], set[str | None]] = defaultdict(set)
    for record in records:
        index = record["chosen"]
        chosen[record["split"], record["pair_id"]].add(None if index is None else record["candidates"][index])
    return [
        {**record, "consistent": len(actions) == 1 and None not in actions}
        for record in records
        for actions in [chosen[record["split"], record["pair_id"]]]
    ]
