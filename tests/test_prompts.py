"""What the templates show, and what they must not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from samples import make_context, make_pair

from verl_act.data_prep.pairs.giveaways import label_word
from verl_act.errors import ConfigError
from verl_act.prompts import Message, Template, get_template, register_template, template_names
from verl_act.prompts.compact import CompactTemplate
from verl_act.prompts.shortened import choice_context, shortened
from verl_act.schema import Context, Turn

NAMES = ("compact", "cot", "plain")
CANDIDATES = ["look", "take mug 0 from desk 1"]


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_hold_the_whole_context_verbatim(name: str) -> None:
    context, template = make_context(), get_template(name)
    choice = _text(get_template(name, admissible_in_choice=True).choice_messages(context, CANDIDATES))
    for text in (_text(template.action_messages(context)), choice):
        assert context.goal in text
        assert context.observation in text
        assert all(turn.observation in text and turn.action in text for turn in context.history)
        assert all(action in text for action in context.admissible_actions)
        assert "<action>" in text or name == "compact"


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_shown_in_the_given_order(name: str) -> None:
    context = replace(make_context(), admissible_actions=())
    for candidates in (CANDIDATES, CANDIDATES[::-1]):
        text = _text(get_template(name).choice_messages(context, candidates))
        question = text[text.rindex(context.observation) :]
        assert question.index(candidates[0]) < question.index(candidates[1])


@pytest.mark.parametrize("name", NAMES)
def test_history_length_cuts_the_oldest_turns(name: str) -> None:
    turns = tuple(Turn(f"observation number {number}.", f"action number {number}") for number in range(5))
    context = replace(make_context(), history=turns)
    for length, shown in ((None, 5), (0, 0), (2, 2), (9, 5)):
        text = _text(get_template(name, history_length=length).action_messages(context))
        assert [turn.action in text for turn in turns] == [False] * (5 - shown) + [True] * shown


@pytest.mark.parametrize("name", NAMES)
def test_a_short_list_is_drawn_from_the_state_alone(name: str) -> None:
    actions = tuple(f"take mug {number} from desk 1" for number in range(200))
    context, template = replace(make_context(), admissible_actions=actions), get_template(name, max_listed=20)

    def listed(text: str) -> list[str]:
        parts = (
            text.rpartition("can : ")[2].partition("\n")[0].split(" | ") if name == "compact" else text.split("\n- ")
        )
        return [action for action in actions if action in (part.partition("\n")[0] for part in parts)]

    drawn = listed(_text(template.action_messages(context)))
    assert len(drawn) == 20 and drawn != list(actions[:20])
    assert listed(template.followup(context.observation, actions)) == drawn
    unlisted = [action for action in actions if action not in drawn][:2]
    for candidates in (unlisted, [unlisted[0], drawn[0]]):
        shown = listed(_text(template.choice_messages(context, candidates)))
        assert len(shown) == 20 and set(candidates) < set(shown)
        assert shown == listed(_text(template.choice_messages(context, candidates[::-1])))
    assert not {drawn[0], unlisted[0]} & set(listed(_text(template.choice_messages(context, [drawn[0], "fly"]))))
    assert drawn[0] not in listed(_text(template.choice_messages(context, ["fly", drawn[0]])))


def test_a_short_list_keeps_its_length_and_kinds_whatever_the_candidates() -> None:
    actions = [f"{kind} a{number:02} to b" for kind in ("move", "pour") for number in range(50)]
    actions += ["open a", "open b", "wait"]
    for candidates in (["move a03 to b", "pour a04 to b"], ["move a03 to b", "open a"], ["wait", "pour a04 to b"]):
        short = shortened(actions, 20, candidates)
        assert Counter(action.split()[0] for action in short) == {"move": 9, "pour": 8, "open": 2, "wait": 1}
        assert set(candidates) < set(short)
    assert "wait" not in shortened(actions, 20, ["wait", "fly"]) and len(shortened(actions, 20, ["wait", "fly"])) == 20
    assert sorted(shortened(actions, 2, ["move a03 to b", "wait"])) == ["move a03 to b", "wait"]
    assert set(shortened(actions, 3, ["move a03 to b", "move a04 to b"])) > {"move a03 to b", "move a04 to b"}


def test_admissible_candidates_are_listed_like_any_other() -> None:
    """WebShop lists one search of all: usually the expert's."""
    searches, first = ["search[blue mug]", "search[mug]"], []
    for number in range(200):
        context = replace(make_context(), admissible_actions=(f"search[blue mug {number}]",))
        candidates = [f"search[blue mug {number}]", "search[mug]"]
        listed = choice_context(context, candidates, [True, True]).admissible_actions
        assert sorted(listed) == sorted(candidates)
        assert listed == choice_context(context, candidates[::-1], [True, True]).admissible_actions
        first.append(listed.index("search[mug]"))
    assert 70 < sum(first) < 130
    context = replace(make_context(), admissible_actions=("open a", "open c", "wait"))
    assert choice_context(context, ["open b", "fly"], [True, False]).admissible_actions == (
        *("open a", "open b", "open c"),
        "wait",
    )
    assert choice_context(context, ["wait", "fly"], [True, False]) == context
    unknown = replace(context, admissible_actions=())
    assert choice_context(unknown, searches, [True, True]) == unknown


