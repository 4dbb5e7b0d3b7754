"""Settings as options of the command line, in both directions: Typer commands from settings classes, and words from
settings.

Text, numbers and files are one word each, a list repeats its option, and a mapping is given as `KEY=VALUE`, where the
value is YAML, as in a recipe (`--env-settings data=games`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from reprlib import repr as brief
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from verl_act.commands import Command
from verl_act.errors import ConfigError, OptionError
from verl_act.settings.base import ARGUMENT, Settings
from verl_act.yaml_text import parse_value


def parse_folder(text: str) -> Path:
    """Parse a folder name; an empty one would be the working folder."""
    if not text.strip() or "\0" in text:
        raise typer.BadParameter("name a folder")
    return Path(text).resolve()


def _option(kind: Any, text: str) -> Any:
    return Annotated[kind, typer.Option(help=text)]


_OUT_HELP = "Output folder; replaced as a whole when the command is done."
Out = Annotated[Path, typer.Option(help=_OUT_HELP, parser=parse_folder, metavar="PATH")]
_OUT = {
    "folder": Out,
    "optional": _option(Path | None, "Folder to write the result to as well."),
    "page": _option(Path, "The page, .html; .md and .json are written next to it."),
}


def typer_command(command: Command, show: Callable[[Any], None]) -> Callable[..., None]:
    """A function with the options of `command`, for Typer. It calls `show` with the command's result."""

    def run(**values: Any) -> None:
        out = values.pop("out", None)
        show(command.run(settings_from(command.settings, values), out))

    parameters = [_parameter(name, field) for name, field in command.settings.model_fields.items()]
    # Required options come first in the help.
    parameters.sort(key=lambda parameter: parameter.default is not Parameter.empty)
    if command.writes != "nothing":
        default = None if command.writes == "optional" else Parameter.empty
        out = Parameter("out", Parameter.KEYWORD_ONLY, default=default, annotation=_OUT[command.writes])
        parameters.insert(0, out)
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.help
    return run


def _parameter(name: str, field: FieldInfo) -> Parameter:
    text = cleandoc(field.description or "")
    kind = _plain_type(field.annotation)
    default = Parameter.empty if field.is_required() else field.default
    annotation: Any = Annotated[kind, (typer.Argument if ARGUMENT in field.metadata else typer.Option)(help=text)]
    if get_origin(kind) is dict:
        annotation = Annotated[list[str], typer.Option(help=text, metavar="KEY=VALUE")]
        if not field.is_required():
            default = [f"{key}={_word(value)}" for key, value in field.default.items()]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _plain_type(annotation: Any) -> Any:
    """The type without the ranges of `verl_act.options`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin in (UnionType, Union):
        (kind,) = (_plain_type(kind) for kind in get_args(annotation) if kind is not NoneType)
        return kind | None
    if origin in (list, dict):
        kinds = [_plain_type(kind) for kind in get_args(annotation)]
        # Typer has no lists of choices: the settings refuse others.
        return origin[tuple(str if get_origin(kind) is Literal else kind for kind in kinds)]
    return annotation


def settings_from(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The settings with the values of parsed options. Raises `OptionError`."""
    fields = settings.model_fields
    return settings(
        **{
            name: _mapping(name, value) if get_origin(_plain_type(fields[name].annotation)) is dict else value
            for name, value in values.items()
        }
    )


def _mapping(name: str, entries: Sequence[str]) -> dict[str, Any]:
    """The mapping of `KEY=VALUE` words. Raises `OptionError`."""
    values: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not key or not equals:
            raise OptionError(name, f"is {brief(entry)}; it must be KEY=VALUE.")
        if key in values:
            raise OptionError(name, f"has the key {key!r} twice.")
        if "\0" in entry:
            raise OptionError(name, f"holds a NUL character, which is not allowed: {brief(entry)}.")
        try:
            # YAML has no control characters, and no names that the locale cannot decode.
            values[key] = parse_value(name, text) if text.isprintable() else text
        except ConfigError as error:
            raise OptionError(name, f"is {brief(entry)}, whose value is not YAML.") from error
    return values


def words(settings: Settings) -> list[str]:
    """The words of the command line that give `settings`; defaults are left out."""
    options: list[str] = []
    arguments: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        option = f"--{name.replace('_', '-')}"
        if ARGUMENT in field.metadata:
            arguments += map(str, value) if isinstance(value, list) else [str(value)]
        elif value is None or (not field.is_required() and value == field.default):
            continue
        elif isinstance(value, bool):
            options.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, list):
            options += [word for entry in value for word in (option, str(entry))]
        elif isinstance(value, dict):
            options += [word for key, entry in value.items() for word in (option, f"{key}={_word(entry)}")]
        else:
            options += [option, str(value)]
    return [*options, *(["--"] if any(word.startswith("-") for word in arguments) else []), *arguments]


def _word(value: Any) -> str:
    plain = value.model_dump() if isinstance(value, Settings) else value
    text = json.dumps(plain, ensure_ascii=False).replace("\x7f", r"\x7f")
    return text.encode("ascii", "backslashreplace").decode()  # YAML's escapes: it does not join JSON's surrogate pairs
