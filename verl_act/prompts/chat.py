"""The templates `cot` and `plain`, for instruction-tuned language models.

`cot` asks for reasoning inside `<think>` before the answer, as the paper does (arXiv 2603.08706, section 3); `plain`
asks for the answer alone. Both are one user message: some chat templates refuse a system message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_act.prompts.template import Message, Template
from verl_act.schema import Context

_ROLE = "You are acting in an environment that you see and change only through text."


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate(Template):
    """`reasoning` asks for `<think>…</think>` first; `admissible_in_action` and `admissible_in_choice` list the
    admissible actions.

    `instructions` stand before the task: what a list cannot say, such as how actions are worded where none is shown.
    `choose_by_number` asks for the number of a candidate instead of its text: for candidates of many words.
    """

    reasoning: bool = True
    admissible_in_action: bool = True
    admissible_in_choice: bool = True
    instructions: str = ""
    choose_by_number: bool = False

    def action_messages(self, context: Context) -> list[Message]:
        return _user(self._context(context), *self._asked_action(context.admissible_actions))

    def choice_messages(self, context: Context, candidates: Sequence[str]) -> list[Message]:
        admissible = self._list(context.admissible_actions, candidates) if self.admissible_in_choice else ""
        proposed = "\n".join(f"Action {number}: {candidate}" for number, candidate in enumerate(candidates, 1))
        question = (
            f"These {len(candidates)} actions are proposed for the next step:\n{proposed}\n\n"
            f"{self._reasoning('Compare what each would achieve and which brings you closer to completing the task')}"
            f"give the {'better' if len(candidates) == 2 else 'best'} action, "
            f"{'by its number alone' if self.choose_by_number else 'copied word for word without its label'}, "
            "inside one <action> </action>."
        )
        return _user(self._context(context), admissible, question)

    def followup(self, observation: str, admissible_actions: Sequence[str]) -> str:
        return _paragraphs(f"Observation: {observation}", *self._asked_action(admissible_actions))

    def _context(self, context: Context) -> str:
        turns = self.shown_history(context)
        hidden = len(context.history) - len(turns)
        lines = [f"({hidden} earlier steps are not shown.)"] if hidden else []
        lines += [f"Observation: {turn.observation}\nAction: {turn.action}" for turn in turns]
        history = "\n".join(["What happened so far:", *lines]) if lines else ""
        goal, now = f"Your task: {context.goal}", f"Current observation: {context.observation}"
        return _paragraphs(_ROLE, self.instructions, goal, history, now)

    def _asked_action(self, actions: Sequence[str]) -> tuple[str, str]:
        """The admissible actions, and what is asked about them."""
        listed = self._list(actions) if self.admissible_in_action else ""
        wording = "copied word for word" if self.max_listed is None else "listed or worded like the listed ones"
        wanted = f"exactly one of the admissible actions, {wording}," if listed else "exactly one action"
        reasoning = self._reasoning("Reason step by step about what to do next")
        return listed, f"{reasoning}give {wanted} inside one <action> </action>."

    def _list(self, actions: Sequence[str], candidates: Sequence[str] = ()) -> str:
        """The list with its heading; nothing where the environment gives none."""
        if not actions:
            return ""
        shown = self.shown_actions(actions, candidates)
        share = "" if len(shown) == len(actions) else f" ({len(shown)} of {len(actions)})"
        return "\n".join([f"Admissible actions{share}:", *(f"- {action}" for action in shown)])

    def _reasoning(self, what: str) -> str:
        return f"{what}, inside <think> </think>. Then " if self.reasoning else "Without any reasoning, "


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _user(*texts: str) -> list[Message]:
    return [{"role": "user", "content": _paragraphs(*texts)}]
