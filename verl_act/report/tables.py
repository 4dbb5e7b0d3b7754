"""The tables of a report: metrics of every model by split, task type, position and margin, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_act.evaluate.metrics import LOOP_LENGTH, MARGINS, finished, grouped, margin_name, position_name
from verl_act.report.read import Evaluation, Run
from verl_act.report.statistics import MetricValue, Paired, paired, ratio_of, share_of

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """One column of the tables: an evaluated model with a unique label."""

    label: str
    run: str
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class MetricCell:
    """One metric of one model; `against_first` compares it with the first model on the same items."""

    figure: MetricValue
    against_first: Paired | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of all models, in their order."""

    key: str
    title: str
    unit: str
    """`share` (0 to 1), `turns`, `tokens` or `reward`."""
    cells: list[MetricCell]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of one section on one split."""

    section: str
    """`episodes`, `next_action`, `choice` or `reasoning`."""
    split: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Group:
    """A share within one group of one split's records, for all models in their order."""

    split: str
    name: str
    figures: list[MetricValue]


def models(runs: Sequence[Run]) -> list[Model]:
    """The evaluated models of all runs; several runs put their name before the model's."""
    listed: list[Model] = []
    for run in runs:
        for evaluation in run.evaluations:
            alone = len(run.evaluations) == 1 and not run.stages
            label = evaluation.name if len(runs) == 1 else run.name if alone else f"{run.name} · {evaluation.name}"
            if label in {model.label for model in listed}:
                label = f"{label} ({evaluation.folder.name})"
            listed.append(Model(label, run.name, evaluation))
    return listed


def blocks(compared: Sequence[Model]) -> list[Block]:
    """All sections and splits for which any model has answers."""
    all_blocks = []
    for section, rows in (
        ("episodes", _episode_rows),
        ("next_action", _action_rows),
        ("choice", _choice_rows),
        ("reasoning", _reasoning_rows),
    ):
        records = [_records(model, section) for model in compared]
        all_blocks += [
            Block(section, split, rows([_of(model_records, split) for model_records in records]))
            for split in _splits(records)
        ]
    return all_blocks


def by_task_type(compared: Sequence[Model]) -> list[Group]:
    """Success by task type."""
    return _groups([_records(model, "episodes") for model in compared], lambda record: record["task_type"], "success")


def by_position(compared: Sequence[Model]) -> list[Group]:
    """Right choices by position of the expert's action, which reveals a position bias."""

    def name(position: int) -> str:
        return f"right, expert's action {position_name(position)}"

    order = [name(position) for position in range(4)]
    return _groups(_choices(compared), lambda record: name(record["expert_position"]), "right", order=order)


def by_margin(compared: Sequence[Model]) -> list[Group]:
    """Right choices by how many steps the alternative costs."""
    order = ("≤ 0", *(name for _, name in MARGINS), "9+", "unknown")
    return _groups(_choices(compared), lambda record: margin_name(record["margin"]), "right", order=order)


def first_picked(compared: Sequence[Model]) -> list[Group]:
    """How often the first candidate was chosen, among choices that name one; without bias, 50% of two."""
    picked = [
        [{**record, "first": record["chosen"] == 0} for record in records if record["named_a_candidate"]]
        for records in _choices(compared)
    ]
    return _groups(picked, lambda record: "chose the first candidate", "first")


def _choices(compared: Sequence[Model]) -> list[list[Record]]:
    return [_records(model, "choice") for model in compared]


def _records(model: Model, section: str) -> list[Record]:
    by_section: dict[str, Sequence[Record]] = {
        "episodes": finished(model.evaluation.episodes),
        "next_action": model.evaluation.next_actions,
        "choice": model.evaluation.choices,
        "reasoning": model.evaluation.reasoning,
    }
    return list(by_section[section])


def _of(records: Sequence[Record], split: str) -> list[Record]:
    return [record for record in records if record["split"] == split]


def _splits(records: Sequence[Sequence[Record]]) -> list[str]:
    return sorted({record["split"] for model_records in records for record in model_records})


def _groups(
    records: Sequence[Sequence[Record]], name: Callable[[Record], str], holds: str, order: Sequence[str] = ()
) -> list[Group]:
    groups = []
    for split in _splits(records):
        by_model = [_by_name(_of(members, split), name) for members in records]
        names = sorted(
            {key for members in by_model for key in members},
            key=lambda key: (order.index(key) if key in order else 0, key),
        )
        groups += [Group(split, key, [share_of(members.get(key, []), holds) for members in by_model]) for key in names]
    return groups


def _by_name(records: Sequence[Record], name: Callable[[Record], str]) -> dict[str, list[Record]]:
    named = [{**record, "_group": name(record)} for record in records]
    return dict(grouped(named, "_group"))


