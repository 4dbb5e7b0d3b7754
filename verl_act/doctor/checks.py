"""Runs the checks one after another, none of which changes anything, and prints their results on stdout, as text or
JSON; the engines' own output goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import TextIO

from verl_act.doctor.engine_start import engine_start
from verl_act.doctor.installed import attention, engine_build, model_libraries, requirements, tested_versions
from verl_act.doctor.registered import hydra_groups, in_driver, in_ray_workers, platform
from verl_act.envs.registry import get_env, known_envs
from verl_act.errors import ActError, InstallationError, NotInstalledError

Check = tuple[str, Callable[[], str]]
"""Its name, and the function that returns one line of detail or raises `InstallationError`."""


class CheckState(StrEnum):
    OK = "ok"
    ABSENT = "absent"
    """Not installed, and not required."""
    WARN = "warn"
    """Out of order, and needed by some runs alone, as an environment is."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the doctor's report; `remedy` is empty where there is nothing to fix."""

    name: str
    state: CheckState
    detail: str
    remedy: str = ""


# The driver's registration runs before anything else imports verl, to see what verl loads without help.
CHECKS: tuple[Check, ...] = (
    ("requirements", requirements),
    ("tested versions", tested_versions),
    ("model libraries", model_libraries),
    ("registered in the driver", in_driver),
    ("platform", platform),
    ("vLLM build", engine_build),
    ("attention", attention),
    ("configuration groups", hydra_groups),
)
ENGINE_CHECKS: tuple[Check, ...] = (
    ("registered in Ray workers", in_ray_workers),
    ("vLLM engine", engine_start),
)
"""Checks that start engines; they take about a minute."""


def doctor(*, as_json: bool = False, engine: bool = True) -> int:
    """Run the checks and print their results. Returns the exit status: 1 if something is wrong, else 0."""
    results = []
    with _stdout_apart() as report:
        environments = examine(environment_checks(), CheckState.WARN)
        for result in chain(examine(CHECKS), environments, examine(ENGINE_CHECKS if engine else ())):
            results.append(result)
            if not as_json:
                remedy = f"\n       {result.remedy}" if result.remedy else ""
                print(f"{result.state:<6} {result.name}: {result.detail}{remedy}", file=report, flush=True)
        if as_json:
            print(json.dumps([asdict(result) for result in results], indent=2), file=report, flush=True)
    return int(any(result.state is CheckState.WRONG for result in results))


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


def environment_checks() -> tuple[Check, ...]:
    """A check of every known environment: what its `EnvSpec.doctor` says, or else that it loads."""
    return tuple((f"environment {name}", partial(_examine_environment, name)) for name in known_envs())


def _examine_environment(name: str) -> str:
    spec = get_env(name)
    return spec.doctor() if spec.doctor else f"loads; its splits are {', '.join(spec.splits)}"


def examine(checks: Sequence[Check], fault: CheckState = CheckState.WRONG) -> Iterator[CheckResult]:
    """Yield the result of each check as soon as it is known; `fault` is the state of one that fails."""
    for name, check in checks:
        yield _run_check(name, check, fault)


def _run_check(name: str, check: Callable[[], str], fault: CheckState) -> CheckResult:
    try:
        return CheckResult(name, CheckState.OK, check())
    except NotInstalledError as error:
        return CheckResult(name, CheckState.ABSENT, error.detail, error.remedy)
    except InstallationError as error:
        return CheckResult(name, fault, error.detail, error.remedy)
    except ActError as error:
        detail, _, remedy = str(error).partition(". ")
        return CheckResult(name, fault, detail, remedy)
    # A broken installation can fail in any way; reporting that is the purpose of this command.
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
        return CheckResult(name, fault, detail, "Install the pinned versions: see docs/install.md.")
