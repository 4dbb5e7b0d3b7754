"""The reward tiers, and the routing of mixed batches, called as verl calls them."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_tokenizer

from verl_act.errors import ConfigError, DataError
from verl_act.reward_fns import action, choice, tiers
from verl_act.reward_fns.route import compute_score

EXPERT = "take mug 2 from desk 1"
OTHER = "go to shelf 1"
INFO: dict[str, Any] = {"candidates": [OTHER, EXPERT], "admissible_actions": [OTHER, EXPERT, "look"]}
ACCURATE, ADMISSIBLE, NEITHER, MALFORMED = (
    {"score": 1.0, "acc": 1.0, "adm": 0.0, "fmt": 0.0},
    {"score": 0.1, "acc": 0.0, "adm": 1.0, "fmt": 0.0},
    {"score": 0.0, "acc": 0.0, "adm": 0.0, "fmt": 0.0},
    {"score": -0.5, "acc": 0.0, "adm": 0.0, "fmt": 1.0},
)


def tier(score: dict[str, float]) -> dict[str, float]:
    """What the reply earned, whether it reasons or not."""
    return {key: value for key, value in score.items() if key != "thought"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (EXPERT, ACCURATE),
        (EXPERT.upper(), ACCURATE),
        ("2", ACCURATE),
        ("Action 2", ACCURATE),
        ("B", ACCURATE),
        (OTHER, ADMISSIBLE),
        ("A", ADMISSIBLE),
        ("LOOK", ADMISSIBLE),
        ("fly to the moon", NEITHER),
        ("3", NEITHER),
        ("", MALFORMED),
        (f"{OTHER} or {EXPERT}", MALFORMED),
    ],
)
def test_choice_tiers(answer: str, expected: dict[str, float]) -> None:
    reply = f"<think>The mug is here.</think><action>{answer}</action>"
    assert choice.compute_score("act/alfworld/choice", reply, EXPERT, INFO) == {**expected, "thought": 1.0}


# An answer and what it earns: of two candidates, and of three. The expert's action is the second.
SPELLINGS = [
    *(
        (spelling, ACCURATE, ACCURATE)
        for spelling in (EXPERT, f"{EXPERT}.", f'"{EXPERT}"', f"**{EXPERT}**", f"`{EXPERT}`")
    ),
    *(
        (spelling, ACCURATE, ACCURATE)
        for spelling in ("2", "2.", "2)", "(2)", "B", "b.", "(B)", "**B**", "Action 2", "Action B")
    ),
    *(
        (spelling.format(EXPERT), ACCURATE, ACCURATE)
        for spelling in ("Action 2: {}", "2. {}", "B: {}", "(B) {}.", "{} (2)")
    ),
    *(
        (spelling.format(OTHER), ADMISSIBLE, ADMISSIBLE)
        for spelling in ("{}", "{}.", "'{}'", "Action 1: {}", "1. {}", "A) {}")
    ),
    *((spelling, ADMISSIBLE, ADMISSIBLE) for spelling in ("1", "A", "(A)", "Action A", "LOOK")),
    *((spelling, NEITHER, NEITHER) for spelling in ("fly to the moon", "0", "4", "D", "Action 1: fly", "look.", "2.5")),
    *((spelling, NEITHER, NEITHER) for spelling in ("not Action 2", "Action 2 would be best")),
    *((spelling, NEITHER, ADMISSIBLE) for spelling in ("3", "C", "(C)", "Action 3: open drawer 1", "open drawer 1.")),
    *(
        (spelling, MALFORMED, MALFORMED)
        for spelling in ("", "1 or 2", "A or B", "Action 1 and Action 2", "A/B", "1, 2")
    ),
    *((spelling, MALFORMED, MALFORMED) for spelling in (f"Action 1: {EXPERT}", f"2. {OTHER}", f"{OTHER} or {EXPERT}")),
    ("2 or 3", NEITHER, MALFORMED),
]


@pytest.mark.parametrize(("answer", "of_two", "of_three"), SPELLINGS, ids=[answer for answer, *_ in SPELLINGS])
def test_a_candidate_is_recognised_by_what_names_it_alone(
    answer: str, of_two: dict[str, float], of_three: dict[str, float]
) -> None:
    reply = f"<action>{answer}</action>"
    assert tier(choice.compute_score("act/alfworld/choice", reply, EXPERT, INFO)) == of_two
    third = "open drawer 1"
    info = {"candidates": [*INFO["candidates"], third], "admissible_actions": [*INFO["admissible_actions"], third]}
    assert tier(choice.compute_score("act/alfworld/choice", reply, EXPERT, info)) == of_three


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_no_reply_raises(reply: str, candidates: list[str]) -> None:
    info = {"candidates": candidates, "admissible_actions": candidates[:1]}
    for kind in ("choice", "action"):
        for whole in (reply, f"<action>{reply}</action>"):
            score = compute_score(f"act/alfworld/{kind}", whole, candidates[-1], info)
            assert score["score"] in (1.0, 0.1, 0.0, -0.5) and tuple(score) == tiers.KEYS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(EXPERT, ACCURATE), (f" {EXPERT.title()} ", ACCURATE), (OTHER, ADMISSIBLE), ("2", NEITHER), ("", MALFORMED)],
)
def test_action_tiers(answer: str, expected: dict[str, float]) -> None:
    reply = f"<think>The mug is here.</think><action>{answer}</action>"
    assert action.compute_score("act/alfworld/action", reply, EXPERT, INFO) == {**expected, "thought": 1.0}


@pytest.mark.parametrize("answer", [f'"{EXPERT}"', f"{EXPERT}.", f"**{EXPERT}**"])
def test_an_action_must_be_as_the_environment_takes_it(answer: str) -> None:
    score = action.compute_score("act/alfworld/action", f"<action>{answer}</action>", EXPERT, INFO)
    assert tier(score) == NEITHER


@pytest.mark.parametrize("source", ["act/alfworld/choice", "act/alfworld/action", "openai/gsm8k"])
def test_the_thought_is_counted_whatever_the_reply_earns(source: str) -> None:
    def thought(reply: str, **info: Any) -> float:
        return compute_score(source, reply, EXPERT, {**INFO, **info})["thought"]

    assert thought("<think>The mug is on the desk.</think> #### 3 <action>2</action>") == 1.0
    assert thought("<think>The mug is on the desk.</think>") == 1.0
    assert thought("<think>\n\n</think><action>2</action>") == 0.0
    assert thought("<action>2</action>") == 0.0


@pytest.mark.parametrize(
    ("source", "answer", "expected"),
    [
        ("act/webshop/action", "search[blue teapot]", ADMISSIBLE),
        ("act/webshop/action/test/not_inferable", "search[blue teapot]", ADMISSIBLE),
        ("act/webshop/action", "search[ ]", ADMISSIBLE),  # a blank search finds nothing, but is taken
        ("act/webshop/action", "search[blue teapot].", ADMISSIBLE),  # what follows the bracket is left out, as there
        ("act/webshop/action", "a search[blue teapot]", NEITHER),
        ("act/webshop/action", "click[blue teapot]", NEITHER),
        ("act/alfworld/action", "search[blue teapot]", NEITHER),
        ("act/not_installed/action", "search[blue teapot]", NEITHER),
    ],
)
def test_any_search_is_admissible_in_webshop(source: str, answer: str, expected: dict[str, float]) -> None:
    info = {"candidates": ["search[teapot]", "click[back to search]"], "admissible_actions": ["click[back to search]"]}
    reply = f"<action>{answer}</action>"
    assert tier(action.compute_score(source, reply, "search[teapot]", info)) == expected
    assert tier(choice.compute_score(source.replace("action", "choice"), reply, "search[teapot]", info)) == expected


def test_an_alternative_that_the_environment_refuses_earns_nothing() -> None:
    """The flag of the pair file decides; where rows have none, the list does."""
    info = {"candidates": [EXPERT, "fly"], "admissible_actions": [EXPERT]}
    for answer in ("fly", "2", "B", "Action 2: fly"):
        reply = f"<action>{answer}</action>"
        assert tier(choice.compute_score("act/alfworld/choice", reply, EXPERT, info)) == NEITHER
        for flags, expected in (([True, False], NEITHER), ([True, True], ADMISSIBLE), (np.array([1, 0]), NEITHER)):
            flagged = {**info, "candidates_admissible": flags}
            assert tier(choice.compute_score("act/alfworld/choice", reply, EXPERT, flagged)) == expected


@pytest.mark.parametrize("kind", [list, tuple, lambda texts: np.array(texts, dtype=object), np.array])
def test_lists_arrive_in_any_form(kind: Any) -> None:
    info = {name: kind(texts) for name, texts in INFO.items()}
    for answer, expected in ((EXPERT, ACCURATE), ("look", ADMISSIBLE), ("fly", NEITHER)):
        assert tier(compute_score("act/alfworld/choice", f"<action>{answer}</action>", EXPERT, info)) == expected


def test_tiers_can_be_set_from_the_configuration() -> None:
    def score(answer: str) -> float:
        reply = f"<action>{answer}</action>"
        return compute_score("act/alfworld/choice", reply, EXPERT, INFO, acc=2.0, adm=0.0, fmt=-1.0)["score"]

    assert [score(answer) for answer in (EXPERT, OTHER, "")] == [2.0, 0.0, -1.0]


def test_a_mixed_batch_is_scored_with_the_same_keys() -> None:
    batch = [
        ("act/alfworld/choice", "<action>2</action>", EXPERT, INFO),
        ("act/webshop/action", f"<action>{EXPERT}</action>", EXPERT, INFO),
        ("openai/gsm8k", "so #### 42", "42", {}),
        ("openai/gsm8k", "so #### 41", "42", None),
        ("math_dapo", "Answer: 7", "7", {}),
    ]
    scores = [
        compute_score(data_source=source, solution_str=reply, ground_truth=truth, extra_info=info)
        for source, reply, truth, info in batch
    ]
    assert [score["score"] for score in scores] == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert [score["acc"] for score in scores] == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert {tuple(score) for score in scores} == {tiers.KEYS}
    assert all(isinstance(value, float) for score in scores for value in score.values())
    assert "reward" not in tiers.KEYS  # verl keeps that name for itself


def test_an_episode_brings_its_own_outcome() -> None:
    info = {"episode_reward": 0.75, "episode": {"success": 1.0, "steps": 9.0}}
    score = compute_score("act/alfworld/episode", "whatever", "task", info)
    assert tier(score) == {"score": 0.75, "acc": 1.0, "adm": 0.0, "fmt": 0.0, "success": 1.0, "steps": 9.0}
    info["episode"]["thought_share"] = 0.25
    assert compute_score("act/alfworld/episode", "whatever", "task", info)["thought"] == 0.25


def test_rows_that_cannot_be_scored_say_why() -> None:
    with pytest.raises(DataError, match="candidates"):
        compute_score("act/alfworld/choice", "<action>look</action>", EXPERT, {})
    with pytest.raises(DataError, match="admissible_actions"):
        compute_score("act/alfworld/action", "<action>look</action>", EXPERT, None)
    with pytest.raises(DataError, match="act_env"):
        compute_score("act/alfworld/episode", "", "task", {})
    with pytest.raises(ConfigError, match="/choice"):
        compute_score("act/alfworld/other", "", "task", {})
    with pytest.raises(NotImplementedError):
        compute_score("no/such/source", "", "", {})


def test_rows_that_are_not_ours_can_keep_a_reward_of_yours(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(data_source, solution_str, ground_truth, extra_info=None, scale=1):\n"
        "    return {'score': scale * len(solution_str), 'pred': solution_str}\n"
        "async def later(**row): ...\n"
    )
    mine = {"path": str(path), "name": "score"}
    score = compute_score("my/source", "four", "", {}, other=mine, scale=2)
    assert tier(score) == {"score": 8.0, "acc": 8.0, "adm": 0.0, "fmt": 0.0}
    info = {"candidates": ["look", EXPERT], "admissible_actions": ["look"]}
    assert compute_score("act/e/choice", "<action>2</action>", EXPERT, info, other=mine)["score"] == 1.0
    for wrong in ({"path": str(path), "name": "other"}, {"path": "no/such.py", "name": "score"}):
        with pytest.raises(ConfigError, match=wrong["path"]):
            compute_score("my/source", "", "", {}, other=wrong)
    with pytest.raises(ConfigError, match="async"):
        compute_score("my/source", "", "", {}, other={"path": str(path), "name": "later"})


def test_scoring_our_rows_imports_neither_torch_nor_verl() -> None:
    program = (
        "import sys; from verl_act.reward_fns.route import compute_score as score;"
        "score('act/e/choice', '<action>1</action>', 'a', {'candidates': ['a', 'b'], 'admissible_actions': ['a']});"
        "sys.exit('torch' in sys.modules or 'verl' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def _through_verl(rows: list[tuple[str, str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Score replies as verl's reward worker does, from token ids; a row is (source, reply, truth, extra_info)."""
    import torch
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = make_tokenizer(reply for _, reply, _, _ in rows)
    custom = {"path": "pkg://verl_act.reward_fns.route", "name": "compute_score", "reward_kwargs": {"adm": 0.2}}
    reward = {"custom_reward_function": custom, "reward_manager": {"name": "naive", "source": "register"}}
    results = []

    async def score_all() -> None:
        manager = load_reward_manager(OmegaConf.create({"reward": reward}), tokenizer)
        manager.loop = asyncio.get_running_loop()
        for source, reply, truth, info in rows:
            ids = torch.tensor([tokenizer.encode(reply, add_special_tokens=False)])
            tensors = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
            row = {"data_source": source, "reward_model": {"ground_truth": truth}, "extra_info": dict(info)}
            columns = {name: np.array([value]) for name, value in row.items()}
            results.append(await manager.run_single(DataProto(batch=tensors, non_tensor_batch=columns)))

    asyncio.run(score_all())
    return results