def _episode_rows(models: Sequence[Sequence[Record]]) -> list[Row]:
    looped = [
        [{**record, "looped": record["longest_failed_repeat"] >= LOOP_LENGTH} for record in records]
        for records in models
    ]
    loops = f"one failed action {LOOP_LENGTH} times or more in a row"
    turns, useful = "of an episode's turns", "in replies that gave an admissible action"
    # Without a reasoning template no reply reasons, and the row is left out.
    reasoning = (
        models if any(record.get("thought_share") for records in models for record in records) else [[] for _ in models]
    )
    won = [[record for record in records if record["success"]] for records in models]
    rows = [
        _shares("success", "Tasks solved", models, "success", "task_id"),
        _ratio("score", "Score", models, "score", unit="reward", note="sum of an episode's rewards"),
        _shares("loops", "Episodes with a loop", looped, "looped", "task_id", note=loops),
        _ratio("inadmissible", "Inadmissible actions", models, "inadmissible_share", unit="share", note=turns),
        _ratio("malformed", "Malformed replies", models, "malformed_share", unit="share", note=turns),
        _ratio("thought", "Replies with a thought", reasoning, "thought_share", unit="share", note=turns),
        _ratio("longest_failed_repeat", "Longest run of one failed action", models, "longest_failed_repeat"),
        _ratio("steps", "Turns an episode", models, "steps", note="solved or not"),
        _ratio("steps_to_success", "Turns to the goal", won, "steps", note="solved episodes only"),
        _ratio("reply_length", "Reply length", models, "reply_tokens", "steps", unit="tokens", note="tokens a turn"),
        _ratio("useful_tokens", "Useful tokens", models, "useful_tokens", "reply_tokens", unit="share", note=useful),
    ]
    return [row for row in rows if any(cell.figure.count for cell in row.cells)]


def _action_rows(models: Sequence[Sequence[Record]]) -> list[Row]:
    return [
        _shares("right_inferable", "Expert's action, inferable states", _inferable(models), "right", "state_id"),
        _shares("right", "Expert's action, all states", models, "right", "state_id"),
        _shares("admissible", "Admissible action", models, "admissible", "state_id"),
        _shares("malformed", "Malformed replies", _malformed(models), "malformed", "state_id"),
        *_thoughts(models, "state_id"),
    ]


def _choice_rows(models: Sequence[Sequence[Record]]) -> list[Row]:
    named = "the text or the label of one of them"
    return [
        _shares("right_inferable", "Better action, inferable states", _inferable(models), "right", "pair_id"),
        _shares("right", "Better action, all states", models, "right", "pair_id"),
        _shares("named", "Names a candidate", models, "named_a_candidate", "pair_id", note=named),
        _shares("malformed", "Malformed replies", _malformed(models), "malformed", "pair_id"),
        *_thoughts(models, "pair_id"),
    ]


def _reasoning_rows(models: Sequence[Sequence[Record]]) -> list[Row]:
    return [_shares("right", "Verified answers", models, "right", "item")]


def _inferable(models: Sequence[Sequence[Record]]) -> list[list[Record]]:
    return [[record for record in records if record["inferable"]] for records in models]


def _malformed(models: Sequence[Sequence[Record]]) -> list[list[Record]]:
    return [[{**record, "malformed": not record["well_formed"]} for record in records] for records in models]


def _thoughts(models: Sequence[Sequence[Record]], item: str) -> list[Row]:
    """The share of replies that reason first; no row if no reply does, as without a reasoning template."""
    if not any(record.get("thought") for records in models for record in records):
        return []
    known = [[record for record in records if "thought" in record] for records in models]
    return [_shares("thought", "Replies with a thought", known, "thought", item)]


def _shares(key: str, title: str, models: Sequence[Sequence[Record]], holds: str, item: str, *, note: str = "") -> Row:
    def name(record: Record) -> tuple[str, int]:
        return record[item], record.get("order", 0)

    outcomes = [{name(record): bool(record[holds]) for record in records} for records in models]
    tasks = {name(record): record["task_id"] for records in models for record in records if "task_id" in record}
    cells = [
        MetricCell(share_of(records, holds), paired(outcomes[0], outcomes[index], tasks) if index else None)
        for index, records in enumerate(models)
    ]
    return Row(key, title, "share", cells, note)


def _ratio(
    key: str,
    title: str,
    models: Sequence[Sequence[Record]],
    amount: str,
    size: str | None = None,
    *,
    unit: str = "turns",
    note: str = "",
) -> Row:
    return Row(key, title, unit, [MetricCell(ratio_of(records, amount, size)) for records in models], note)
