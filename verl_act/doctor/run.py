"""Run the checks one after the other; none of them changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from verl_act.doctor.check_result import Fault, Finding, NotThere, State
from verl_act.doctor.data import alfworld_data, scienceworld_engine, webshop_catalogue
from verl_act.doctor.engine import engine_start
from verl_act.doctor.installed import model_libraries, requirements, tested_versions
from verl_act.doctor.registered import hydra_groups, in_driver, in_ray_workers, platform
from verl_act.errors import ActError

Check = tuple[str, Callable[[], str]]

# The driver's registration comes before whatever else imports verl: it must see what verl does by itself.
CHECKS: tuple[Check, ...] = (
    ("requirements", requirements),
    ("tested versions", tested_versions),
    ("model libraries", model_libraries),
    ("registered in the driver", in_driver),
    ("platform", platform),
    ("configuration groups", hydra_groups),
    ("ALFWorld data", alfworld_data),
    ("ScienceWorld", scienceworld_engine),
    ("WebShop", webshop_catalogue),
)
ENGINE_CHECKS: tuple[Check, ...] = (
    ("registered in Ray workers", in_ray_workers),
    ("vLLM engine", engine_start),
)
"""Those that start engines, which takes about a minute."""


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """What each check finds, as it is found."""
    for name, check in checks:
        yield _finding(name, check)


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, State.OK, check())
    except NotThere as error:
        return Finding(name, State.ABSENT, error.detail, error.remedy)
    except Fault as error:
        return Finding(name, State.WRONG, error.detail, error.remedy)
    except ActError as error:
        detail, _, remedy = str(error).partition(". ")
        return Finding(name, State.WRONG, detail, remedy)
    # A broken installation fails in any way there is, and to say so is what the command is for.
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
        return Finding(name, State.WRONG, detail, "Install the pinned versions: see the README's set-up.")
