"""The template `compact`, for models so small that every prompt token counts.

Few fixed words, no instructions: the model learns the format in its warm-up. Action and choice prompts render the
context in the same way and expect the same kind of reply, `<action>text of the action</action>`, so that judging
transfers to acting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from verl_act.prompts.template import Message, Template
from verl_act.schema import Context, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactTemplate(Template):
    """Each option leaves out a part of the context, to save tokens.

    `admissible_in_action` and `admissible_in_choice` list the admissible actions. A small model learns to act
    from that list, and judges far better with it; it is not needed in environments with hundreds of actions, or whose
    observations name them all. `observations_in_history`: whether earlier turns show observations, or only actions.
    """

    reflections_conclude: ClassVar[bool] = True
    admissible_in_action: bool = True
    admissible_in_choice: bool = True
    observations_in_history: bool = True

    def action_messages(self, context: Context) -> list[Message]:
        return _user(*self._context(context), *self._can(context.admissible_actions), "act :")

    def choice_messages(self, context: Context, candidates: Sequence[str]) -> list[Message]:
        admissible = self.shown_actions(context.admissible_actions, candidates)
        can = [_can(admissible)] if self.admissible_in_choice else []
        return _user(*self._context(context), *can, f"pick : {' | '.join(candidates)}")

    def reflection_messages(self, context: Context, expert: Turn, alternatives: Sequence[Turn]) -> list[Message]:
        """The tried actions, then the state again and the usual question.

        The thought before the answer is the reflection, if the answer is the expert's action.
        """
        tried = [f"do : {turn.action}\nsee : {turn.observation}" for turn in (*alternatives, expert)]
        again = (f"see : {context.observation}", *self._can(context.admissible_actions), "act :")
        return _user(*self._context(context), *tried, *again)

    def rationale(self, action: str, instead_of: str) -> str:
        """The action itself: thoughts of small models are subgoals, and that of a last step is its action."""
        return action

    def followup(self, observation: str, admissible_actions: Sequence[str]) -> str:
        return "\n".join([f"see : {observation}", *self._can(admissible_actions), "act :"])

    def _context(self, context: Context) -> list[str]:
        lines = [f"goal : {context.goal}"]
        for turn in self.shown_history(context):
            lines += [f"see : {turn.observation}"] if self.observations_in_history else []
            lines.append(f"do : {turn.action}")
        return [*lines, f"see : {context.observation}"]

    def _can(self, actions: Sequence[str]) -> list[str]:
        return [_can(self.shown_actions(actions))] if self.admissible_in_action else []


def _can(actions: Sequence[str]) -> str:
    return f"can : {' | '.join(actions)}"


def _user(*lines: str) -> list[Message]:
    return [{"role": "user", "content": "\n".join(lines)}]
