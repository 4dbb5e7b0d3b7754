"""What a check finds. A check returns one line on what is there, or raises one of these two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from verl_act.errors import ConfigError


class State(StrEnum):
    OK = "ok"
    ABSENT = "absent"
    """Not there, and nothing asked for it."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; `remedy` is empty where there is nothing to mend."""

    name: str
    state: State
    detail: str
    remedy: str = ""


class Fault(ConfigError):
    """Something is wrong; `remedy` says in one sentence how to mend it."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail} {remedy}")
        self.detail = detail
        self.remedy = remedy


class NotThere(Fault):
    """Something that only some users need is not there; `remedy` says how to get it."""
