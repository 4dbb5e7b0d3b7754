"""Runs the checks one after another. No check changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from verl_act.doctor.devices import attention, engine_build
from verl_act.doctor.engine_start import engine_start
from verl_act.doctor.installed import model_libraries, requirements, tested_versions
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
