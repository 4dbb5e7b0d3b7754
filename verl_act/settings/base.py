"""The base of all settings: validated when created, and described once for recipes, manifests and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PlainValidator, ValidationError, model_validator

from verl_act.errors import OptionError
from verl_act.options import key_path, problem

Role = Literal["input", "argument", "runtime"]
INPUT: Role = "input"
"""Files that a stage reads: recorded by their content."""
ARGUMENT: Role = "argument"
"""An argument of the command line instead of an option."""
RUNTIME: Role = "runtime"
"""A setting that does not change the result, such as the number of processes: not recorded."""


def _text(value: object) -> str:
    # Not pydantic's string, which refuses what Python makes of a file name that the locale cannot decode.
    if not isinstance(value, str) or not value:
        raise ValueError("it should be a string that is not empty")
    return value


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("it should be the name of a file or folder")
    return Path(value)


Text = Annotated[str, PlainValidator(_text)]
File = Annotated[Path, PlainValidator(_path)]


class Settings(BaseModel):
    """Settings of one stage, or a block of a recipe. Raises `OptionError` naming the key that is invalid.

    A field's docstring is the help text of its option; `Annotated[type, INPUT]` and so on give it a `Role`.
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(key_path(values, first["loc"])) or ".".join(map(str, first["loc"]))
            if isinstance(inner := first.get("ctx", {}).get("error"), OptionError):  # of a block
                raise OptionError(f"{key}.{inner.option}".rstrip("."), inner.problem) from error
            if first["type"] == "extra_forbidden":
                raise OptionError(
                    "", f"has no key {key!r}; its keys are {', '.join(type(self).model_fields)}."
                ) from error
            raise OptionError(key, problem(first)) from error
        self.check()

    @model_validator(mode="wrap")
    @classmethod
    def _with_text_keys(cls, values: Any, create: ModelWrapValidatorHandler[Self]) -> Self:
        """YAML has other keys too, which no block knows."""
        return create({str(key): value for key, value in values.items()} if isinstance(values, Mapping) else values)

    def check(self) -> None:
        """Raise `OptionError` where values that are valid by themselves do not fit together."""

    def values(self, *roles: Role) -> dict[str, Any]:
        """Name -> value of the fields that have one of `roles`, in order."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if any(role in field.metadata for role in roles)
        }

    def inputs(self) -> list[Path]:
        """All files that the stage reads."""
        fields = self.values(INPUT).values()
        return [path for value in fields for path in (value if isinstance(value, list) else [value]) if path]

    def recorded(self) -> dict[str, Any]:
        """The settings that determine the result, besides the input files, for a manifest."""
        return self.model_dump(exclude={*self.values(INPUT), *self.values(RUNTIME)})
