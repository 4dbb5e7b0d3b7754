"""The templates `cot` and `plain`.

Both are one user message: some chat templates refuse a system message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_act.prompts.template import Message, Template
from verl_act.schema import Context

_ROLE = "You are acting in an environment that you see and change only through text."


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate(Template):
    """For instruction-tuned models. `cot` asks for reasoning inside `<think>` before the answer, as the paper does
    (arXiv 2603.08706, section 3); `plain` asks for the answer alone."""

    reasoning: bool = True
    """Ask for `<think>…</think>` before the answer; `plain` never does."""
    admissible_in_action: bool = True
    """List the admissible actions where an action is asked for."""
    admissible_in_choice: bool = True
    """List them where a choice is asked for."""
    instructions: str = ""
    """Text before the task for what a list cannot say, such as how to word actions when no list is shown."""
    choose_by_number: bool = False
    """Ask for a candidate's number instead of its text, which suits long candidates."""

    def action_messages(self, context: Context) -> list[Message]:
        return _user(self._context(context), *self._action_request(context.admissible_actions))

    def choice_messages(self, context: Context, candidates: Sequence[str]) -> list[Message]:
        admissible = self._list(context.admissible_actions, candidates) if self.admissible_in_choice else ""
        proposed = "\n".join(f"Action {label}: {candidate}" for label, candidate in enumerate(candidates, 1))
        question = (
            f"These {len(candidates)} actions are proposed for the next step:\n{proposed}\n\n"
            f"{self._reasoning('Compare what each would achieve and which brings you closer to completing the task')}"
            f"give the {'better' if len(candidates) == 2 else 'best'} action, "
            f"{'by its number alone' if self.choose_by_number else 'copied word for word without its label'}, "
            "inside one <action> </action>."
        )
        return _user(self._context(context), admissible, question)

    def choice_answer(self, candidates: Sequence[str], index: int) -> str:
        return str(index + 1) if self.choose_by_number else candidates[index]

    def followup(self, observation: str, admissible_actions: Sequence[str]) -> str:
        return _paragraphs(f"Observation: {observation}", *self._action_request(admissible_actions))

    def rationale(self, action: str, instead_of: str) -> str | None:
        if not self.reasoning:
            return None
        return (
            f'The task says what is needed next. "{instead_of}" would not bring me closer to it: it only costs a step. '
            f'"{action}" does what is needed now and makes the rest of the task possible. '
            f'So the better action is "{action}".'
        )

    def reply_opening(self, thought: str) -> str:
        return f"<think>\n{thought}\n</think>\n\n"

    def _context(self, context: Context) -> str:
        turns = self.shown_history(context)
        hidden = len(context.history) - len(turns)
        lines = [f"({hidden} earlier steps are not shown.)"] if hidden else []
        lines += [f"Observation: {turn.observation}\nAction: {turn.action}" for turn in turns]
        history = "\n".join(["What happened so far:", *lines]) if lines else ""
        goal, now = f"Your task: {context.goal}", f"Current observation: {context.observation}"
        return _paragraphs(_ROLE, self.instructions, goal, history, now)

    def _action_request(self, actions: Sequence[str]) -> tuple[str, str]:
        """The list of admissible actions, and the request for one of them."""
        listed = self._list(actions) if self.admissible_in_action else ""
        wording = "copied word for word" if self.max_listed is None else "listed or worded like the listed ones"
        answer = f"exactly one of the admissible actions, {wording}," if listed else "exactly one action"
        reasoning = self._reasoning("Reason step by step about what to do next")
        return listed, f"{reasoning}give {answer} inside one <action> </action>."

    def _list(self, actions: Sequence[str], candidates: Sequence[str] = ()) -> str:
        """The list with its heading; empty if the environment gives no list."""
        if not actions:
            return ""
        listed = self.shown_actions(actions, candidates)
        share = "" if len(listed) == len(actions) else f" ({len(listed)} of {len(actions)})"
        return "\n".join([f"Admissible actions{share}:", *(f"- {action}" for action in listed)])

    def _reasoning(self, what: str) -> str:
        return f"{what}, inside <think> </think>. Then " if self.reasoning else "Without any reasoning, "


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _user(*texts: str) -> list[Message]:
    return [{"role": "user", "content": _paragraphs(*texts)}]
