"""Compares the installed packages with this package's requirements, its tested versions and the device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from verl_act.errors import InstallationError, NotInstalledError, first_line
from verl_act.extras import installed_version
from verl_act.preflight.problem import local_devices
from verl_act.preflight.software import attention_packages, device_problems, missing_attention, vllm_is_cpu_build

VERSIONS = {
    "torch": {"==2.13.*": "tested", "==2.11.*": "trained"},
    "vllm": {"==0.28.*": "tested", "==0.24.*": "trained", "==0.31.*": "trained"},
    "ray": {"==2.60.*": "tested"},
    "transformers": {"==5.10.*": "tested", "==5.9.*": "trained"},
    "tensordict": {"==0.10.*": "tested"},
}
"""Package -> versions -> what was done with them, on a CPU. `tested`: all tests pass. `trained`: the quickstart's
critic stage took two steps. Others may work: the check reports them without failing."""

_DISTRIBUTION = "verl-act"


def requirements() -> str:
    """Check the requirements of `pip install verl-act`."""
    try:
        declared = [Requirement(text) for text in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError as error:
        raise InstallationError(
            f"{_DISTRIBUTION} itself is not installed, only its folder is on the path.",
            "Install it, so that verl, vLLM and Hydra find it: pip install .",
        ) from error
    plain = [requirement for requirement in declared if not requirement.marker or requirement.marker.evaluate()]
    wrong = {
        requirement: f"{requirement.name} {installed or 'is missing'} (needed: {requirement.specifier})"
        for requirement in plain
        if (installed := _installed(requirement.name)) is None or installed not in requirement.specifier
    }
    if wrong:
        packages = " ".join(f"'{requirement}'" for requirement in wrong)
        raise InstallationError(", ".join(wrong.values()), f"Install what is needed: pip install {packages}")
    return f"verl {version('verl')} and {len(plain) - 1} others, all within their ranges"


def tested_versions() -> str:
    """Report the versions of the engines: verl's own requirements allow untested combinations."""
    return ", ".join(_described(name, versions) for name, versions in VERSIONS.items())


def model_libraries() -> str:
    """Check that transformers imports: it fails if torchvision is installed but built for another torch."""
    import torch

    try:
        from transformers import PreTrainedModel  # noqa: F401
    except Exception as error:
        raise InstallationError(
            f"transformers cannot be imported with torch {torch.__version__} ({_root(error)}).",
            "Where torchvision, torchaudio or torchcodec were built for another torch, remove them: "
            "pip uninstall torchvision torchaudio torchcodec",
        ) from error
    return f"transformers {version('transformers')} imports with torch {torch.__version__}"


def engine_build() -> str:
    """Check that vLLM is built for the device that verl trains on."""
    devices, cpu_build = local_devices(), vllm_is_cpu_build()
    for problem in device_problems(devices, cpu_build):
        raise InstallationError(problem.message, problem.fix())
    return "no vLLM" if cpu_build is None else f"for {'CPUs' if cpu_build else 'accelerators'}, as {devices.kind} needs"


def attention() -> str:
    """Check the packages of FlashAttention, which verl asks for by default on a GPU."""
    if local_devices().kind != "cuda":
        return "FlashAttention is for NVIDIA GPUs; +act/device=cpu asks for torch's own (sdpa)"
    packages = attention_packages()
    for problem in missing_attention(packages):
        error = InstallationError if packages else NotInstalledError
        raise error(f"verl asks for flash_attention_2 by default, and {problem.message}", problem.fix())
    return ", ".join(sorted(packages))


def _described(name: str, versions: Mapping[str, str]) -> str:
    installed = _installed(name)
    tested = next(specifier for specifier, level in versions.items() if level == "tested")
    if installed is None:
        raise InstallationError(f"{name} is not installed.", f"Install it: pip install '{name}{tested}'")
    level = next((level for specifier, level in versions.items() if installed in SpecifierSet(specifier)), None)
    if level == "tested":
        return f"{name} {installed}"
    known = f"{level} only; " if level else ""
    return f"{name} {installed} ({known}tested: {tested})"


def _installed(name: str) -> str | None:
    """The installed version, or None. vLLM's CPU build is a package of another name."""
    installed = installed_version(name) or installed_version(f"{name}-cpu")
    return installed and installed.partition("+")[0]


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
