"""The result of a check. A check returns one line of detail, or raises `InstallationError`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
