"""What our command line makes of a command in a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from verl_act.__main__ import app


def parsed(words: Sequence[str]) -> Any:
    """The context of the command `verl-act WORDS`, whose `params` are its options. Raises `click.UsageError`."""
    command, (name, *arguments) = typer.main.get_command(app), words
    while hasattr(command.commands[name], "commands"):  # type: ignore[attr-defined]
        command, (name, *arguments) = command.commands[name], arguments  # type: ignore[attr-defined]
    return command.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
