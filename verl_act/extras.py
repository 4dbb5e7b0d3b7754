"""Which packages are installed; those that only an extra brings, such as `pip install 'verl-act[report]'`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from verl_act.errors import NotInstalledError


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around imports of what extra `name` brings: raises `NotInstalledError` if a package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"The package {error.name!r} is not installed.", f"Install it: pip install 'verl-act[{name}]'"
        ) from error
