"""Preference data of every common form, what is rejected and why, and the pairs' way into training."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import data_config, make_tokenizer

from verl_act.data.dataset import ActDataset
from verl_act.data_prep.pairs.check_pairs import check_pairs
from verl_act.data_prep.pairs.import_preferences import import_preferences
from verl_act.data_prep.pairs.preference_messages import UnusableRow
from verl_act.data_prep.pairs.preference_rows import GOAL, Preference, Request, read_preference
from verl_act.errors import ConfigError, DataError
from verl_act.reward_fns.route import compute_score
from verl_act.schema import Turn, read_pairs
from verl_act.settings.data import AuditSettings, PreferencesSettings

ASK, GOOD, BAD = "What is 2 + 2?", "It is 4.", "It is 5."
USER, RIGHT, WRONG = (
    {"role": role, "content": text} for role, text in (("user", ASK), ("assistant", GOOD), ("assistant", BAD))
)
EARLIER = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
EARLIER_TURN = (Turn("Hello.", "Hi."),)
SYSTEM = {"role": "system", "content": "Be short."}
HH = "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: What is 2 + 2?\n\nAssistant:"
GPT_GOOD, GPT_BAD = ({"from": "gpt", "value": text} for text in (GOOD, BAD))
ULTRA = {
    "source": "sharegpt",
    "instruction": ASK,
    "models": ["alpaca-7b", "gpt-4"],
    "completions": [
        {
            "annotations": {"helpfulness": {"Rating": "2", "Rationale": "It is wrong."}},
            "custom_system_prompt": "As an AI assistant, be honest.",
            "model": "alpaca-7b",
            "response": BAD,
            "critique": "Wrong.",
            "fine-grained_score": 2.0,
            "overall_score": 3.0,
        },
        {
            "annotations": {"helpfulness": {"Rating": "5", "Rationale": "It is right."}},
            "custom_system_prompt": "As an AI assistant, be helpful.",
            "model": "gpt-4",
            "response": GOOD,
            "critique": "Good.",
            "fine-grained_score": 4.75,
            "overall_score": 8.5,
        },
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
FORMS: dict[str, dict[str, Any]] = {
    "TRL, standard, explicit prompt": {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
    "TRL, conversational, explicit prompt": {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
    "TRL, conversational, implicit prompt": {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "UltraFeedback binarized": {
        "prompt": ASK,
        "prompt_id": "ab12",
        "chosen": [USER, RIGHT],
        "rejected": [USER, WRONG],
        "messages": [USER, RIGHT],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
    "UltraFeedback": ULTRA,
    "LLaMA-Factory, alpaca": {
        "instruction": "What is",
        "input": "2 + 2?",
        "chosen": GOOD,
        "rejected": BAD,
        "history": [],
        "system": "",
    },
    "LLaMA-Factory, ShareGPT": {
        "conversations": [{"from": "human", "value": ASK}],
        "chosen": GPT_GOOD,
        "rejected": GPT_BAD,
        "tools": "[]",
    },
    "Orca DPO, distilled": {"input": ASK, "chosen": GOOD, "rejected": BAD},
    "Orca DPO": {"system": "", "question": ASK, "chosen": GOOD, "rejected": BAD},
    "content in parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": ASK}]}],
        "images": None,
        "chosen": [RIGHT],
        "rejected": [WRONG],
    },
    "conversations as JSON text": {"chosen": json.dumps([USER, RIGHT]), "rejected": json.dumps([USER, WRONG])},
}
WITH_HISTORY: dict[str, dict[str, Any]] = {
    "HH-RLHF": {"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"},
    "HH-RLHF with a prompt": {"prompt": HH, "chosen": f" {GOOD}".strip(), "rejected": BAD},
    "turns only in the prompt": {"prompt": [*EARLIER, USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "turns before the conversations": {"prompt": EARLIER, "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "turns only in the conversations": {
        "prompt": ASK,
        "chosen": [*EARLIER, USER, RIGHT],
        "rejected": [*EARLIER, USER, WRONG],
    },
    "history": {"instruction": ASK, "history": [["Hello.", "Hi."]], "chosen": GOOD, "rejected": BAD},
    "the prompt as JSON text": {"prompt": json.dumps([*EARLIER, USER]), "chosen": GOOD, "rejected": BAD},
    "LLaMA-Factory, ShareGPT": {
        "conversations": [
            {"from": "human", "value": "Hello."},
            {"from": "gpt", "value": "Hi."},
            {"from": "human", "value": ASK},
        ],
        "chosen": GPT_GOOD,
        "rejected": GPT_BAD,
    },
}


def only(row: Any, most_rejected: int = 1) -> Preference:
    read = read_preference(row, most_rejected)
    assert isinstance(read, Preference)
    return read


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str) -> None:
    preference = only(FORMS[form])
    request = preference.request
    assert (request.goal, request.history, request.message.replace("\n", " ")) == (GOAL, (), ASK)
    assert (preference.chosen, preference.rejected) == (GOOD, (BAD,))


@pytest.mark.parametrize("form", WITH_HISTORY)
def test_earlier_turns_are_part_of_the_request_wherever_they_stand(form: str) -> None:
    preference = only(WITH_HISTORY[form])
    assert preference.request == Request(GOAL, EARLIER_TURN, ASK)
    assert (preference.chosen, preference.rejected) == (GOOD, (BAD,))


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be short.", "prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"prompt": [SYSTEM, USER], "chosen": [RIGHT], "rejected": [WRONG]},
        {"prompt": [SYSTEM, USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        {"prompt": ASK, "chosen": [SYSTEM, USER, RIGHT], "rejected": [SYSTEM, USER, WRONG]},
        {"system": "Be short.", "prompt": ASK, "chosen": [SYSTEM, USER, RIGHT], "rejected": [SYSTEM, USER, WRONG]},
        {"system": "Be short.", **ULTRA},
    ],
)
def test_a_system_message_is_the_task_wherever_it_stands(row: dict[str, Any]) -> None:
    assert only(row).request == Request("Be short.", (), ASK)


def test_which_scored_completions_become_the_pair_is_said() -> None:
    assert only(ULTRA).origin == {
        "scored_by": "overall_score",
        "chosen": {"index": 1, "model": "gpt-4", "score": 8.5},
        "rejected": [{"index": 0, "model": "alpaca-7b", "score": 3.0}],
    }
    completions = [{"response": f"reply {score}", "score": score} for score in (3, 1, 4, 2)]
    preference = only({"instruction": ASK, "completions": completions}, most_rejected=2)
    assert preference.chosen == "reply 4"
    assert preference.rejected == ("reply 1", "reply 2")


PAIR_OF = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
TOOL_CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
TOOL = {"role": "tool", "content": "4"}
IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASK}]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a text", "not an object"),
        ({"prompt": ASK, "completion": GOOD, "label": True}, "unpaired: one reply with a label, as for KTO"),
        ({"prompt": [USER], "completion": [RIGHT], "label": False}, "unpaired"),
        ({"messages": [USER, RIGHT], "label": True}, "unpaired"),
        ({"instruction": ASK, "output": GOOD, "kto_tag": True}, "unpaired"),
        ({"prompt": ASK, "completion": GOOD}, "one reply and no score"),
        ({"prompt": ASK}, "has neither chosen and rejected"),
        ({"text": ASK}, "has neither chosen and rejected"),
        ({"prompt": ASK, "completions": ["2 + 2", "= 4"], "labels": [True, True]}, "stepwise supervision"),
        ({"chosen": f"{ASK} {GOOD}", "rejected": f"{ASK} {BAD}"}, "has no prompt"),
        ({**PAIR_OF, "rejected": " it  is 4. "}, "are the same"),
        ({**PAIR_OF, "rejected": "  "}, "a reply is empty"),
        ({**PAIR_OF, "chosen": 4}, "neither a string nor a list of messages"),
        ({**PAIR_OF, "chosen": [{"role": "assistant"}]}, "a message without text"),
        ({**PAIR_OF, "chosen": [{"content": GOOD}]}, "a message of the role None"),
        ({"chosen": [USER, RIGHT], "rejected": [RIGHT, WRONG]}, "differ before their last message"),
        ({"chosen": f"{HH} {GOOD}", "rejected": f"\n\nHuman: Hm.\n\nAssistant: {BAD}"}, "differ before their last"),
        ({"chosen": [RIGHT, USER], "rejected": [RIGHT, USER]}, "does not end with the assistant"),
        ({**PAIR_OF, "prompt": [RIGHT]}, "take turns"),
        ({"prompt": "What is 3?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, "begins differently"),
        ({**PAIR_OF, "question": "What is 3?"}, "prompt and question differ"),
        ({**PAIR_OF, "input": "Use decimals."}, "has 'input' next to 'prompt'"),
        ({"input": "A sum.", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, "input begins differently"),
        ({**PAIR_OF, "prompt": [{"role": "user", "content": " "}]}, "the last request is empty"),
        ({**PAIR_OF, "prompt": [SYSTEM, USER], "system": "Be long."}, "two different system messages"),
        ({**PAIR_OF, "history": "Hello."}, "history is not a list of pairs"),
        ({**PAIR_OF, "history": [["Hello.", None]]}, "history has a request or a reply that is not a string, or empty"),
        ({**PAIR_OF, "images": [{"bytes": "", "path": "a.png"}]}, "has 'images', which a pair cannot show"),
        ({**PAIR_OF, "tools": '[{"name": "add"}]'}, "has 'tools'"),
        ({**PAIR_OF, "context": "Two is three."}, "has 'context'"),
        ({**PAIR_OF, "prompt": [IMAGE]}, "a part 'image'"),
        ({**PAIR_OF, "chosen": [TOOL_CALL, TOOL, RIGHT], "rejected": [TOOL_CALL, TOOL, WRONG]}, "a call of a tool"),
        ({**PAIR_OF, "prompt": [USER, RIGHT, TOOL]}, "the role 'tool'"),
        ({**PAIR_OF, "rejected": [{**WRONG, "reasoning_content": "Hm."}]}, "'reasoning_content'"),
        ({**PAIR_OF, "chosen": str([USER, RIGHT]), "rejected": str([USER, WRONG])}, "as Python writes them"),
        ({**PAIR_OF, "chosen": f"<think>Easy.</think>{GOOD}"}, "holds <think>, a tag"),
        ({**PAIR_OF, "rejected": f"<action>{BAD}</action>"}, "holds <action>, a tag"),
        ({**PAIR_OF, "score_chosen": 5.0, "score_rejected": 5.0}, "a tie"),
        ({**PAIR_OF, "chosen-rating": 2, "rejected-rating": 4}, "the opposite of chosen and rejected"),
        ({"instruction": ASK, "completions": [{"response": GOOD}]}, "has no score"),
        ({"instruction": ASK, "completions": [{"response": GOOD, "score": "N/A"}]}, "has no score"),
        (
            {"instruction": ASK, "completions": [{"response": GOOD, "score": 1}, {"response": BAD, "score": 1}]},
            "better than all others",
        ),
        (
            {"instruction": ASK, "completions": [{"response": GOOD, "score": 1}, {"response": GOOD, "score": 2}]},
            "the same reply has two scores",
        ),
        (
            {
                "instruction": ASK,
                "completions": [
                    {"response": BAD, "overall_score": 10.0, "fine-grained_score": 1.0},
                    {"response": GOOD, "overall_score": 8.0, "fine-grained_score": 4.5},
                ],
            },
            "overall_score and fine-grained_score disagree",
        ),
        ({**PAIR_OF, "rejected": "\ud800"}, "not valid Unicode"),
        ({"instruction": ASK, "completions": [{"response": GOOD, "score": 10**400}]}, "has no score"),
        ({"instruction": ASK, "completions": []}, "better than all others"),
    ],
)
def test_a_row_that_gives_no_pair_says_why(row: Any, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read_preference(row)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_subnormal=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "response", "score", "text", "from", "value", "images"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
_COLUMNS = (
    *("prompt", "chosen", "rejected", "instruction", "completions", "input"),
    *("system", "history", "messages", "response", "score", "label"),
)


@given(st.dictionaries(st.sampled_from(_COLUMNS), _JSON))
@example({"prompt": "x", "completions": False})
@example({"prompt": "x", "completions": "some text"})
def test_no_row_breaks_the_importer(row: dict[str, Any]) -> None:
    try:
        read = read_preference(row)
    except UnusableRow:
        return
    if isinstance(read, Preference):
        assert read.chosen.strip() and all(reply.strip() for reply in read.rejected)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_imported_pairs_pass_the_audit_and_train(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{number} plus 1?", "chosen": f"it is {number + 1}", "rejected": f"it is {number}"}
        for number in range(9)
    ]
    first = write(tmp_path / "a.jsonl", [*rows, {"prompt": "x", "chosen": "y"}, rows[0]])
    second = write(tmp_path / "b.parquet", [FORMS["TRL, conversational, implicit prompt"]])
    manifest = import_preferences(PreferencesSettings(files=[first, second]), tmp_path / "out")
    assert manifest.counts["pairs"] == 10
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert listed == [
        {
            "file": str(first),
            "row": 9,
            "reason": "has neither chosen and rejected, nor completions, nor a reply with a score",
        },
        {"file": str(first), "row": 10, "reason": "the same pair came before"},
    ]
    path = str(tmp_path / "out" / "pairs.parquet")
    assert not [finding for finding in check_pairs(AuditSettings(pairs=[path])).errors if finding.check != "length"]
    config = data_config({"template_options": {"choose_by_number": True}})
    row = ActDataset(data_files=path, tokenizer=make_tokenizer(), config=config)[0]
    assert row["data_source"] == "act/preference/choice"
    assert "by its number alone" in row["raw_prompt"][0]["content"]
    assert "Admissible actions" not in row["raw_prompt"][0]["content"]
    place = row["extra_info"]["expert_position"] + 1
    arguments = (row["reward_model"]["ground_truth"], row["extra_info"])
    assert compute_score(row["data_source"], f"<action>{place}</action>", *arguments)["acc"] == 1.0
    assert compute_score(row["data_source"], f"<action>{3 - place}</action>", *arguments)["score"] == 0.0


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hh_rlhfs_compressed_file_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl.gz"
    rows = [WITH_HISTORY["HH-RLHF"], {"chosen": f"{HH} Four.", "rejected": f"{HH}"}]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\r\n" for row in rows).encode("utf-8-sig")))
    assert import_preferences(PreferencesSettings(files=[path]), tmp_path / "out").counts["pairs"] == 1
    (pair,) = read_pairs([tmp_path / "out" / "pairs.parquet"])
    assert (pair.context.history, pair.context.observation, pair.expert_action) == (EARLIER_TURN, ASK, GOOD)


def test_rows_with_one_score_each_make_a_pair_of_a_request(tmp_path: Path) -> None:
    """HelpSteer: several replies to a prompt, one a row, with the scores of people; earlier turns are in the prompt."""
    prompt = f"Hello.\n<extra_id_1>Assistant\nHi.\n<extra_id_1>User\n{ASK}"

    def rated(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
        scores = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **scores}

    rows = [
        rated(prompt, "It is 3.", 1),
        rated(prompt, GOOD, 4),
        rated(prompt, BAD, 0),
        rated("A tie?", "Yes.", 3),
        rated("A tie?", "No.", 3),
        rated("Alone?", "Yes.", 3),
    ]
    manifest = import_preferences(PreferencesSettings(files=[write(tmp_path / "rows.jsonl", rows)]), tmp_path / "out")
    (pair,) = read_pairs([tmp_path / "out" / "pairs.parquet"])
    assert (pair.context.history, pair.context.observation) == (EARLIER_TURN, ASK)
    assert (pair.expert_action, pair.alternative_action) == (GOOD, BAD)
    (source,) = read_lines(tmp_path / "out" / "sources.jsonl")
    assert (source["pair_id"], source["row"], source["scored_by"]) == (pair.pair_id, 1, "helpfulness")
    assert [reply["index"] for reply in source["rejected"]] == [2]
    assert manifest.counts["pairs_by_score"] == {"helpfulness": 1}
    reasons = {row["row"]: row["reason"] for row in read_lines(tmp_path / "out" / "rejected.jsonl")}
    assert reasons == {
        0: "is neither the best reply to its request nor one of the worst",
        3: "no reply is better than all others",
        4: "no reply is better than all others",
        5: "is the only reply to its request",
    }
    three = import_preferences(PreferencesSettings(files=[tmp_path / "rows.jsonl"], candidates=3), tmp_path / "three")
    assert three.counts["rejected"] == 3


def test_rows_that_contradict_each_other_are_all_rejected(tmp_path: Path) -> None:
    opposite = {"prompt": ASK, "chosen": BAD, "rejected": GOOD}
    other = {"prompt": "Another?", "chosen": BAD, "rejected": GOOD}
    first = write(tmp_path / "a.jsonl", [PAIR_OF, other])
    second = write(tmp_path / "b.parquet", [opposite])
    manifest = import_preferences(PreferencesSettings(files=[first, second]), tmp_path / "out")
    assert manifest.counts["pairs"] == 1
    assert manifest.counts["rejected_by_reason"] == {"another row labels the same two replies the other way": 2}


def test_every_row_of_a_group_that_is_rejected_is_named(tmp_path: Path) -> None:
    def rated(response: str, helpfulness: int) -> dict[str, Any]:
        scores = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
        return {"prompt": ASK, "response": response, "helpfulness": helpfulness, **scores}

    first = write(tmp_path / "a.jsonl", [rated(GOOD, 1), rated(BAD, 4)])
    second = write(tmp_path / "b.jsonl", [rated(GOOD, 4), rated(BAD, 1)])
    kept = write(tmp_path / "c.jsonl", [PAIR_OF | {"prompt": "Another?"}])
    manifest = import_preferences(PreferencesSettings(files=[first, second, kept]), tmp_path / "out")
    assert (manifest.counts["pairs"], manifest.counts["rejected"]) == (1, 4)
    rejected = [(row["file"], row["row"]) for row in read_lines(tmp_path / "out" / "rejected.jsonl")]
    assert rejected == [(str(first), 0), (str(first), 1), (str(second), 0), (str(second), 1)]


def test_the_same_prompt_is_the_same_task_in_every_file(tmp_path: Path) -> None:
    for name, rejected in (("one", BAD), ("two", "No idea.")):
        rows = [{"prompt": ASK, "chosen": GOOD, "rejected": rejected}]
        import_preferences(
            PreferencesSettings(files=[write(tmp_path / f"{name}.jsonl", rows)], split=name), tmp_path / name
        )
    one, two = (read_pairs([tmp_path / name / "pairs.parquet"])[0] for name in ("one", "two"))
    assert one.task_id == two.task_id and one.pair_id != two.pair_id


def test_lines_and_an_array_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    row = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
    for name, text in {"lines.json": f"{row}\n", "array.json": f" [{row}]", "array.jsonl": f"[{row}]"}.items():
        (tmp_path / name).write_text(text)
        assert import_preferences(PreferencesSettings(files=[tmp_path / name]), tmp_path / "out").counts["pairs"] == 1


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    cases = {
        "missing.jsonl": (None, ""),
        "text.csv": ("a,b", "parquet"),
        "cut.jsonl": ('{"prompt": "a"}\n{"prompt', "line 2"),
        "cut.json": ('[{"prompt": "a"}, {"pro', "line 1"),
        "number.json": ("7", ""),
        "cut.parquet": ("PAR1", ""),
        "empty.jsonl": ("", ""),
    }
    for name, (text, reason) in cases.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}\\b.*{reason}"):
            import_preferences(PreferencesSettings(files=[tmp_path / name]), tmp_path / "out")
    with pytest.raises(ConfigError, match="candidates is 1"):
        import_preferences(PreferencesSettings(files=[], candidates=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "ultra.jsonl", [ULTRA])
    command = [sys.executable, "-m", "verl_act", "data", "preferences", "--out", str(tmp_path / "out"), str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "pairs 1" in shown.stdout
