"""The doctor's report: lines for people or JSON on stdout, whatever the engines print on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TextIO

from verl_act.doctor.check_result import Finding, State
from verl_act.doctor.run import CHECKS, ENGINE_CHECKS, examine


def doctor(*, as_json: bool = False, engine: bool = True) -> int:
    """Run the checks and print what they find. The exit status: 1 where something is wrong, else 0."""
    findings = []
    with _stdout_apart() as report:
        for finding in examine(CHECKS + (ENGINE_CHECKS if engine else ())):
            findings.append(finding)
            if not as_json:
                print(_line(finding), file=report, flush=True)
        if as_json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2), file=report, flush=True)
    return int(any(finding.state is State.WRONG for finding in findings))


def _line(finding: Finding) -> str:
    remedy = f"\n       {finding.remedy}" if finding.remedy else ""
    return f"{finding.state:<6} {finding.name}: {finding.detail}{remedy}"


@contextmanager
def _stdout_apart() -> Iterator[TextIO]:
    """The real stdout; meanwhile file descriptor 1, which engines and their processes print to, is stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(own), "w") as report:
            yield report
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)
