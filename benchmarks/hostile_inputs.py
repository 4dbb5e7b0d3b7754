"""Awkward files, recipes, options, environments and replies through the package: does anything end in a traceback, or
change data without a word?

    HF_HUB_OFFLINE=1 python benchmarks/hostile_inputs.py [--only files,tables,recipes,options,environments,replies]

(offline, so that a model that does not exist is not looked for.)

Every input ends in one of four ways: `accepted` (with the right result), `refused` (an error of ours, which the command
line prints as one sentence), `traceback` (any other exception) or `silent` (accepted, but the result is not what the
input says). The last two are faults. Everything random is drawn with seed 0. Prints and writes
`benchmarks/results/hostile_inputs.json`; exits with 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
import yaml
from hostile_replies import fault, replies

from verl_act.__main__ import app
from verl_act.__main__ import main as main_command
from verl_act.chain.check import check_settings
from verl_act.chain.method_stages import plan
from verl_act.chain.recipe import Recipe, load_recipe
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.imports.import_trajectories import import_trajectories
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.pairs.import_preferences import import_preferences
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.base import EnvSpec, Observation, StepResult, Task
from verl_act.envs.contract import check_environment
from verl_act.errors import ActError
from verl_act.evaluate.reasoning import read_questions
from verl_act.manifest import make_manifest
from verl_act.run_folder import RunFolder
from verl_act.schema import read_pairs, read_steps
from verl_act.settings.data import ExpertSettings, GamesSettings, ImportSettings, PairsSettings, PreferencesSettings

RESULTS = Path(__file__).parent / "results" / "hostile_inputs.json"
BIT_FLIPS = 600
"""Of each table."""
REPLIES = 20_000


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, str]] = field(default_factory=list)

    def run(self, label: str, action: Callable[[], object], expected: object = None) -> None:
        """Count how `action` ends. Where it is accepted, its result must equal `expected`, unless that is None."""
        output = io.StringIO()
        try:
            with redirect_stdout(output), redirect_stderr(output):
                result = action()
        except ActError:
            outcome, detail = "refused", ""
        except Exception as error:
            outcome, detail = "traceback", f"{type(error).__name__}: {error}"
        else:
            changed = expected is not None and result != expected
            outcome, detail = ("silent", f"{result!r:.200}") if changed else ("accepted", "")
        self.outcomes[outcome] += 1
        if detail:
            self.faults.append({"input": label[:120], "outcome": outcome, "detail": detail[:300]})


# --- text files -----------------------------------------------------------------------------------------------------

CHOSEN = {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."}
SECOND = {"prompt": "Größe?", "chosen": "groß", "rejected": "klein\u2028"}
MATHS = {"problem": "What is $1+1$?", "answer": "2", "unique_id": "a"}


def encodings(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, bytes, bool]]:
    """Label, file name, contents, and whether it must read as `rows` (else it may be refused)."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    array = json.dumps(rows, ensure_ascii=False)
    plain = lines.encode()
    yield "plain", "x.jsonl", plain, True
    yield "BOM", "x.jsonl", b"\xef\xbb\xbf" + plain, True
    yield "CRLF", "x.jsonl", plain.replace(b"\n", b"\r\n"), True
    yield "BOM and CRLF", "x.jsonl", b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"), True
    yield "no last newline", "x.jsonl", plain.rstrip(b"\n"), True
    yield "blank lines", "x.jsonl", plain.replace(b"\n", b"\n\n  \n"), True
    yield "ASCII escapes", "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode(), True
    yield "array", "x.json", array.encode(), True
    yield "array with BOM", "x.json", b"\xef\xbb\xbf" + array.encode(), True
    yield "indented array", "x.json", json.dumps(rows, indent=1).encode(), True
    yield "gzip", "x.jsonl.gz", gzip.compress(plain), True
    yield "gzip with BOM", "x.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + plain), True
    yield "gzip array", "x.json.gz", gzip.compress(array.encode()), True
    yield "cut gzip", "x.jsonl.gz", gzip.compress(plain)[:-9], False
    yield "gzip by another name", "x.jsonl", gzip.compress(plain), False
    for encoding in ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"):
        yield encoding, "x.jsonl", lines.replace("\u2028", "").encode(encoding), False
    yield "cut line", "x.jsonl", plain[:-7], False
    yield "cut character", "x.jsonl", plain[: plain.index("ß".encode()) + 1] if "ß".encode() in plain else plain, False
    yield "NUL bytes", "x.jsonl", plain + b"\0" * 100, False
    yield "trailing comma", "x.jsonl", plain.replace(b"}\n", b"},\n"), False
    yield "NaN", "x.jsonl", plain + b"NaN\n", False
    yield "number rows", "x.jsonl", b"1\n2\n", False
    yield "list rows", "x.jsonl", b"[1]\n[2]\n", False
    yield "null rows", "x.jsonl", b"null\nnull\n", False
    yield "deep nesting", "x.jsonl", b'{"prompt":' * 20_000 + b"1" + b"}" * 20_000, False
    yield "empty file", "x.jsonl", b"", False
    yield "white space", "x.jsonl", b" \n\t\n", False
    yield "empty array", "x.json", b"[]", False
    yield "object", "x.json", json.dumps(rows[0]).encode(), False
    yield "other suffix", "x.dat", plain, False
    yield "lone surrogate", "x.jsonl", plain.replace("ß".encode(), b"\\ud800"), False
    yield "huge integer", "x.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", False


