"""General reasoning on MATH-500 and GPQA-Diamond, to check that training on actions does not harm it.

A file is JSON lines, CSV or parquet, with one row per question and the original columns of the data set:

* MATH-500: `problem`, `answer`; the optional `unique_id` names the item.
* GPQA-Diamond: `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`; the optional `Record ID` names the item.

The answer is the last box of a reply, or else what the reply declares as its answer; the last number of a reply that
was cut off does not count. math-verify parses and compares mathematical answers; percent signs are ignored if the gold
answer has one or the problem asks for percent. Only the text after `</think>` is read, so a thought that never ends
leaves no answer. The order of GPQA's options is seeded by the item: all models get the same prompt.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv

from verl_act.errors import DataError
from verl_act.evaluate.answers import chosen_letter, last_box
from verl_act.extras import needs_extra
from verl_act.names import unique_names
from verl_act.parquet_file import read_parquet
from verl_act.prompts import Message
from verl_act.text_files import open_bytes, read_rows, text_suffix

MATH_COLUMNS = ("problem", "answer")
CHOICE_COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = ("A", "B", "C", "D")
_PERCENT = re.compile(r"\\?%")
_BOXED = "Reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `gold` is LaTeX or a letter; `split` is the file's name, with its folder if that is not unique."""

    item: str
    split: str
    text: str
    gold: str
    is_choice: bool

    @property
    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.text}]


def read_questions(paths: Sequence[str | PathLike[str]]) -> list[Question]:
    """All questions in file order. Raises `DataError` naming the file and row of a bad row, or a repeated item."""
    questions: list[Question] = []
    files = list(map(Path, paths))
    for path, split in zip(files, _splits(files), strict=True):
        rows = _rows(path)
        names = _columns(path, rows)
        questions += [_question(path, row_number, row, names, split) for row_number, row in enumerate(rows, 1)]
    seen: set[tuple[str, str]] = set()
    for question in questions:
        if (key := (question.split, question.item)) in seen:
            raise DataError(f"question {question.item!r} of {question.split} is duplicated; give each item once.")
        seen.add(key)
    return questions


def is_right(question: Question, reply: str) -> bool:
    """Whether the reply's answer, after its thoughts, is the right one: the same letter, or equal by math-verify.

    If the prompt opens the thought, the reply must start with `<think>`, as `Engine.reply` returns it. Raises
    `ConfigError` if math-verify is not installed.
    """
    reply = _after_thoughts(reply)
    if question.is_choice:
        return chosen_letter(reply) == question.gold
    with needs_extra("reasoning"):
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    maths = (
        LatexExtractionConfig(try_extract_without_anchor=False),
        ExprExtractionConfig(try_extract_without_anchor=False),
    )
    box = last_box(reply)
    gold, answer = question.gold, reply if box is None else f"\\boxed{{{box}}}"
    if _PERCENT.search(gold) or "percent" in question.text.lower():
        gold, answer = (_PERCENT.sub("", text) for text in (gold, answer))
    parsed = parse(f"\\boxed{{{gold}}}", maths)
    return bool(parsed) and bool(verify(parsed, parse(answer, maths)))


def _after_thoughts(reply: str) -> str:
    """The text after the reasoning, as in `verl_act.parse`; empty if a thought never ends."""
    answer = reply.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer


def _splits(paths: Sequence[Path]) -> list[str]:
    """A unique name for each file: without its suffix, unless only that tells two files apart."""
    if len(set(paths)) < len(paths):
        raise DataError(f"a file of questions is given twice: {', '.join(map(str, paths))}. Name each once.")
    stems = [path.with_suffix("") for path in paths]
    return unique_names(stems if len(set(stems)) == len(stems) else paths)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    try:
        if path.suffix.lower() == ".parquet":
            rows = read_parquet(path).to_pylist()
        elif text_suffix(path) == ".csv":
            # Columns of numbers are read as text; GPQA's questions span several lines.
            text = pcsv.ConvertOptions(column_types=dict.fromkeys((*MATH_COLUMNS, *CHOICE_COLUMNS), pa.string()))
            lines = pcsv.ParseOptions(newlines_in_values=True)
            with open_bytes(path) as stream:
                rows = pcsv.read_csv(stream, parse_options=lines, convert_options=text).to_pylist()
        else:
            rows = list(read_rows(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file of questions.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: cannot be read in the format that its name says: JSON lines, CSV or parquet ({error})."
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: has a row that is not an object with named fields.")
    return rows


def _columns(path: Path, rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    columns: Iterable[str] = rows[0] if rows else ()
    for expected in (MATH_COLUMNS, CHOICE_COLUMNS):
        if set(expected) <= set(columns):
            return expected
    raise DataError(
        f"{path}: has the columns {', '.join(columns) or 'of no row'}; a file of questions has "
        f"{', '.join(MATH_COLUMNS)} (as MATH-500) or {', '.join(CHOICE_COLUMNS)} (as GPQA-Diamond)."
    )


def _question(path: Path, row_number: int, row: Mapping[str, Any], names: Sequence[str], split: str) -> Question:
    values: list[Any] = [row.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise DataError(f"{path}, row {row_number}: {name} is {value!r}; it must be a string or a number.")
    values = list(map(str, values))
    if names is MATH_COLUMNS:
        item = _name(row.get("unique_id"), row_number)
        return Question(item, split, f"{values[0]}\n\n{_BOXED}", values[1], False)
    item = _name(row.get("Record ID"), row_number)
    order = list(range(len(LETTERS)))
    random.Random(hashlib.sha256(item.encode()).digest()).shuffle(order)
    options = "\n".join(f"{letter}) {values[1 + which]}" for letter, which in zip(LETTERS, order, strict=True))
    text = f"{values[0]}\n\n{options}\n\n{_BOXED.replace('final answer', 'answer, a single letter,')}"
    return Question(item, split, text, LETTERS[order.index(0)], True)


def _name(value: Any, row_number: int) -> str:
    """The item's name in its row, which may be 0; the row number if it has none."""
    return str(row_number) if value is None or value == "" else str(value)
