"""Questions of general reasoning: their files, their prompts, and answers verified by math-verify itself."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_act.engine import Engine, Sampling
from verl_act.errors import DataError
from verl_act.evaluate.answers import chosen_letter
from verl_act.evaluate.reasoning import LETTERS, Question, is_right, read_questions
from verl_act.evaluate.rollouts import PolicyUnderTest, evaluate_reasoning
from verl_act.prompts import get_template

MATH = [
    {"problem": "What is one half plus one quarter?", "answer": "\\frac{3}{4}", "unique_id": "m/1"},
    {"problem": "Solve x^2 = 4 for positive x.", "answer": "2", "unique_id": "m/2"},
    {"problem": "Expand (x+1)^2.", "answer": "x^2+2x+1", "unique_id": "m/3"},
]
PERCENT = [
    {"problem": "How large is the share?", "answer": "10\\%", "unique_id": 0},
    {"problem": "What percent is it?", "answer": 10, "unique_id": 1},
]
CHOICE = [
    {
        "Question": f"Question {number}?",
        "Correct Answer": f"right {number}",
        **{f"Incorrect Answer {wrong}": f"wrong {number}.{wrong}" for wrong in (1, 2, 3)},
        "Record ID": f"rec{number}",
    }
    for number in range(40)
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parquet_and_json_lines_hold_the_same_questions(tmp_path: Path) -> None:
    lines = read_questions([write_lines(tmp_path / "math.jsonl", MATH)])
    pq.write_table(pa.Table.from_pylist(MATH), tmp_path / "math.parquet")
    assert lines == read_questions([tmp_path / "math.parquet"])
    assert [question.item for question in lines] == ["m/1", "m/2", "m/3"]
    assert all(question.split == "math" and "\\boxed{}" in question.text for question in lines)


@pytest.mark.parametrize(
    ("number", "reply", "right"),
    [
        (0, "One half is 2/4, so \\boxed{\\frac{3}{4}}.", True),
        (0, "It is \\boxed{0.75}.", True),
        (0, "It is \\boxed{\\frac{4}{3}}.", False),
        (1, "Either 2 or -2; the answer is $x = 2$.", True),
        (1, "Final answer: 2", True),
        (1, "The roots are -2 and 2. Since x is positive, $x = 2$ is wh", False),
        (1, "First, 4 = 2 * 2, and 2", False),
        (1, "", False),
        (2, "\\boxed{1 + 2x + x^2}", True),
        (2, "\\boxed{x^2+1}", False),
        (1, "<think>Four is \\boxed{4}.</think> It is \\boxed{2}.", True),
        (1, "<think>Perhaps \\boxed{2}? Let me check", False),
        (1, "<think>It is \\boxed{2}.</think> I do not know.", False),
        (1, "It was \\boxed{2}, I thought.</think> It is \\boxed{3}.", False),
        (1, "First \\boxed{3}, so x + 1 = 3 and \\boxed{2}", True),
        (1, "First \\boxed{2}, so \\boxed{3}", False),
        (1, "I give it inside \\boxed{2} and not in \\boxed{}.", True),
        (1, "Either \\boxed{2} or, better, \\boxed{3", False),
        (1, "\\boxed 2", True),
        (0, "\\boxed{3}\\div\\boxed{4} = \\boxed{\\dfrac34}", True),
        (1, "\\boxed{2\\%}", False),
        (3, "\\boxed{10}", True),
        (3, "\\boxed{10\\%}", True),
        (3, "The answer is $10\\%$.", True),
        (3, "\\boxed{11\\%}", False),
        (4, "\\boxed{10}", True),
        (4, "\\boxed{10\\%}", True),
        (4, "\\boxed{0.2}", False),
    ],
)
def test_answers_are_verified_by_meaning(number: int, reply: str, right: bool, tmp_path: Path) -> None:
    assert is_right(read_questions([write_lines(tmp_path / "math.jsonl", MATH + PERCENT)])[number], reply) is right


SPELLINGS: list[tuple[str, str | None]] = [
    # The last box decides.
    (r"\boxed{B}", "B"),
    (r"\boxed{b}", "B"),
    (r"\boxed{(B)}", "B"),
    (r"\boxed{B)}", "B"),
    (r"\boxed{B.}", "B"),
    (r"\boxed{ B }", "B"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\textbf{B}}", "B"),
    (r"\boxed{\mathrm{(B)}}", "B"),
    (r"\boxed{\mathbf{B}}", "B"),
    (r"\boxed{\text{(B)}}", "B"),
    (r"\boxed{Option B}", "B"),
    (r"\boxed{\text{Option B}}", "B"),
    (r"\boxed{\text{Answer: B}}", "B"),
    (r"\boxed{Answer: (B)}", "B"),
    (r"\boxed{The correct answer is B}", "B"),
    (r"\boxed{\text{B) the second}}", "B"),
    (r"\boxed{B: the second}", "B"),
    (r"\boxed{\textbf{(B) } 10^{-4}\,\text{eV}}", "B"),
    (r"\boxed{\left(B\right)}", "B"),
    (r"$$\boxed{\text{B}}$$", "B"),
    (r"**\boxed{B}**", "B"),
    (r"\boxed B", "B"),
    (r"\boxed {B}", "B"),
    (r"\boxed{\boxed{B}}", "B"),
    (r"\boxed{**B**}", "B"),
    (r"\boxed{A} no, \boxed{B}", "B"),
    (r"\boxed{A}. Wait: the answer is \boxed{B}.", "B"),
    (r"The answer is A. \boxed{B}", "B"),
    (r"\boxed{B} as asked inside \boxed{}", "B"),
    (r"\boxed{\text{B - the second}}", "B"),
    (r"\boxed{3}", None),
    (r"\boxed{\frac{b}{c}}", None),
    (r"\boxed{A, B}", None),
    (r"\boxed{B or C}", None),
    (r"\boxed{A proton}", None),
    (r"\boxed{B} and then \boxed{3", None),
    (r"\boxed{E}", None),
    (r"\boxed{BC}", None),
    (r"\boxed{c = 3}", None),
    # Without a box, what is declared the answer.
    ("The answer is B", "B"),
    ("The answer is (B).", "B"),
    ("Answer: B", "B"),
    ("Answer: (B)", "B"),
    ("**Answer: B**", "B"),
    ("**Answer:** B", "B"),
    ("Final answer: B", "B"),
    ("The final answer is **B**.", "B"),
    ("the correct answer is option B.", "B"),
    ("The correct option is B.", "B"),
    ("My answer is therefore B.", "B"),
    ("The answer is:\n\n**B) the second**", "B"),
    ("ANSWER: B", "B"),
    ("answer: b", "B"),
    ("The best choice would be B.", "B"),
    ("Option B is correct.", "B"),
    ("(B) is the correct answer.", "B"),
    ("B is correct.", "B"),
    ("So I choose B.", "B"),
    ("I would go with option B.", "B"),
    ("Therefore, B.", "B"),
    ("### Answer\nB", "B"),
    ("<answer>B</answer>", "B"),
    (r"The answer is $\text{B}$.", "B"),
    (r"The answer is \(B\).", "B"),
    ("The answer to the question is B.", "B"),
    ("答案：B", "B"),
    ("Thus the answer is B because it is heavier.", "B"),
    ("The answer is A because", "A"),
    ("The answer is A.", "A"),
    # A letter alone at the end.
    ("B", "B"),
    ("**B**", "B"),
    ("(B)", "B"),
    (r"\(B\)", "B"),
    ("B.", "B"),
    ("`B`", "B"),
    ("Let us see.\n\n**B**", "B"),
    ("B) the second", "B"),
    ("**B) the second**", "B"),
    ("Option B", "B"),
    ("$B$", "B"),
    # What is taken back.
    ("The correct answer is not B, it is C", "C"),
    ("The correct answer is not B but C.", "C"),
    ("The answer isn't (B). It's (C).", "C"),
    ("The answer is A. Wait, the answer is C.", "C"),
    ("The answer is C, not B.", "C"),
    ("The answer is C rather than B.", "C"),
    ("Not A. Not B. The answer must be C.", "C"),
    ("The answer is B. No: B is wrong, so C.", "C"),
    ("Option B is not correct. Option C is correct.", "C"),
    # No answer, or several.
    ("B says so, but", None),
    ("", None),
    ("The answer is not B.", None),
    ("The answer is A or B.", None),
    ("The answer is either A or B", None),
    ("A) one\nB) two\nC) three\nD) four", None),
    ("The answer is a proton", None),
    ("The answer is A proton", None),
    ("Vitamin C is good", None),
    ("I think it may be B or", None),
    ("If B is correct, then the sum is 3.", None),
    ("Answer: the mass of B", None),
    ("The answer is B. No, the answer is not B.", None),
    ("The answer is BC", None),
    ("Because of the answer", None),
]


@pytest.mark.parametrize(("reply", "letter"), SPELLINGS)
def test_spellings_of_a_letter(reply: str, letter: str | None) -> None:
    assert chosen_letter(reply) == letter


@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from([*(spelling for spelling, _ in SPELLINGS), "\\boxed{", "}", "{", "not ", "A", ". "]),
            max_size=6,
        ).map("".join),
    )
)
def test_any_reply_has_a_letter_or_none(reply: str) -> None:
    assert chosen_letter(reply) in (*LETTERS, None)
    assert chosen_letter(reply + "\n\\boxed{D}") == "D", "the last box decides"


def test_numbers_and_a_json_list_are_read(tmp_path: Path) -> None:
    """Item 0 is not item 1, and an answer may be a number."""
    rows = [
        {"problem": "1 + 1?", "answer": 2, "unique_id": 0},
        {"problem": "1 / 2?", "answer": 0.5, "unique_id": 1},
        {"problem": "Two?", "answer": "2", "unique_id": ""},
    ]
    (tmp_path / "math.json").write_text(json.dumps(rows))
    found = read_questions([tmp_path / "math.json"])
    assert [(question.item, question.gold) for question in found] == [("0", "2"), ("1", "0.5"), ("3", "2")]
    assert found == read_questions([write_lines(tmp_path / "math.jsonl", rows)])
    table = pa.Table.from_pylist([{**row, "answer": number, "unique_id": number} for number, row in enumerate(rows)])
    pq.write_table(table, tmp_path / "numbers.parquet")
    numbered = read_questions([tmp_path / "numbers.parquet"])
    assert [(question.item, question.gold) for question in numbered] == [("0", "0"), ("1", "1"), ("2", "2")]


def test_letters_are_drawn_by_item(tmp_path: Path) -> None:
    """Every model, seed and run is asked the same."""
    path = write_lines(tmp_path / "gpqa.jsonl", CHOICE)
    first = read_questions([path])
    assert first == read_questions([path])
    assert read_questions([write_lines(path, CHOICE[3:])]) == first[3:]
    assert {entry.gold for entry in first} == set(LETTERS)
    for number, question in enumerate(first):
        assert f"{question.gold}) right {number}\n" in question.text
        wrong = next(letter for letter in LETTERS if letter != question.gold)
        assert is_right(question, f"I think \\boxed{{{question.gold}}}")
        assert not is_right(question, f"I think \\boxed{{{wrong}}}")
        assert is_right(question, f"Not \\boxed{{{wrong}}}: \\boxed{{{question.gold}) right {number}}}")
        assert is_right(question, f"\\boxed{{\\text{{{question.gold}}}}}") and is_right(
            question, f"Answer: ({question.gold})"
        )
        assert not is_right(question, f"{question.gold} says so, but")
        assert not is_right(question, f"\\boxed{{\\frac{{{question.gold.lower()}}}{{b}}}}"), "a formula is no letter"


def test_the_official_file_of_gpqa_is_csv(tmp_path: Path) -> None:
    """With commas, quotes and several lines in a cell, numbers for answers, and many more columns."""
    rows = [{**row, "Question": f'Which, of "these"\n{row["Question"]}', "Explanation": "a,\nb"} for row in CHOICE]
    rows[0] |= {"Correct Answer": "10"}
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "lines").mkdir()
    assert read_questions([path]) == read_questions([write_lines(tmp_path / "lines" / "gpqa_diamond.jsonl", rows)])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gpqa_diamond.parquet")
    assert read_questions([path]) == read_questions([tmp_path / "gpqa_diamond.parquet"])


def test_files_of_one_name_stand_apart(tmp_path: Path) -> None:
    for folder in ("math", "gpqa"):
        (tmp_path / folder).mkdir()
    math = write_lines(tmp_path / "math" / "test.jsonl", MATH)
    gpqa = write_lines(tmp_path / "gpqa" / "test.jsonl", CHOICE)
    assert {question.split for question in read_questions([math, gpqa])} == {"math/test", "gpqa/test"}
    pq.write_table(pa.Table.from_pylist(MATH), tmp_path / "math" / "test.parquet")
    again = read_questions([math, tmp_path / "math" / "test.parquet"])
    assert len({(question.split, question.item) for question in again}) == 2 * len(MATH)
    with pytest.raises(DataError, match=str(math)):
        read_questions([math, math])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "x", "answer": "1"}], "bad.jsonl.* question, answer"),
        ([MATH[0], {**MATH[1], "answer": ""}], "row 2: answer is ''"),
        ([MATH[0], {**MATH[1], "answer": True}], "row 2: answer is True"),
        ([MATH[0], {**MATH[1], "answer": None}], "row 2: answer is None"),
        ([MATH[0], MATH[0]], "m/1"),
    ],
)
def test_bad_files_are_refused_by_row(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_questions([write_lines(tmp_path / "bad.jsonl", rows)])


class Always:
    """Stands where an engine would: the same reply to every prompt."""

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        return ["\\boxed{2}"]


def test_a_thought_that_the_prompt_has_opened_is_no_answer(tmp_path: Path) -> None:
    """The reply itself then has no `<think>`."""
    questions = read_questions([write_lines(tmp_path / "math.jsonl", MATH)])[1:2]
    engine = Engine.__new__(Engine)
    engine.reply_prefix = "<think>"
    for text, right in (("Perhaps \\boxed{2}? Let me", False), ("Perhaps 3.</think> \\boxed{2}", True)):

        async def complete(*_: Any, text: str = text) -> list[Any]:
            return [SimpleNamespace(text=text)]

        engine.complete = complete  # type: ignore[method-assign]
        asked = evaluate_reasoning(PolicyUnderTest(engine, get_template("plain"), Sampling(temperature=0)), questions)
        assert [record["right"] for record in asyncio.run(asked)] == [right]


def test_an_answer_in_a_thought_is_no_letter(tmp_path: Path) -> None:
    question = read_questions([write_lines(tmp_path / "gpqa.jsonl", CHOICE[:1])])[0]
    assert not is_right(question, f"<think>Is it \\boxed{{{question.gold}}}? I")
    assert is_right(question, f"<think>Hm.</think>\\boxed{{{question.gold}}}")


def test_every_question_is_asked_once_in_order(tmp_path: Path) -> None:
    questions: list[Question] = read_questions([write_lines(tmp_path / "math.jsonl", MATH)])
    policy = PolicyUnderTest(cast(Any, Always()), get_template("plain"), Sampling(temperature=0))
    records = asyncio.run(evaluate_reasoning(policy, questions))
    assert [(record["item"], record["right"]) for record in records] == [("m/1", False), ("m/2", True), ("m/3", False)]
