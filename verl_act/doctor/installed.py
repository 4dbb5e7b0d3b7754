"""What is installed, against what this package asks for and what it was tested with."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from verl_act.doctor.check_result import Fault

TESTED = (
    "torch>=2.13,<2.14",
    "vllm>=0.28,<0.29",
    "ray>=2.60,<2.61",
    "transformers>=5.10,<5.11",
    "tensordict>=0.10,<0.11",
)
"""Where every test of this package passes. Others may work: the check names them and finds no fault."""

_DISTRIBUTION = "verl-act"


def requirements() -> str:
    """What `pip install verl-act` asks for."""
    try:
        asked = [Requirement(text) for text in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError as error:
        raise Fault(
            f"{_DISTRIBUTION} itself is not installed, only its folder is on the path.",
            "Install it, so that verl, vLLM and Hydra find it: pip install .",
        ) from error
    plain = [requirement for requirement in asked if not requirement.marker or requirement.marker.evaluate()]
    wrong = []
    for requirement in plain:
        found = _installed(requirement.name)
        if found is None or found not in requirement.specifier:
            wrong.append(f"{requirement.name} {found or 'is missing'} (needed: {requirement.specifier})")
    if wrong:
        asked_for = " ".join(f"'{requirement}'" for requirement in plain if _is_in(requirement, wrong))
        raise Fault(", ".join(wrong), f"Install what is needed: pip install {asked_for}")
    return f"verl {version('verl')} and {len(plain) - 1} others, all within their ranges"


def tested_versions() -> str:
    """The engines: verl's own requirements allow more versions than anybody has tried together."""
    return ", ".join(_described(Requirement(text)) for text in TESTED)


def model_libraries() -> str:
    """transformers imports torchvision where there is one, and fails with one that was built for another torch."""
    import torch

    try:
        from transformers import PreTrainedModel  # noqa: F401
    except Exception as error:
        raise Fault(
            f"transformers cannot be imported beside torch {torch.__version__} ({_root(error)}).",
            "Where torchvision, torchaudio or torchcodec were built for another torch, remove them: "
            "pip uninstall torchvision torchaudio torchcodec",
        ) from error
    return f"transformers {version('transformers')} imports beside torch {torch.__version__}"


def _described(requirement: Requirement) -> str:
    found = _installed(requirement.name)
    if found is None:
        raise Fault(
            f"{requirement.name} is not installed.",
            f"Install it: pip install '{requirement.name}{requirement.specifier}'",
        )
    untested = "" if found in requirement.specifier else f" (tested: {requirement.specifier})"
    return f"{requirement.name} {found}{untested}"


def _installed(name: str) -> str | None:
    """The installed version; vLLM's CPU build goes by another name."""
    for candidate in (name, f"{name}-cpu"):
        try:
            return version(candidate).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def _is_in(requirement: Requirement, wrong: Iterable[str]) -> bool:
    return any(line.startswith(f"{requirement.name} ") for line in wrong)


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0]