def test_a_short_list_keeps_rare_kinds_and_no_inadmissible_candidate() -> None:
    actions = [f"move a{at:02} to b" for at in range(50)] + ["open a", "open b", "wait"]
    short = shortened(actions, 8, ["fly"])
    assert short[5:] == ("open a", "open b", "wait") and len(set(short)) == 8 and set(short) < set(actions)
    assert shortened(actions, 100) == tuple(actions) and len(shortened(actions, 2)) == 2
    assert len({shortened([*actions, f"look {at}"], 8) for at in range(5)}) == 5, "each state draws its own"


def test_only_cot_asks_for_reasoning() -> None:
    asks = {name: "<think>" in _text(get_template(name).action_messages(make_context())) for name in NAMES}
    assert asks == {"compact": False, "cot": True, "plain": False}


@pytest.mark.parametrize("name", NAMES)
def test_a_followup_continues_the_first_prompt(name: str) -> None:
    template, context = get_template(name), make_context()
    text = template.followup("Nothing happens.", ["look", "inventory"])
    assert "Nothing happens." in text
    assert "look" in text and "inventory" in text
    assert _text(template.action_messages(context)).splitlines()[-1] == text.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_no_template_names_a_label(name: str) -> None:
    assert label_word(make_pair(), get_template(name)) is None


def test_compact_asks_both_questions_about_the_same_text() -> None:
    template, context = get_template("compact"), make_context()
    action = _text(template.action_messages(context)).splitlines()
    choice = _text(template.choice_messages(context, CANDIDATES)).splitlines()
    assert action[:-1] == choice[:-1]
    assert choice[-1] == f"pick : {' | '.join(CANDIDATES)}"
    assert len(template.action_messages(context)) == 1


def test_compact_adds_few_words() -> None:
    context = make_context()
    own = " ".join([context.goal, context.observation, *context.admissible_actions, *sum(context.history, ())]).split()
    added = len(_text(get_template("compact").action_messages(context)).split()) - len(own)
    assert added <= 4 + 4 * len(context.history) + 2 + len(context.admissible_actions) + 2


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"compact, cot, (json, )?plain"):
        get_template("nope")
    with pytest.raises(ConfigError, match="colour"):
        get_template("cot", colour="red")
    with pytest.raises(ConfigError, match="history_length is -1"):
        get_template("compact", history_length=-1)
    with pytest.raises(ConfigError, match="max_listed is 0"):
        get_template("plain", max_listed=0)


def test_a_package_can_bring_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point, which every process finds."""
    metadata = tmp_path / "polite-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: polite\nVersion: 1.0\n")
    points = "[verl_act.templates]\npolite = polite_template:Polite\nbroken = polite_template:Rude\n"
    (metadata / "entry_points.txt").write_text(points)
    (tmp_path / "polite_template.py").write_text(
        "from verl_act.prompts.compact import CompactTemplate\nclass Polite(CompactTemplate):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"polite", "compact"} <= set(template_names())
    assert get_template("polite", history_length=2).history_length == 2
    with pytest.raises(ConfigError, match=r"'broken'"):
        get_template("broken")


@pytest.mark.parametrize("name", ["cot", "plain"])
def test_a_state_without_a_list_is_asked_for_any_action(name: str) -> None:
    context = replace(make_context(), admissible_actions=())
    template = get_template(name)
    asked = [_text(template.action_messages(context)), template.followup("You see.", ())]
    assert all("dmissible" not in text and "give exactly one action inside" in text for text in asked)
    assert "dmissible" not in _text(template.choice_messages(context, ["look", "wait"]))
    hidden = get_template(name, admissible_in_action=False, instructions="Actions are words.")
    text = _text(hidden.action_messages(make_context()))
    assert "dmissible" not in text and text.index("Actions are words.") < text.index("Your task:")


def test_a_third_party_can_register_a_template() -> None:
    class Shouting(CompactTemplate):
        def action_messages(self, context: Context) -> list[Message]:
            return [{"role": "user", "content": context.goal.upper()}]

    register_template("shouting", Shouting)
    register_template("shouting", Shouting)  # a module may be imported twice
    assert "shouting" in template_names()
    template: Template = get_template("shouting", history_length=1)
    assert _text(template.action_messages(make_context())) == "PUT SOME MUG 0 ON SHELF 1."
    with pytest.raises(ConfigError, match="shouting"):
        register_template("shouting", CompactTemplate)