def files(work: Path, games: Path) -> Tally:
    tally = Tally()
    trajectories = read_steps([expert_table(work, games)])
    by_task: dict[str, list[str]] = {}
    for step in trajectories:
        by_task.setdefault(step.task_id, []).append(step.action)
    played = [{"task_id": task, "actions": actions} for task, actions in list(by_task.items())[:2]]

    def preferences(path: Path) -> object:
        import_preferences(PreferencesSettings(files=[path]), work / "imported")
        return sorted(
            (pair.expert_action, pair.alternative_action) for pair in read_pairs([work / "imported" / "pairs.parquet"])
        )

    def published(path: Path) -> object:
        import_trajectories(
            ImportSettings(
                files=[path], env="alfworld", format="actions", env_settings={"data": str(games)}, workers=0
            ),
            work / "replayed",
        )
        return [step.action for step in read_steps([work / "replayed" / "trajectories.parquet"])]

    def questions(path: Path) -> object:
        return [(question.text, question.gold) for question in read_questions([path])]

    for name, read, rows in (
        ("preferences", preferences, [CHOSEN, SECOND]),
        ("trajectories", published, played),
        ("questions", questions, [MATHS, {**MATHS, "problem": "Größe?", "unique_id": "b"}]),
    ):
        expected = None
        for label, file, contents, same in encodings(rows):
            path = work / "files" / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(contents)
            tally.run(f"{name}: {label}", lambda read=read, path=path: read(path), expected if same else None)
            if label == "plain":
                expected = read(path)
            path.unlink()
    return tally


# --- tables ---------------------------------------------------------------------------------------------------------


def expert_table(work: Path, games: Path) -> Path:
    folder = work / "expert"
    if not folder.exists():
        collect_expert(
            ExpertSettings(env="alfworld", split="train", env_settings={"data": str(games)}, workers=0), folder
        )
    return folder / "trajectories.parquet"


def tables(work: Path, games: Path) -> Tally:
    tally, generator = Tally(), random.Random(0)
    steps = expert_table(work, games)
    build_pairs(
        PairsSettings(
            trajectories=[steps], alternatives=[], env_settings={"data": str(games)}, source="admissible", workers=0
        ),
        work / "pairs",
    )
    for path, read in ((steps, read_steps), (work / "pairs" / "pairs.parquet", read_pairs)):
        contents, expected = path.read_bytes(), read([path])
        damaged = work / f"damaged-{path.name}"
        again = partial(read, [damaged])
        for index in range(BIT_FLIPS):
            position, bit = generator.randrange(len(contents)), generator.randrange(8)
            changed = bytearray(contents)
            changed[position] ^= 1 << bit
            damaged.write_bytes(changed)
            tally.run(f"{path.name}: bit {bit} of byte {position}", again, expected)
            if index % 10 == 0:
                damaged.write_bytes(contents[:position])
                tally.run(f"{path.name}: cut to {position} bytes", again, expected)
    return tally


# --- recipes and options --------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x" * 250,
    "[/x]",
    "../..",
    "a\0b",
    "${trainer.project_name}",
    "${oc.env:NO_SUCH_VARIABLE}",
    "???",
    "Größe",
    [],
    [None],
    [[]],
    ["x", "x"],
    {},
    {"x": 1},
    {"": {"": {}}},
]
CHANGES = [
    "a=[unclosed",
    "=",
    "=1",
    "a",
    "a.b.c=1",
    "games.counts={train:24}",
    "seed=1,2",
    "seed=",
    "x" * 250 + "=1",
    "a={b",
    "seed='",
    "[0]=1",
]
RECIPES: list[bytes] = [
    b"",
    b"5",
    b"[]",
    b"- a",
    b"base: 5",
    b"base: [5]",
    b"base: {a: 1}",
    b"base: nothing/there",
    b"base: hostile",
    b"seed: !!python/object/apply:os.getcwd []",
    b"seed: &a [*a]",
    b"a: b: c",
    b"seed: 1\nseed: 2",
    b"\xef\xbb\xbfbase: alfworld/quickstart",
    "base: alfworld/quickstart".encode("utf-16"),
    "env: Größe".encode("latin-1"),
    b"\0",
    b"model: ???",
    b"critic: {overrides: [1]}",
    b"critic: {overrides: {a.b: 1, a: 2}}",
    b"{" * 3000,
    b"methods: [a]",
    b"methods: {a: 5}",
    b"methods: {a: {stages: [5]}}",
    b"? [a, b]\n: c",
    b"1: 2",
]


