"""Select the single answers that a page shows, and add their prompts, as plain data for the viewer.

Records name their state, pair or question by id. Prompts are read from the input files that the evaluation's manifest
lists: at their old path or in the run folder, and only if their hash matches the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from verl_act.envs.registry import choice_prompt
from verl_act.errors import ConfigError, DataError
from verl_act.evaluate.metric_registry import LOOP_LENGTH, SECTIONS
from verl_act.evaluate.reasoning import Question, read_questions
from verl_act.evaluate.records import REASONING
from verl_act.manifest import digest
from verl_act.parquet_file import read_parquet_schema
from verl_act.parse import Malformed, match_action, parse_action, parse_choice
from verl_act.prompts import Message, Template, get_template
from verl_act.report.read import Evaluation, Run
from verl_act.report.tables import Model
from verl_act.rollout.episode import failed_repeats
from verl_act.schema import PAIR, TRAJECTORY, Pair, Step, missing_columns, read_table

Json = dict[str, Any]
KINDS = {Path(section.file).stem: section for name, section in SECTIONS.items() if name != "rationale"}
"""Kind of answer, which is the name of its file -> its section."""
_NAMED_IN_THEIR_SPLIT = ("episodes", "reasoning")
"""Ids of these kinds are unique only within a split."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of one kind: `items` are ready for JSON, `total` counts all items, shown or not."""

    kind: str
    items: list[Json]
    total: int


@dataclass(slots=True)
class Texts:
    """Deduplicated texts: observations and actions repeat hundreds of times in a page."""

    listed: list[str] = field(default_factory=list)
    _indices: dict[str, int] = field(default_factory=dict)

    def index(self, text: str | None) -> int | None:
        """The index of `text` in `listed`, added if new; None stays None."""
        if text is None:
            return None
        if text not in self._indices:
            self._indices[text] = len(self.listed)
            self.listed.append(text)
        return self._indices[text]

    def indices(self, texts: Iterable[str]) -> list[int | None]:
        return [self.index(text) for text in texts]


def examples(runs: Sequence[Run], compared: Sequence[Model], most: int, texts: Texts) -> list[Examples]:
    """At most `most` items of each kind, the same for every model, alternating between right and wrong answers."""
    questions = _Questions(runs)
    templates = [_template(model.evaluation) for model in compared]
    by_kind = []
    for kind, section in KINDS.items():
        answers = [
            # Of a choice's orders, the first: the others ask the same.
            {
                _name(kind, record): record
                for record in model.evaluation.records[section.file]
                if not record.get("order") and not record.get("sample")
            }
            for model in compared
        ]
        items = list(dict.fromkeys(item for by_item in answers for item in by_item))
        outcome = "success" if kind == "episodes" else "right"
        chosen = _mixed(items, answers, outcome)[:most]
        find, question, answer = _RENDERED[kind]
        sources = find(questions, chosen) if chosen else {}
        rendered = []
        for item in chosen:
            records, source = [by_item.get(item) for by_item in answers], sources.get(item)
            first = next(record for record in records if record is not None)
            shown = {"id": item, "split": first["split"], **question(source, first, texts)}
            shown["answers"] = [
                None if record is None else answer(record, source, template, texts)
                for record, template in zip(records, templates, strict=True)
            ]
            rendered.append(shown)
        by_kind.append(Examples(kind, rendered, len(items)))
    return by_kind


def _name(kind: str, record: Json) -> str:
    name: str = record[KINDS[kind].item]
    return f"{record['split']}/{name}" if kind in _NAMED_IN_THEIR_SPLIT else name


