"""The result of a check. A check returns one line of detail, or raises `Fault` or `NotThere`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from verl_act.errors import ConfigError


class CheckState(StrEnum):
    OK = "ok"
    ABSENT = "absent"
    """Not installed, and not required."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the doctor's report; `remedy` is empty where there is nothing to fix."""

    name: str
    state: CheckState
    detail: str
    remedy: str = ""


class Fault(ConfigError):
    """Something is wrong; `remedy` is one sentence on how to fix it."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail} {remedy}")
        self.detail = detail
        self.remedy = remedy


class NotThere(Fault):
    """Something optional is missing; `remedy` says how to get it."""
