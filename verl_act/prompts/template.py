"""The base class of templates, which turn a `Context` into chat messages.

Templates are pure: the same arguments give the same text. A prompt never reveals which candidate is the expert's, and
never contains more about the state than its `Context`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from verl_act.options import Count, Positive, check_options
from verl_act.prompts.shortened import shortened
from verl_act.schema import Context, Turn

Message = dict[str, str]
"""`{"role": ..., "content": ...}`, as chat templates take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template(ABC):
    """Base of all templates; a template's options are its fields, with a docstring each."""

    reflections_conclude: ClassVar[bool] = False
    """Whether a reply to `reflection_messages` only counts if it ends with the expert's action."""
    history_length: Count | None = None
    """Most turns of the history in a prompt, the last ones. Default: all."""
    max_listed: Positive | None = None
    """Most admissible actions in a list. Default: all."""

    def __post_init__(self) -> None:
        options = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        check_options(type(self), options, "template_options")

    @abstractmethod
    def action_messages(self, context: Context) -> list[Message]:
        """The prompt that asks for the next action."""

    @abstractmethod
    def choice_messages(self, context: Context, candidates: Sequence[str]) -> list[Message]:
        """The prompt that asks which of `candidates`, shown in this order, is the better next action."""

    def choice_answer(self, candidates: Sequence[str], index: int) -> str:
        """How a reply to `choice_messages` gives the candidate at `index`, inside its action tag."""
        return candidates[index]

    @abstractmethod
    def followup(self, observation: str, admissible_actions: Sequence[str]) -> str:
        """The user turn that answers an action in a conversation begun with `action_messages`."""

    def reflection_messages(self, context: Context, expert: Turn, alternatives: Sequence[Turn]) -> list[Message]:
        """The prompt that asks why the expert's action is better, after all were tried (arXiv 2510.08558).

        `expert` and `alternatives` are the actions with the observations that followed them from this state.
        """
        *earlier, question = self.action_messages(context)
        tried = "\n".join(f"- {turn.action}\n  leads to: {turn.observation}" for turn in (*alternatives, expert))
        text = (
            f"{question['content']}\n\nEach of these actions was tried from this very state:\n{tried}\n\n"
            "Do not answer the question above. Instead write, in a few sentences and in the first person, the thoughts "
            f"that lead to {expert.action!r} rather than to the other actions, judging by the task and by what each "
            "of them leads to. Write as if you had not tried any of them yet."
        )
        return [*earlier, {"role": "user", "content": text}]

    def rationale(self, action: str, instead_of: str) -> str | None:
        """A thought, without its tags, that argues for `action` rather than `instead_of`; None if replies to this
        template's prompts have no thoughts."""
        return None

    def reply_opening(self, thought: str) -> str:
        """The beginning of a reply up to the end of its `thought`, which may be empty."""
        return f"<think>{thought}</think>"

    def shown_actions(self, actions: Sequence[str], candidates: Sequence[str] = ()) -> tuple[str, ...]:
        """The admissible actions that a prompt lists: if shortened, all `candidates` or none (see `shortened`)."""
        return tuple(actions) if self.max_listed is None else shortened(actions, self.max_listed, candidates)

    def shown_history(self, context: Context) -> tuple[Turn, ...]:
        """The turns that a prompt shows, oldest first."""
        if self.history_length is None:
            return context.history
        return context.history[max(0, len(context.history) - self.history_length) :]