def _mixed(items: Sequence[str], answers: Sequence[Mapping[str, Json]], outcome: str) -> list[str]:
    """Items, alternating between splits and patterns of results; each such group keeps its order."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for item in items:
        records = [by_item.get(item) for by_item in answers]
        split = next(record["split"] for record in records if record is not None)
        pattern = ["" if record is None else str(bool(record[outcome])) for record in records]
        groups.setdefault((split, *pattern), []).append(item)
    turns = [
        (turn, group_index, item)
        for group_index, group in enumerate(groups.values())
        for turn, item in enumerate(group)
    ]
    return [item for _, _, item in sorted(turns)]


def turns_in_loops(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """`failed_repeats` of the turns of a record."""
    return failed_repeats([(turn["admissible"], turn["action"], turn["reply"]) for turn in turns])


def _episode_question(plan: Sequence[str] | None, first: Json, texts: Texts) -> Json:
    return {
        "type": first["task_type"],
        "goal": texts.index(first.get("goal", "")),
        "expert": None if plan is None else texts.indices(plan),
    }


def _episode(record: Json, plan: Sequence[str] | None, template: Template | None, texts: Texts) -> Json:
    turns = record.get("turns", [])
    shared_steps = _steps_with_the_expert(turns, plan)
    played = [
        {
            "observation": texts.index(turn["observation"]),
            "reply": texts.index(turn["reply"]),
            "action": texts.index(turn["action"]),
            "malformed": turn["malformed"],
            "admissible": turn["admissible"],
            "list": texts.indices(turn["admissible_actions"]),
            "repeat": repeat if repeat >= LOOP_LENGTH else 0,
            "expert": texts.index(plan[index]) if plan and index <= shared_steps and index < len(plan) else None,
            "as_expert": index < shared_steps,
        }
        for index, (turn, repeat) in enumerate(zip(turns, turns_in_loops(turns), strict=True))
    ]
    return {"right": bool(record["success"]), "end": record["end"], "steps": int(record["steps"]), "turns": played}


def _steps_with_the_expert(turns: Sequence[Json], plan: Sequence[str] | None) -> int:
    """How many first actions match the expert's. The states up to and including the next turn match too."""
    for index, turn in enumerate(turns):
        if plan is None or index >= len(plan) or match_action(turn["action"] or "", [plan[index]]) is None:
            return index
    return len(turns)


def _step_question(step: Step | None, first: Json, texts: Texts) -> Json:
    return {**_state(step, first, texts), "expert": texts.index(step.action) if step else None}


def _next_action(record: Json, step: Step | None, template: Template | None, texts: Texts) -> Json:
    prompt = template.action_messages(step.context) if template and step else []
    parsed = parse_action(record["reply"])
    return _answer(record, prompt, parsed.action, parsed.malformed, texts)


def _pair_question(pair: Pair | None, first: Json, texts: Texts) -> Json:
    return {
        **_state(pair, first, texts),
        "expert": texts.index(pair.expert_action) if pair else None,
        "alternative": texts.index(pair.alternative_action) if pair else None,
        "margin": first["margin"],
    }


def _choice(record: Json, pair: Pair | None, template: Template | None, texts: Texts) -> Json:
    """`chosen` is the index of a candidate, in the order of the prompt, or None."""
    prompt = choice_prompt(template, pair, record["candidates"]) if template and pair else []
    parsed = parse_choice(record["reply"], record["candidates"])
    return {
        **_answer(record, prompt, parsed.text, parsed.malformed, texts),
        "candidates": texts.indices(record["candidates"]),
        "chosen": record["chosen"],
        "expert_position": record["expert_position"],
    }


def _reasoning_question(question: Question | None, first: Json, texts: Texts) -> Json:
    gold = first.get("gold")
    return {
        "goal": texts.index(question.text) if question and question.gold == gold else None,
        "expected": texts.index(gold),
    }


def _reasoning(record: Json, question: Question | None, template: Template | None, texts: Texts) -> Json:
    return {"right": bool(record["right"]), "reply": texts.index(record.get("reply", ""))}


def _template(evaluation: Evaluation) -> Template | None:
    """The prompt template of an evaluation; None if it is not recorded or not installed here."""
    if evaluation.manifest is None:
        return None
    with suppress(ConfigError):
        return get_template(evaluation.template, **evaluation.manifest.settings.get("template_options", {}))
    return None


def _as_text(messages: Sequence[Message]) -> str | None:
    """The messages as one text; None without any."""
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages) or None


def _state(source: Step | Pair | None, first: Json, texts: Texts) -> Json:
    """The state of a question; without its goal if the input file is gone."""
    known: Json = {"inferable": first["inferable"], "goal": None}
    if source is not None:
        context = source.context
        known |= {
            "goal": texts.index(context.goal),
            "history": [texts.indices(turn) for turn in context.history],
            "observation": texts.index(context.observation),
            "list": texts.indices(context.admissible_actions),
        }
    return known


def _answer(
    record: Json, prompt: Sequence[Message], action: str | None, malformed: Malformed | None, texts: Texts
) -> Json:
    return {
        "right": record["right"],
        "prompt": texts.index(_as_text(prompt)),
        "reply": texts.index(record["reply"]),
        "action": texts.index(action),
        "malformed": malformed,
        "admissible": record["admissible"],
    }


