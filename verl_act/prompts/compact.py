"""The template `compact`.

Action and choice prompts render the context in the same way and expect the same kind of reply, `<action>text of the
action</action>`, so that judging transfers to acting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from verl_act.prompts.template import Message, Template
from verl_act.schema import Context, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactTemplate(Template):
    """For models so small that every prompt token counts: few fixed words and no instructions, since the model learns
    the format in its warm-up. Each option can leave out a part of the context.

    A small model learns to act from the list of admissible actions, and judges far better with it. Environments with
    hundreds of actions, or whose observations name them all, do without.
    """

    reflections_conclude: ClassVar[bool] = True
    admissible_in_action: bool = True
    """List the admissible actions where an action is asked for."""
    admissible_in_choice: bool = True
    """List them where a choice is asked for."""
    observations_in_history: bool = True
    """Show the observations of earlier turns, not only their actions."""

    def action_messages(self, context: Context) -> list[Message]:
        can = self._can(self.admissible_in_action, context.admissible_actions)
        return _user(*self._context(context), *can, "act :")

    def choice_messages(self, context: Context, candidates: Sequence[str]) -> list[Message]:
        can = self._can(self.admissible_in_choice, context.admissible_actions, candidates)
        return _user(*self._context(context), *can, f"pick : {' | '.join(candidates)}")

    def reflection_messages(self, context: Context, expert: Turn, alternatives: Sequence[Turn]) -> list[Message]:
        """The tried actions, then the state again and the usual question.

        The thought before the answer is the reflection, if the answer is the expert's action.
        """
        tried = [f"do : {turn.action}\nsee : {turn.observation}" for turn in (*alternatives, expert)]
        again = self.followup(context.observation, context.admissible_actions)
        return _user(*self._context(context), *tried, again)

    def rationale(self, action: str, instead_of: str) -> str:
        """The action itself: thoughts of small models are subgoals, and that of a last step is its action."""
        return action

    def followup(self, observation: str, admissible_actions: Sequence[str]) -> str:
        return "\n".join([f"see : {observation}", *self._can(self.admissible_in_action, admissible_actions), "act :"])

    def _context(self, context: Context) -> list[str]:
        lines = [f"goal : {context.goal}"]
        for turn in self.shown_history(context):
            lines += [f"see : {turn.observation}"] if self.observations_in_history else []
            lines.append(f"do : {turn.action}")
        return [*lines, f"see : {context.observation}"]

    def _can(self, listed: bool, actions: Sequence[str], candidates: Sequence[str] = ()) -> list[str]:
        return [f"can : {' | '.join(self.shown_actions(actions, candidates))}"] if listed else []


def _user(*lines: str) -> list[Message]:
    return [{"role": "user", "content": "\n".join(lines)}]
