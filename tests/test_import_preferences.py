"""Preference data of every common form, what is rejected and why, and the pairs' way into training."""

from __future__ import annotations

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
from verl_act.data_prep.check_pairs import check_pairs
from verl_act.data_prep.import_preferences import import_preferences
from verl_act.data_prep.preference_rows import GOAL, Unusable, read_preference
from verl_act.errors import ConfigError, DataError
from verl_act.reward_fns.route import compute_score
from verl_act.schema import Turn, read_pairs

ASK, GOOD, BAD = "What is 2 + 2?", "It is 4.", "It is 5."
USER, RIGHT, WRONG = (
    {"role": role, "content": text} for role, text in (("user", ASK), ("assistant", GOOD), ("assistant", BAD))
)
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
    "messages": {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
    "whole conversations": {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "both, as in UltraFeedback binarized": {"prompt": ASK, "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "scored completions, as in UltraFeedback": {
        "instruction": ASK,
        "completions": [{"response": BAD, "overall_score": 1.0}, {"response": GOOD, "overall_score": 8.5}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str) -> None:
    preference = read_preference(FORMS[form])
    assert (preference.goal, preference.history, preference.request) == (GOAL, (), ASK)
    assert (preference.chosen, preference.rejected) == (GOOD, (BAD,))


def test_a_conversation_keeps_its_system_message_and_history() -> None:
    prompt = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        USER,
    ]
    preference = read_preference({"prompt": prompt, "chosen": [RIGHT], "rejected": [WRONG]})
    assert preference.goal == "Be short."
    assert preference.history == (Turn("Hello.", "Hi."),)
    assert preference.request == ASK


def test_scored_completions_give_several_candidates() -> None:
    completions = [{"response": f"reply {score}", "score": score} for score in (3, 1, 4, 2)]
    preference = read_preference({"instruction": ASK, "completions": completions}, most_rejected=2)
    assert preference.chosen == "reply 4"
    assert preference.rejected == ("reply 1", "reply 2")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a text", "not an object"),
        ({"prompt": ASK, "completion": GOOD, "label": True}, "has neither chosen and rejected"),
        ({"chosen": GOOD, "rejected": BAD}, "has no prompt"),
        ({"prompt": ASK, "chosen": GOOD, "rejected": " it  is 4. "}, "are the same"),
        ({"prompt": ASK, "chosen": GOOD, "rejected": "  "}, "a reply is empty"),
        ({"prompt": ASK, "chosen": 4, "rejected": BAD}, "neither a text nor a list of messages"),
        ({"prompt": ASK, "chosen": [{"role": "assistant"}], "rejected": BAD}, "a message without text"),
        ({"chosen": [USER, RIGHT], "rejected": [RIGHT, WRONG]}, "differ before their last message"),
        ({"chosen": [RIGHT, USER], "rejected": [RIGHT, USER]}, "does not end with the assistant"),
        ({"prompt": [RIGHT], "chosen": GOOD, "rejected": BAD}, "take turns"),
        ({"instruction": ASK, "completions": [{"response": GOOD}]}, "has no score"),
        ({"instruction": ASK, "completions": [{"response": GOOD, "score": "N/A"}]}, "has no score"),
        (
            {"instruction": ASK, "completions": [{"response": GOOD, "score": 1}, {"response": BAD, "score": 1}]},
            "better than all others",
        ),
        ({"prompt": ASK, "chosen": GOOD, "rejected": "\ud800"}, "not valid Unicode"),
        ({"instruction": ASK, "completions": [{"response": GOOD, "score": 10**400}]}, "has no score"),
        ({"instruction": ASK, "completions": []}, "better than all others"),
    ],
)
def test_a_row_that_gives_no_pair_says_why(row: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_preference(row)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_subnormal=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "response", "score", "text"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "instruction", "completions"]), _JSON))
@example({"prompt": "x", "completions": False})
@example({"prompt": "x", "completions": "some text"})
def test_no_row_breaks_the_importer(row: dict[str, Any]) -> None:
    try:
        preference = read_preference(row)
    except Unusable:
        return
    assert preference.chosen.strip() and all(reply.strip() for reply in preference.rejected)


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
    second = write(tmp_path / "b.parquet", [FORMS["whole conversations"]])
    manifest = import_preferences(tmp_path / "out", [first, second])
    assert manifest.counts["pairs"] == 10
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert listed == [
        {"file": str(first), "row": 9, "reason": "has neither chosen and rejected nor completions"},
        {"file": str(first), "row": 10, "reason": "the same pair came before"},
    ]
    path = str(tmp_path / "out" / "pairs.parquet")
    assert not [finding for finding in check_pairs([path]).errors if finding.check != "length"]
    config = data_config({"template_options": {"choose_by_number": True}})
    row = ActDataset(data_files=path, tokenizer=make_tokenizer(), config=config)[0]
    assert row["data_source"] == "act/preference/choice"
    assert "by its number alone" in row["raw_prompt"][0]["content"]
    assert "Admissible actions" not in row["raw_prompt"][0]["content"]
    place = row["extra_info"]["expert_position"] + 1
    arguments = (row["reward_model"]["ground_truth"], row["extra_info"])
    assert compute_score(row["data_source"], f"<action>{place}</action>", *arguments)["acc"] == 1.0
    assert compute_score(row["data_source"], f"<action>{3 - place}</action>", *arguments)["score"] == 0.1


def test_the_same_prompt_is_the_same_task_in_every_file(tmp_path: Path) -> None:
    for name, rejected in (("one", BAD), ("two", "No idea.")):
        rows = [{"prompt": ASK, "chosen": GOOD, "rejected": rejected}]
        import_preferences(tmp_path / name, [write(tmp_path / f"{name}.jsonl", rows)], split=name)
    one, two = (read_pairs([tmp_path / name / "pairs.parquet"])[0] for name in ("one", "two"))
    assert one.task_id == two.task_id and one.pair_id != two.pair_id


def test_lines_and_an_array_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    row = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
    for name, text in {"lines.json": f"{row}\n", "array.json": f" [{row}]", "array.jsonl": f"[{row}]"}.items():
        (tmp_path / name).write_text(text)
        assert import_preferences(tmp_path / "out", [tmp_path / name]).counts["pairs"] == 1


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    cases = {
        "missing.jsonl": (None, "no such file"),
        "text.csv": ("a,b", "is neither"),
        "cut.jsonl": ('{"prompt": "a"}\n{"prompt', "line 2: is not JSON"),
        "cut.json": ('[{"prompt": "a"}, {"pro', "line 1: is not JSON"),
        "number.json": ("7", "not an object with named fields"),
        "cut.parquet": ("PAR1", "not a whole parquet file"),
        "empty.jsonl": ("", "no rows at all"),
    }
    for name, (text, reason) in cases.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}\\b.*{reason}"):
            import_preferences(tmp_path / "out", [tmp_path / name])
    with pytest.raises(ConfigError, match="candidates is 1"):
        import_preferences(tmp_path / "out", [], candidates=1)
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "ultra.jsonl", [FORMS["scored completions, as in UltraFeedback"]])
    command = [sys.executable, "-m", "verl_act", "import-preferences", "--out", str(tmp_path / "out"), str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["pairs"] == 1
