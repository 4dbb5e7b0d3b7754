"""Replies of every shape, and the time that hostile ones take."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_act.parse import (
    Malformed,
    ParsedChoice,
    ParsedReply,
    has_thought,
    match_action,
    normalise,
    parse_action,
    parse_choice,
)

CANDIDATES = ["go to desk 1", "take mug 2 from desk 10"]


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("<action>look</action>", "look"),
        ("  <action>\n look \n</action> done.", "look"),
        ("<think>I could <action>go</action></think><action>look</action>", "look"),
        ("reasoning whose opening tag is in the prompt</think><action>look</action>", "look"),
        ("<think>a</think><think>b</think><action>look</action>", "look"),
        ("<think><think>nested</think><action>look</action>", "look"),
        ("<action>look</action> again: <action>Look</action>", "look"),
        ("<action>search[red <b>shoes</b>]</action>", "search[red <b>shoes</b>]"),
        ("<think><action>open</think><action>look</action>", "look"),
    ],
)
def test_an_answer_is_read(reply: str, action: str) -> None:
    assert parse_action(reply) == ParsedReply(action)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", Malformed.NO_TAG),
        ("look", Malformed.NO_TAG),
        ("<think>a <action>look</action></think>", Malformed.NO_TAG),
        ("< action>look</ action>", Malformed.NO_TAG),
        ("<action>look", Malformed.UNCLOSED),
        ("look</action>", Malformed.UNCLOSED),
        ("<action><action>look</action>", Malformed.UNCLOSED),
        ("<action>look</action></action>", Malformed.UNCLOSED),
        ("<action>look</action><action>", Malformed.UNCLOSED),
        ("<action>look</action><action>go</action>", Malformed.SEVERAL),
        ("<action>look</action><action></action>", Malformed.SEVERAL),
        ("<action></action>", Malformed.EMPTY),
        ("<action> \n </action>", Malformed.EMPTY),
        ("<think>a<action>look</action>", Malformed.UNCLOSED_THINK),
        ("<think>a</think><think><action>look</action>", Malformed.UNCLOSED_THINK),
    ],
)
def test_a_malformed_reply_has_its_reason(reply: str, reason: Malformed) -> None:
    assert parse_action(reply) == ParsedReply(None, reason)
    assert parse_choice(reply, CANDIDATES) == ParsedChoice(None, None, reason)


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("go to desk 1", 0),
        (" GO  to\tdesk 1 ", 0),
        ("ｇｏ to desk １", 0),
        ("Action 1", 0),
        ("action 2", 1),
        ("2", 1),
        ("B", 1),
        ("b", 1),
        ("3", None),
        ("0", None),
        ("01", None),
        ("C", None),
        ("²", 1),
        ("٢", None),
        ("1.", 0),
        ("1)", 0),
        ("(A)", 0),
        ("[b].", 1),
        ("（Ａ）", 0),
        ("**2**", 1),
        ("`Action 2`", 1),
        ("Action A", 0),
        ("action: B", 1),
        ("Option 2", 1),
        ("**Action 2:** take mug 2 from desk 10", 1),
        ("Action 1: go to desk 1", 0),
        ("Action 1 go to desk 1", 0),
        ("1. go to desk 1", 0),
        ("1 go to desk 1", 0),
        ("1 - go to desk 1", 0),
        ("A: go to desk 1", 0),
        ("(B) take mug 2 from desk 10.", 1),
        ("go to desk 1 (Action 1)", 0),
        ("go to desk 1.", 0),
        ('"go to desk 1"', 0),
        ("“Go to desk 1.”", 0),
        ("**`go to desk 1`**", 0),
        ("- go to desk 1", 0),
        ("-1", None),
        ("1.5", None),
        ("1%", None),
        ("Action 3: go to desk 1", None),
        ("Action 1: look", None),
        ("A: look", None),
        ("not Action 1", None),
        ("take 1 mug", None),
        ("a go to desk 10", None),
        ("2 go to desk 1", None),
        ("go to desk 10", None),
        ("take mug 2 from desk 1", None),
        ("go to desk 1 please", None),
        ("look", None),
    ],
)
def test_a_choice_names_a_candidate_by_text_or_label(answer: str, index: int | None) -> None:
    choice = parse_choice(f"<think>hm</think><action>{answer}</action>", CANDIDATES)
    assert (choice.index, choice.malformed) == (index, None)


@pytest.mark.parametrize(
    "answer",
    [
        "go to desk 1 or take mug 2 from desk 10",
        "Action 1 and Action 2",
        "Actions 1 and 2",
        "go to desk 1, action 2",
        "ACTION 2/ACTION 1",
        "1 or 2",
        "1, 2",
        "A or B",
        "either (a) or (b).",
        "**A** / **B**",
        "Action 2: go to desk 1",
        "1. take mug 2 from desk 10",
        "go to desk 1 (B)",
        "maybe Action 1, maybe Action 2",
    ],
)
def test_naming_both_candidates_is_malformed(answer: str) -> None:
    assert parse_choice(f"<action>{answer}</action>", CANDIDATES).malformed is Malformed.SEVERAL


def test_a_candidate_inside_the_other_is_not_both() -> None:
    assert parse_choice("<action>go to desk 10 now</action>", ["go to desk 1", "go to desk 10"]).malformed is None


def test_a_text_decides_before_a_label() -> None:
    assert parse_choice("<action>2</action>", ["2", "1"]).index == 0
    assert parse_choice("<action>a</action>", ["b", "a"]).index == 1


@pytest.mark.parametrize(
    ("answer", "candidates", "index"),
    [
        ("1", ["5", "1"], 1),
        ("(1)", ["5", "1"], 1),
        ("Action 1", ["5", "1"], 0),
        ("Action 1: 5", ["5", "1"], 0),
        ("A", ["b", "a"], 1),
        ("go.", ["go", "go."], 1),
        ("`go`", ["go", "go."], 0),
        ("`go`", ["go!", "go."], None),
        ("Paris", ["Paris.", "Rome."], 0),
        ("a mug", ["cup", "mug"], None),
        ("2 mugs", ["mugs", "cup"], None),
        ("C", ["x", "y", "z"], 2),
        ("Action 3: z", ["x", "y", "z"], 2),
        ("go to shelf 11.", ["go to shelf 1", "look", "go to shelf 11"], 2),
        ("3. go to shelf 11", ["go to shelf 1", "look", "go to shelf 11"], 2),
        ("4", ["x", "y", "z"], None),
        ("search[red shoes].", ["search[red shoes]", "click[buy now]"], 0),
    ],
)
def test_candidates_that_look_like_labels_or_like_each_other(answer: str, candidates: list[str], index: int) -> None:
    choice = parse_choice(f"<action>{answer}</action>", candidates)
    assert (choice.index, choice.malformed) == (index, None)


@pytest.mark.parametrize(
    ("reply", "thought"),
    [
        ("<think>The mug is on the desk.</think><action>look</action>", True),
        ("prompt opened the tag, and then</think><action>look</action>", True),
        ("<think>我应该先打开冰箱看看</think><action>look</action>", True),
        ("<think></think><action>look</action>", False),
        ("<think> \n </think><action>look</action>", False),
        ("<think>...............</think><action>look</action>", False),
        ("<think>So.</think><action>look</action>", False),
        ("<think><think></think></think><action>look</action>", False),
        ("<think>The mug is on the desk.<action>look</action>", False),
        ("The mug is on the desk. <action>look</action>", False),
        ("", False),
    ],
)
def test_a_thought_has_more_than_a_word(reply: str, thought: bool) -> None:
    assert has_thought(reply) is thought


def test_label_and_text_of_one_candidate_are_one_answer() -> None:
    assert parse_choice("<action>B</action> <action>take mug 2 from desk 10</action>", CANDIDATES).index == 1
    assert parse_choice("<action>A</action> <action>2</action>", CANDIDATES).malformed is Malformed.SEVERAL
    assert parse_choice("<action>A</action> <action>look</action>", CANDIDATES).malformed is Malformed.SEVERAL


def test_a_matched_action_keeps_the_spelling_of_the_list() -> None:
    assert match_action("GO TO desk  1", ["Look", "Go to desk 1"]) == "Go to desk 1"
    assert match_action("go to desk", ["Go to desk 1"]) is None


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_equivalent_spellings_are_equal(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)
    assert normalise(f"  {text}\n") == normalise(text)


PARTS = st.lists(
    st.sampled_from(["<action>", "</action>", "<think>", "</think>", "go to desk 1", "1", "A "]), max_size=12
)


@given(PARTS)
def test_any_reply_gives_an_answer_or_a_reason(parts: list[str]) -> None:
    reply = "".join(parts)
    parsed, choice = parse_action(reply), parse_choice(reply, CANDIDATES)
    assert (parsed.action is None) is (parsed.malformed is not None)
    assert (choice.text is None) is (choice.malformed is not None)
    assert choice.malformed is None or choice.index is None


@given(PARTS)
def test_reasoning_never_changes_the_answer(parts: list[str]) -> None:
    assert parse_action(f"<think>{''.join(parts)}</think><action>look</action>") == ParsedReply("look")


ANSWERS = st.lists(
    st.sampled_from(
        ["go to desk 1", "take mug 2 from desk 10", *"12345abAB.:()[]*\"'`- ", "action ", " or ", "look", "\0", "ß"]
    ),
    max_size=10,
).map("".join)
WRAPPING = st.sampled_from(["{}", "{}.", "({})", "**{}**", "`{}`", '"{}"', "“{}.”", "**{}.**", "- {}", " {} "])


@given(st.one_of(ANSWERS, st.text()), st.lists(ANSWERS, min_size=2, max_size=4))
def test_any_answer_to_any_candidates_is_read(answer: str, candidates: list[str]) -> None:
    choice = parse_choice(f"<action>{answer}</action>", candidates)
    assert choice.index is None or 0 <= choice.index < len(candidates)
    names = list(map(normalise, candidates))
    if normalise(answer) in names and choice.malformed is not Malformed.EMPTY:
        assert choice.index == names.index(normalise(answer)), "a candidate's text decides first"


@given(st.integers(0, 4), WRAPPING, st.sampled_from(["text", "number", "letter", "labelled", "both"]))
def test_no_wrapping_changes_the_candidate(index: int, wrapping: str, way: str) -> None:
    candidates = ["look", "go to desk 1", "go to desk 11", "open desk 1", "search[1 red mug]"]
    ways = {
        "text": candidates[index],
        "number": str(index + 1),
        "letter": "ABCDE"[index],
        "labelled": f"Action {index + 1}",
        "both": f"{index + 1}. {candidates[index]}",
    }
    reply = f"<action>{wrapping.format(ways[way])}</action>"
    assert parse_choice(reply, candidates).index == index


HOSTILE = {
    "open tags": "<action>",
    "closed tags": "</action>",
    "empty answers": "<action></action>",
    "open thoughts": "<think>",
    "thoughts": "<think></think>",
    "half tags": "<actio",
    "answers": "<action>a</action><action>b</action>",
    "combining marks": "\u0315\u0300",
    "marks that decompose": "\u0f73",
    "both candidates": "go to desk 1 take mug 2 from desk 10 ",
    "almost a candidate": "take mug 2 from desk 1",
    "labels": "1 or a, ",
    "label words": "action ",
    "quotes": "\"'*",
    "spaces": " ",
    "ligatures": "\ufdfa",
}


def _seconds(reply: str) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()  # what else the machine does is not counted
        parse_action(reply)
        parse_choice(reply, CANDIDATES)
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_linearly_to_a_megabyte(name: str, wrapped: bool) -> None:
    def reply(size: int) -> str:
        text = HOSTILE[name] * (size // len(HOSTILE[name].encode()))
        return f"<action>{text}</action>" if wrapped else text

    small, large = _seconds(reply(100_000)), _seconds(reply(1_000_000))
    # Ten times the text: quadratic time would be a hundred times as much. A busy machine gets some slack.
    assert large < max(30 * small, 0.05)
    assert large < 3.0