def keys(kind: type, before: str = "") -> Iterator[str]:
    """Every key of a recipe, dotted."""
    for entry in dataclasses.fields(kind):
        key = f"{before}{entry.name}"
        yield key
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            yield from keys(type(default), f"{key}.")


def nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def recipes(work: Path, games: Path) -> Tally:
    tally = Tally()
    path = work / "hostile.yaml"

    def check(changes: tuple[str, ...] = ()) -> None:
        recipe = load_recipe(str(path), changes)
        check_settings(recipe, plan(recipe, RunFolder(work / "chain"), [0]))

    for contents in RECIPES:
        path.write_bytes(contents)
        tally.run(f"recipe {contents[:60]!r}", check)
    for key in keys(Recipe):
        for value in VALUES:
            path.write_text(yaml.safe_dump({"base": "alfworld/quickstart"} | nested(key, value)), encoding="utf-8")
            tally.run(f"{key}: {value!r:.80}", check)
    path.write_text("base: alfworld/quickstart\n")
    for change in CHANGES:
        tally.run(f"{change:.80}", lambda change=change: check((change,)))
    return tally


NUMBERS = ["", " ", "-1", "0", "1.5", "1e30", "9" * 400, "nan", "inf", "x", "null"]
TEXTS = [
    *("", " ", "x", "null", "5", "[", "{", "{}", "[]", '{"": 1}', '{"x": 1}', '{"train": -1}', '{"train": 1.5}'),
    *('{"train": null}', '{"train": 1e400}', '{"temperature": NaN}', '{"data": 5}', '{"data": "a\\u0000b"}'),
    *('{"a":' * 5000 + "1" + "}" * 5000, "x" * 250, "[/x]", "Größe", "\ud800", "../..", "/dev/null"),
]


def options(work: Path, games: Path) -> Tally:
    """Every option of every command that reads files, one at a time. The files do not exist, so that nothing starts."""
    tally = Tally()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if not {"trajectories", "pairs", "files", "evaluations", "runs"} & {option.name for option in command.params}:
            continue
        required = [option for option in command.params if option.required]
        required += [option for option in command.params if option.name == "pairs" and not option.required]
        usual = {option.name: _usual(option, work) for option in required}
        for option in command.params:
            for text in (
                ()
                if getattr(option, "is_flag", False)
                else NUMBERS
                if isinstance(option.default, int | float)
                else TEXTS
            ):
                words = [name]
                for other in {id(one): one for one in (*required, option)}.values():
                    value = text if other is option else usual[other.name]
                    words += [value] if other.param_type_name == "argument" else [other.opts[0], value]
                tally.run(f"{name} {option.name} {text:.60}", lambda words=words: _invoke(words))
    return tally


def _usual(option: Any, work: Path) -> str:
    return {"out": str(work / "out"), "env": "alfworld", "split": "train", "recipe": "alfworld/quickstart"}.get(
        option.name, str(work / "missing")
    )


def _invoke(words: list[str]) -> None:
    """The command line in this process."""
    before = sys.argv
    sys.argv = ["verl-act", *words]
    try:
        main_command()
    except SystemExit as end:
        if end.code:
            raise ActError(f"status {end.code}") from end
    finally:
        sys.argv = before


# --- environments ---------------------------------------------------------------------------------------------------

ACTIONS = ("win", "wait")