def test_verl_scores_and_reports_a_mixed_batch() -> None:
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    rows = [
        ("act/alfworld/choice", f"<think> so </think> <action> {EXPERT} </action>", EXPERT, INFO),
        ("act/alfworld/choice", f"<think> so </think> <action> {OTHER} </action>", EXPERT, INFO),
        ("act/alfworld/choice", "<think> so", EXPERT, INFO),
        ("openai/gsm8k", "so #### 42", "42", {}),
        ("act/alfworld/episode", "whatever", "t", {"episode_reward": 1.0, "episode": {"success": 1.0, "steps": 7.0}}),
    ]
    results = _through_verl(rows)
    assert [result["reward_score"] for result in results] == [1.0, 0.2, -0.5, 1.0, 1.0]
    infos = [result["reward_extra_info"] for result in results]
    columns = {key: [info.get(key) for info in infos] for key in {key for info in infos for key in info}}
    metrics = process_validation_metrics([source for source, *_ in rows], list("abcde"), columns)
    choice_metrics = {name: round(values["mean@1"], 3) for name, values in metrics["act/alfworld/choice"].items()}
    assert choice_metrics == {"score": 0.233, "acc": 0.333, "adm": 0.333, "fmt": 0.333, "thought": 0.0}
    assert metrics["act/alfworld/episode"]["steps"]["mean@1"] == 7.0
    assert metrics["openai/gsm8k"]["acc"]["mean@1"] == 1.0
