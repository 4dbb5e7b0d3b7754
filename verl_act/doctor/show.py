"""Prints the doctor's report on stdout, as text or JSON; the engines' own output goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import TextIO

from verl_act.doctor.checks import CHECKS, ENGINE_CHECKS, CheckResult, CheckState, environment_checks, examine


def doctor(*, as_json: bool = False, engine: bool = True) -> int:
    """Run the checks and print their results. Returns the exit status: 1 if something is wrong, else 0."""
    results = []
    with _stdout_apart() as report:
        environments = examine(environment_checks(), CheckState.WARN)
        for result in chain(examine(CHECKS), environments, examine(ENGINE_CHECKS if engine else ())):
            results.append(result)
            if not as_json:
                print(_line(result), file=report, flush=True)
        if as_json:
            print(json.dumps([asdict(result) for result in results], indent=2), file=report, flush=True)
    return int(any(result.state is CheckState.WRONG for result in results))


def _line(result: CheckResult) -> str:
    remedy = f"\n       {result.remedy}" if result.remedy else ""
    return f"{result.state:<6} {result.name}: {result.detail}{remedy}"


@contextmanager
def _stdout_apart() -> Iterator[TextIO]:
    """Yield the real stdout, and redirect file descriptor 1, which engines and subprocesses print to, to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(stdout), "w") as report:
            yield report
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