class Honest:
    """Three steps; `win` ends it. The others below break one promise each."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, task: Task) -> Any:
        self.steps = 0
        return Observation("win", f"Task {task.task_id}.", ACTIONS)

    def step(self, action: str) -> Any:
        self.steps += 1
        won = action == "win"
        return StepResult(f"Step {self.steps}.", ACTIONS, float(won), won or self.steps == 3, won, action in ACTIONS)

    def close(self) -> None:
        pass


def breaking(method: str, change: Callable[[Any], Any]) -> type[Honest]:
    """An `Honest` environment whose `method` answers `change(answer)`."""

    def broken(self: Honest, *arguments: Any) -> Any:
        return change(getattr(Honest, method)(self, *arguments))

    return type("Broken", (Honest,), {method: broken})


def _raise(error: BaseException) -> Any:
    raise error


def replaced(**values: Any) -> Callable[[Any], Any]:
    return lambda answer: dataclasses.replace(answer, **values)


CONVERTIBLE = {
    "numpy reward": ("step", lambda answer: dataclasses.replace(answer, reward=np.float32(answer.reward))),
    "numpy flags": (
        "step",
        lambda a: dataclasses.replace(
            a, done=np.bool_(a.done), success=np.bool_(a.success), admissible=np.bool_(a.admissible)
        ),
    ),
    "integer reward": ("step", lambda answer: dataclasses.replace(answer, reward=int(answer.reward))),
    "array of actions": ("step", replaced(admissible_actions=np.array(ACTIONS))),
    "list of actions": ("reset", replaced(admissible_actions=list(ACTIONS))),
}
"""An environment that means something clear is taken at its word; everything else is refused by name."""
BROKEN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **{
        f"{method} gives {value!r}": (method, lambda _, value=value: value)
        for method in ("reset", "step")
        for value in (None, 5, "x", (), [], {})
    },
    "four-tuple": ("step", lambda answer: (answer.observation, answer.reward, answer.done, {})),
    "five-tuple": ("step", lambda answer: (answer.observation, answer.reward, answer.done, False, {})),
    **{
        f"reward {value!r}": ("step", replaced(reward=value))
        for value in (float("nan"), float("inf"), None, "1", 1j, [1.0])
    },
    **{f"observation {value!r}": ("step", replaced(observation=value)) for value in (None, 5, {"text": "x"}, ["x"])},
    **{f"actions {value!r}": ("step", replaced(admissible_actions=value)) for value in (None, 5, "win", (5,), (None,))},
    **{f"done {value!r}": ("step", replaced(done=value)) for value in (None, "no", 2, [])},
    **{f"goal {value!r}": ("reset", replaced(goal=value)) for value in (None, 5)},
    **{
        f"{method} raises {error!r}": (method, lambda _, error=error: _raise(error))
        for method in ("reset", "step", "close")
        for error in (ValueError("bad"), PermissionError(13, "no"), KeyError("x"), MemoryError(), AssertionError())
    },
}


class Winner:
    def reset(self, task: Task, seed: int) -> None:
        pass

    def act(self, context: Any, environment: Any) -> tuple[str, bool]:
        return "win", True


def environments(work: Path, games: Path) -> Tally:
    tally = Tally()
    for label, (method, change) in {"honest": ("step", lambda answer: answer), **CONVERTIBLE, **BROKEN}.items():

        def listed(split: str, **settings: Any) -> list[Task]:
            return [Task("broken", split, f"task {index}", "any") for index in range(2)]

        spec = EnvSpec("broken", breaking(method, change), listed, {"winner": Winner}, ("train",))
        tally.run(label, lambda spec=spec: check_environment(spec, "train"))
    return tally


def hostile_replies(work: Path, games: Path) -> Tally:
    tally = Tally()
    for reply in replies(REPLIES):
        tally.run(ascii(reply[:80]), lambda reply=reply: fault(reply) or "right", "right")
    return tally


KINDS: dict[str, Callable[[Path, Path], Tally]] = {
    "files": files,
    "tables": tables,
    "recipes": recipes,
    "options": options,
    "environments": environments,
    "replies": hostile_replies,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of input, separated by commas")
    chosen = parser.parse_args().only.split(",")
    work, started = Path(tempfile.mkdtemp(prefix="hostile-")), time.monotonic()
    try:
        make_games(GamesSettings(counts={"train": 12}, seed=7, workers=0, size="small"), work / "games")
        tallies = {kind: KINDS[kind](work, work / "games") for kind in chosen}
    finally:
        shutil.rmtree(work)
    totals: Counter[str] = sum((tally.outcomes for tally in tallies.values()), Counter())
    results = {
        "totals": {
            "inputs": sum(totals.values()),
            **{name: totals[name] for name in ("accepted", "refused", "traceback", "silent")},
        },
        "kinds": {kind: dict(tally.outcomes) for kind, tally in tallies.items()},
        "faults": {kind: tally.faults[:20] for kind, tally in tallies.items()},
        "versions": dict(make_manifest("hostile_inputs", settings={}).versions),
        "command": "HF_HUB_OFFLINE=1 python benchmarks/hostile_inputs.py",
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps({key: results[key] for key in ("totals", "kinds", "faults")}, indent=2, ensure_ascii=True))
    if chosen == list(KINDS):
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(totals["traceback"] + totals["silent"]))


if __name__ == "__main__":
    main()