class _Questions:
    """The input files of the evaluations, as far as they still exist unchanged."""

    def __init__(self, runs: Sequence[Run]) -> None:
        paths: dict[str, Path] = {}
        self.reasoning_files: list[Path] = []
        for run in runs:
            for evaluation in run.evaluations:
                inputs = evaluation.manifest.inputs if evaluation.manifest else {}
                for name, sha in inputs.items():
                    if sha not in paths and (path := _unchanged(name, sha, run.folder)):
                        paths[sha] = path
                if evaluation.records[REASONING]:
                    self.reasoning_files += [paths[sha] for sha in inputs.values() if sha in paths]
        self.tables = [path for path in paths.values() if any(_fits(path, schema) for schema in (TRAJECTORY, PAIR))]

    def expert_actions(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Split/task -> the expert's actions in order; of several trajectories, the first by id."""
        plans: dict[str, dict[str, dict[int, str]]] = {}
        task_ids = sorted({task.partition("/")[2] for task in tasks})
        columns = ["split", "task_id", "trajectory_id", "step", "action"]
        for row in self._rows(TRAJECTORY, "task_id", task_ids, columns):
            plan = plans.setdefault(f"{row['split']}/{row['task_id']}", {}).setdefault(row["trajectory_id"], {})
            plan[row["step"]] = row["action"]
        chosen = {task: trajectories[min(trajectories)] for task, trajectories in plans.items()}
        return {task: [plan[step] for step in sorted(plan)] for task, plan in chosen.items()}

    def steps(self, state_ids: Sequence[str]) -> dict[str, Step]:
        trajectories = sorted({state.rpartition("#")[0] for state in state_ids})
        steps = map(Step.from_row, self._rows(TRAJECTORY, "trajectory_id", trajectories))
        return {step.state_id: step for step in steps}

    def pairs(self, pair_ids: Sequence[str]) -> dict[str, Pair]:
        return {pair.pair_id: pair for pair in map(Pair.from_row, self._rows(PAIR, "pair_id", pair_ids))}

    def reasoning(self, items: Sequence[str]) -> dict[str, Question]:
        """Split/item -> question, of all items. Question files are all input files but tables of our schemas."""
        questions: dict[str, Question] = {}
        for path in dict.fromkeys(path for path in self.reasoning_files if path not in self.tables):
            # The split is the file's name with some of its folders; how many depended on files that may be gone now.
            parts = path.with_suffix("").parts
            splits = ["/".join(parts[start:]) for start in range(len(parts))]
            # Without its questions, the replies are still shown.
            with suppress(DataError):
                for question in read_questions([path]):
                    for split in splits:
                        questions.setdefault(f"{split}/{question.item}", question)
        return questions

    def _rows(
        self, schema: pa.Schema, column: str, values: Sequence[str], columns: Sequence[str] | None = None
    ) -> list[Json]:
        rows: list[Json] = []
        for path in self.tables:
            if not _fits(path, schema):
                continue
            table = read_table(path, schema)
            kept = table.filter(pc.is_in(table[column], pa.array(values, pa.string())))
            rows += kept.select(columns or schema.names).to_pylist()
        return rows


_RENDERED: dict[str, tuple[Callable[..., Mapping[str, Any]], Callable[..., Json], Callable[..., Json]]] = {
    "episodes": (_Questions.expert_actions, _episode_question, _episode),
    "next_actions": (_Questions.steps, _step_question, _next_action),
    "choices": (_Questions.pairs, _pair_question, _choice),
    "reasoning": (_Questions.reasoning, _reasoning_question, _reasoning),
}
"""Kind of answer -> how its questions are found, how one is shown, and how the answer of one model is shown."""


def _unchanged(name: str, sha: str, folder: Path) -> Path | None:
    """The file `name`, at its old path or at the same path below `folder`, if its hash is `sha`."""
    candidates = [Path(name), *(folder.joinpath(*Path(name).parts[-depth:]) for depth in (3, 2))]
    for path in candidates:
        if path.is_file() and digest(path) == sha:
            return path
    return None


def _fits(path: Path, schema: pa.Schema) -> bool:
    """Whether the file is a table with the schema's columns; those of other programs name no schema."""
    return path.suffix == ".parquet" and not missing_columns(read_parquet_schema(path).names, schema)
