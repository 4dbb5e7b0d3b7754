"""Types with ranges for options (`Positive`, `Share` and so on), and validation of values against them.

Settings classes use them for their fields, annotations of others (an environment's `make`, `EngineOptions`) for the
keys of a mapping. Values are validated before any work, by a command and by `verl-act run --check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from reprlib import repr as brief
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from verl_act.errors import OptionError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LARGEST = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""The range of torch's seeds."""
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
"""A finite number above 0, such as seconds or megabytes."""

# Strict: "3", true and 3.0 are not accepted as the whole number 3.
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_options(owner: Callable[..., Any], values: Mapping[str, Any], inside: str = "") -> None:
    """Raise `OptionError` for the first of `values` that does not match its annotation in `owner`, a function or class.

    `inside` is the JSON option that has `values` as keys, if any. A name without an annotation accepts any value.
    """
    for name, value in values.items():
        if name not in _hints(owner):
            continue
        try:
            _adapter(owner, name).validate_python(_valid_unicode(value))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            keys = [segment for segment in (inside, name, *key_path(value, first["loc"])) if segment]
            raise OptionError(".".join(keys), problem(first)) from error


def _valid_unicode(value: Any) -> Any:
    """Replace lone surrogates, which pydantic refuses: Python decodes other bytes so under an ASCII locale."""
    return value.encode("utf-8", "replace").decode() if type(value) is str else value  # not of an enumeration


@cache
def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    """Name -> annotation; empty if a user's class has annotations that only a type checker can resolve."""
    with suppress(NameError):
        return {name: hint for name, hint in get_type_hints(owner, include_extras=True).items() if name != "return"}
    return {}


@cache
def _adapter(owner: Callable[..., Any], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_hints(owner)[name], config=_STRICT)


def problem(error: ErrorDetails) -> str:
    """An error of pydantic as the rest of a sentence that begins with the option."""
    if error["type"] == "missing":
        return "is missing."
    message = error["msg"].removeprefix("Value error, ").replace("Input", "it", 1)
    return f"is {brief(error['input'])}: {message}."


def key_path(value: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the value in an error's location, whose other entries name branches of a union."""
    keys = []
    for segment in location:
        if isinstance(value, Mapping) and segment in value:
            keys.append(str(segment))
            value = value[segment]
    return keys
