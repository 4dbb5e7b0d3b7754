"""Published trajectories, in rows that are made from our own experts' and then spelled and damaged as others' are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published_rows import Row, expert_trajectories, rejections, write
from samples import data_config, embedded_models, make_tokenizer
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.data.dataset import ActDataset
from verl_act.data_prep.imports import published_tasks
from verl_act.data_prep.imports.import_trajectories import REJECTED, TRAJECTORIES, import_trajectories
from verl_act.data_prep.imports.published import Unreadable, read_published
from verl_act.data_prep.imports.published_tasks import task_finder
from verl_act.data_prep.imports.published_turns import decision, undecorated
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.sft.make_sft import make_sft
from verl_act.envs.alfworld.importer import modern_command
from verl_act.envs.base import EnvSpec, Observation, StepResult, Task
from verl_act.envs.importer import Published
from verl_act.envs.registry import get_env, register_env
from verl_act.envs.scienceworld.importer import modern_action
from verl_act.envs.scienceworld.variations import VARIATIONS
from verl_act.envs.webshop.instruction import price_limit
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.errors import ConfigError, DataError
from verl_act.schema import SFT, Step, read_steps, read_table, steps_to_learn
from verl_act.settings.data import CatalogueSettings, ImportSettings, PairsSettings, SftSettings


def conversation(steps: Sequence[Step], task: Row, told: str, spell: Callable[[str], str] = str) -> Row:
    """A row as ETO publishes it."""
    turns = [("human", "Interact with a household.\n\nThought: ...\nAction: ..."), ("gpt", "OK"), ("human", told)]
    for number, step in enumerate(steps):
        turns.append(("gpt", f"Thought: I think so,\nfor reason {number}.\nAction: {spell(step.action)}"))
        turns.append(("human", f"Observation: number {number}"))
    return {**task, "conversations": [{"from": speaker, "value": value} for speaker, value in turns[:-1]]}


def old_put(action: str) -> str:
    return re.sub(r"^move (.+) to (.+)$", r"put \1 in/on \2", action)


def test_alfworld_rows_are_respelled_replayed_or_rejected(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    good, short, lost = expert_trajectories("alfworld", "train", 3, settings)
    tasks = [
        {"id": number, "game_file": f"/their/disk/json_2.1.1/train/{steps[0].task_id}/game.tw-pddl"}
        for number, steps in enumerate((good, short, lost))
    ]
    rows = [
        conversation(good, tasks[0], good[0].context.observation, old_put),
        conversation(short[:-1], tasks[1], short[0].context.observation, old_put),
        conversation(lost, {"id": 3, "game_file": "json_2.1.1/train/no-such/trial_1/game.tw-pddl"}, "Your task is"),
        {"id": 4},
        {"id": 5, "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "OK"}]},
        conversation(good, tasks[0], good[0].context.observation),
        conversation([short[0]] * 60, tasks[1], short[0].context.observation),
    ]
    manifest = import_trajectories(
        ImportSettings(
            files=[write(tmp_path / "rows.json", rows)], env="alfworld", env_settings=settings, workers=0, format="eto"
        ),
        tmp_path / "out",
    )
    steps = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [(step.action, step.inferable) for step in steps] == [(step.action, step.inferable) for step in good]
    assert all(step.verified and step.success and step.admissible and step.source == "eto" for step in steps)
    assert [step.plan_length for step in steps] == [step.plan_length for step in good]
    assert steps[1].thought == "I think so,\nfor reason 1."
    reasons = rejections(tmp_path / "out")
    assert set(reasons) == {1, 2, 3, 4, 5, 6}
    assert "does not reach the goal: its" in reasons[1]
    assert "no such task in these data: json_2.1.1/train/no-such" in reasons[2]
    assert "has no 'conversations'" in reasons[3]
    assert "no turn holds an 'Action:'" in reasons[4]
    assert "another row of this task is kept" in reasons[5]
    assert "does not reach the goal" in reasons[6]
    assert manifest.counts["rows"] == 7 and sum(manifest.counts["rejected"].values()) == 6


def test_refused_actions_of_a_row_that_wins_are_not_learned(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    (steps,) = expert_trajectories("alfworld", "train", 1, settings)
    refused = [replace(steps[0], action=action) for action in ("think: I look around", "examine the moon")]
    task = {"game_file": f"json_2.1.1/train/{steps[0].task_id}/game.tw-pddl"}
    row = conversation([refused[0], *steps[:2], refused[1], *steps[2:]], task, steps[0].context.observation)
    path = write(tmp_path / "rows.json", [row])
    manifest = import_trajectories(
        ImportSettings(files=[path], env="alfworld", env_settings=settings, workers=0, format="eto"), tmp_path / "out"
    )
    assert manifest.counts["states_expert_inadmissible"] == 2
    file = tmp_path / "out" / TRAJECTORIES
    played, good = read_steps([file]), [step.action for step in steps]
    assert [step.action for step in played if not step.admissible] == [step.action for step in refused]
    assert [step.action for step in steps_to_learn(played)] == good

    sft = make_sft(
        SftSettings(trajectories=[file], model=str(embedded_models()["alfworld"]), template="compact"), tmp_path / "sft"
    )
    assert sft.counts["states_expert_inadmissible"] == 2
    replies = [row["messages"][-1]["content"] for row in read_table(tmp_path / "sft" / "sft.parquet", SFT).to_pylist()]
    assert sorted(re.findall("<action>(.*)</action>", "".join(f"{reply}\n" for reply in replies))) == sorted(good)
    dataset = ActDataset(data_files=str(file), tokenizer=make_tokenizer(), config=data_config())
    assert [dataset[number]["reward_model"]["ground_truth"] for number in range(len(dataset))] == good
    pairs = build_pairs(
        PairsSettings(trajectories=[file], alternatives=[], env_settings=settings, source="admissible", workers=0),
        tmp_path / "pairs",
    )
    assert pairs.counts["states_expert_inadmissible"] == 2


SPELLINGS: dict[str, Callable[[str], str]] = {
    "full stop": "{}.".format,
    "quotes": '"{}"'.format,
    "backticks": "`{}`.".format,
    "bold": "**{}**".format,
    "capital": str.capitalize,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_agentinstructs_rows_are_read_however_actions_are_spelled(spelling: str, games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    (steps,) = expert_trajectories("alfworld", "train", 1, settings)
    first = steps[0].context
    told = f"Here is your task. {first.observation}\nYour task is to: {first.goal}\n AVAILABLE ACTIONS: look"
    said = [("human", 'Follow this format: "THOUGHT: your thoughts. ACTION: your next action".')]
    said += [("gpt", "OK. I'll follow your instructions and try my best to solve the task."), ("human", told)]
    for step in steps:
        said.append(("gpt", f"THOUGHT: I think so. ACTION: {SPELLINGS[spelling](old_put(step.action))}"))
        said.append(("human", "Something happens. AVAILABLE ACTIONS: look"))
    said.append(("gpt", "The task is done!"))
    row = {"id": "alfworld_0", "conversations": [{"from": who, "loss": None, "value": text} for who, text in said]}
    import_trajectories(
        ImportSettings(
            files=[write(tmp_path / "rows.json", [row])], env="alfworld", env_settings=settings, workers=0, format="eto"
        ),
        tmp_path / "out",
    )
    played = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [step.action for step in played] == [step.action for step in steps]
    assert all(step.admissible and step.thought == "I think so." for step in played)


def test_why_a_row_is_refused_is_the_true_reason(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    (steps,) = expert_trajectories("alfworld", "train", 1, settings)
    task = {"game_file": f"json_2.1.1/train/{steps[0].task_id}/game.tw-pddl"}
    told = steps[0].context.observation
    wrong = [replace(steps[0], action="dance")] * 4
    shop = conversation([replace(steps[0], action="click[buy now]")], {"id": "webshop_3"}, "WebShop [SEP] Instruction:")
    shell = conversation([replace(steps[0], action="bash")], {"id": "os_0"}, "You are an assistant on a computer.")
    rows = [
        conversation(wrong, task, told),
        conversation([*wrong[:1], *steps[:2]], task, told),
        conversation([*steps[:1], *wrong * 20], task, told),
        shop,
        shell,
        conversation(steps, task, told),
    ]
    path = write(tmp_path / "rows.json", rows)
    manifest = import_trajectories(
        ImportSettings(files=[path], env="alfworld", env_settings=settings, workers=0, format="eto"), tmp_path / "out"
    )
    reasons = rejections(tmp_path / "out")
    assert reasons[0] == "does not reach the goal: none of its 4 actions was admissible, the first 'dance'"
    assert "its 3 actions end before the goal; 1 of these 3 were not admissible, the first 'dance'" in reasons[1]
    assert "it ends after 50 of 81 actions; 49 of these 50 were not admissible, the first 'dance'" in reasons[2]
    assert "it looks like webshop, not alfworld" in reasons[3] and "it looks like os, not alfworld" in reasons[4]
    assert manifest.counts["rejected"]["of another benchmark"] == 2


@pytest.mark.parametrize(
    ("row", "form", "says"),
    [
        (
            {"task_id": "t", "actions": ["look"]},
            "eto",
            "the format 'actions', not 'eto': pass --format actions",
        ),
        ({"id": "t", "conversations": [{"from": "gpt", "value": "Action: look"}]}, "actions", "pass --format eto"),
        ({"instruction": "Go.", "output": "<action>look</action>"}, "eto", "pass --format early-experience"),
        ({"messages": [{"role": "user", "content": "Go."}]}, "actions", "pass --format early-experience"),
        ({"instruction": "Buy.", "actions": ["search[tea]"]}, "actions", "look like webshop, not alfworld"),
    ],
)
def test_a_wrong_format_or_benchmark_is_said_first(row: Row, form: str, says: str, games: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [row])
    with pytest.raises(DataError, match=rf"^1 of 1 rows .*{says}"):
        import_trajectories(
            ImportSettings(files=[path], env="alfworld", format=form, env_settings={"data": str(games)}, workers=0),
            tmp_path / "out",
        )


def begin(steps: Sequence[Step]) -> str:
    """What ALFWorld tells first, in AgentGym's data."""
    first = steps[0].context
    told = f"{first.observation}\n\nYour task is to: {first.goal}"
    return f"-= Welcome to TextWorld, ALFRED! =-\n\n{told}\nAVAILABLE ACTIONS: look"


def test_agentgyms_alfworld_rows_are_known_by_how_they_begin(games: Path, tmp_path: Path) -> None:
    """Their `item_id` is a number in AgentGym's own list, and no path."""
    settings = {"data": str(games)}
    won = expert_trajectories("alfworld", "train", 2, settings)
    rows = [conversation(steps, {"item_id": f"alfworld_{at}"}, begin(steps), old_put) for at, steps in enumerate(won)]
    rows.append(conversation(won[0], {"item_id": "alfworld_2"}, "You are in a castle. Your task is to: slay a dragon"))
    import_trajectories(
        ImportSettings(
            files=[write(tmp_path / "rows.json", rows)], env="alfworld", env_settings=settings, workers=0, format="eto"
        ),
        tmp_path / "out",
    )
    found = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [(step.task_id, step.action) for step in found] == [
        (step.task_id, step.action) for steps in won for step in steps
    ]
    assert rejections(tmp_path / "out") == {2: "no such task in these data: alfworld_2"}


def test_rows_known_by_how_they_begin_are_compared_with_the_split_alone(
    games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comparison costs a start of the game: with a split, those of other splits are not started."""
    settings = {"data": str(games)}
    (ours,) = expert_trajectories("alfworld", "valid_seen", 1, settings)
    (other,) = expert_trajectories("alfworld", "train", 1, settings)
    by_path = {"game_file": f"json_2.1.1/train/{other[0].task_id}/game.tw-pddl"}
    rows = [conversation(ours, {}, begin(ours)), conversation(other, {}, begin(other))]
    path = write(tmp_path / "rows.json", [*rows, conversation(other, by_path, begin(other))])
    started: list[Task] = []
    start = published_tasks.TaskStarter.__call__

    def noted(starter: published_tasks.TaskStarter, job: Task) -> Any:
        started.append(job)
        return start(starter, job)

    monkeypatch.setattr(published_tasks.TaskStarter, "__call__", noted)
    for name, workers in (("one", 0), ("two", 2)):
        import_trajectories(
            ImportSettings(
                files=[path], env="alfworld", split="valid_seen", workers=workers, env_settings=settings, format="eto"
            ),
            tmp_path / name,
        )
    assert started == list(get_env("alfworld").tasks("valid_seen", **settings)), "one after another, or by the workers"
    assert [step.action for step in read_steps([tmp_path / "one" / TRAJECTORIES])] == [step.action for step in ours]
    reasons = rejections(tmp_path / "one")
    assert reasons.keys() == {1, 2}
    assert "no such task in these data" in reasons[1] and "(compared with tasks of valid_seen only)" in reasons[1]
    assert reasons[2] == "of another split: not of valid_seen"
    for file in (TRAJECTORIES, REJECTED):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_game_that_does_not_start_is_told_and_compared_with_nothing(
    games: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"data": str(tmp_path)}
    shutil.copytree(games / "json_2.1.1" / "valid_seen", tmp_path / "json_2.1.1" / "valid_seen")
    (steps,) = expert_trajectories("alfworld", "valid_seen", 1, settings)
    row = Published(0, "", begin(steps), ("look",), (None,))
    find = task_finder("alfworld", settings)
    (tmp_path / "json_2.1.1" / "valid_seen" / steps[0].task_id / "game.tw-pddl").write_text("cut sh")
    assert find(row) == []
    assert "a task that does not start" in caplog.text


def test_workers_do_not_change_the_result(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    won = expert_trajectories("alfworld", "train", 3, settings)
    rows = [{"task_id": steps[0].task_id, "actions": [step.action for step in steps]} for steps in won]
    rows += [rows[0], {"task_id": "no/such", "actions": ["look"]}, {"task_id": rows[1]["task_id"], "actions": ["look"]}]
    paths = [write(tmp_path / "rows.json", rows[:2]), write(tmp_path / "more.json", rows[2:])]
    for name, workers in (("one", "1"), ("two", "2")):
        options = ["--format", "actions", "--workers", workers, "--env-settings", f"data={settings['data']}"]
        command = ["data", "import", "--out", str(tmp_path / name), *options, "alfworld", *map(str, paths)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    for file in (TRAJECTORIES, REJECTED):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert rejections(tmp_path / "two").keys() == {1, 2, 3}
    assert len(read_steps([tmp_path / "two" / TRAJECTORIES])) == sum(map(len, won))


def test_webshop_rows_are_known_by_their_instruction(tmp_path: Path) -> None:
    make_catalogue(CatalogueSettings(products=60, instructions=2, seed=5), tmp_path / "shop")
    settings = {"data": str(tmp_path / "shop")}
    won = expert_trajectories("webshop", "train", 2, settings)
    rows = []
    for steps in won:
        asked = re.sub(r"lower than [\d.]+", "lower than 990.00", steps[0].context.goal)
        told = f"WebShop [SEP] Instruction: [SEP] {asked} [SEP] Search"
        rows.append(conversation(steps, {"id": 7, "reward": 1.0}, told, lambda action: action.replace("b0", "B0")))
    wrong = [*won[0][:-1], *[step for step in won[1] if "buy now" in step.action]]
    rows.append(conversation(wrong[:1] + wrong[-1:], {"id": 8}, f"Instruction: [SEP] {won[0][0].context.goal}"))
    rows.append(conversation(won[0], {"id": 9}, "Instruction: [SEP] i want a unicorn [SEP] Search"))
    import_trajectories(
        ImportSettings(
            files=[write(tmp_path / "rows.json", rows)], env="webshop", env_settings=settings, workers=0, format="eto"
        ),
        tmp_path / "out",
    )
    steps = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [step.action for step in steps] == [step.action for trajectory in won for step in trajectory]
    reasons = rejections(tmp_path / "out")
    assert set(reasons) == {2, 3}
    assert "(searched among the human goals: rows of the other kind need" in reasons[3]
    assert "--env-settings goals=synthetic" in reasons[3]


def test_a_webshop_thought_on_another_price_limit_is_left_out(tmp_path: Path) -> None:
    """WebShop draws the limit at every start: what a thought says of theirs is not true of ours."""
    make_catalogue(CatalogueSettings(products=60, instructions=2, seed=5), tmp_path / "shop")
    settings = {"data": str(tmp_path / "shop")}
    (steps,) = expert_trajectories("webshop", "train", 1, settings)
    ours = price_limit(steps[0].context.goal)
    assert ours is not None and ours != 960
    theirs = steps[0].context.goal.replace(f"{ours:.2f}", "960.00")
    thoughts: list[str | None] = ["I look for it under $960.", "It is 1960 or 96.0, not the limit.", None]
    thoughts += ["Less than 960.00 dollars, so I buy it."] * (len(steps) - 3)
    actions = [step.action for step in steps]
    for name, told in (("theirs", theirs), ("ours", steps[0].context.goal)):
        row = {"instruction": f"WebShop [SEP] Instruction: [SEP] {told} [SEP] Search", "actions": actions}
        path = write(tmp_path / f"{name}.json", [{**row, "thoughts": thoughts}])
        manifest = import_trajectories(
            ImportSettings(files=[path], env="webshop", format="actions", env_settings=settings, workers=0),
            tmp_path / name,
        )
        found = read_steps([tmp_path / name / TRAJECTORIES])
        assert [step.action for step in found] == actions
        kept = [None, thoughts[1], *[None] * (len(steps) - 2)] if name == "theirs" else thoughts
        assert [step.thought for step in found] == kept
        assert manifest.counts["thoughts_left_out"] == (len(steps) - 2 if name == "theirs" else 0)


def test_scienceworld_rows_are_known_by_their_number(tmp_path: Path) -> None:
    settings = {"tasks": ["find-non-living-thing"], "max_steps": 30}
    (steps,) = expert_trajectories("scienceworld", "train", 1, settings)
    variation = steps[0].task_id.partition("/")[2]
    rows = [
        conversation(
            steps, {"id": f"13_{variation}"}, "Task Description:\nYour task is to find a(n) non-living thing."
        ),
        conversation(steps, {"id": "99_0"}, "Your task is to boil water."),
    ]
    import_trajectories(
        ImportSettings(
            files=[write(tmp_path / "rows.json", rows)],
            env="scienceworld",
            env_settings=settings,
            workers=0,
            format="eto",
        ),
        tmp_path / "out",
    )
    found = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [(step.action, step.inferable) for step in found] == [(step.action, step.inferable) for step in steps]
    assert rejections(tmp_path / "out") == {1: "no such task in these data: 99_0"}


def test_every_number_of_eto_is_a_task_of_scienceworld(tmp_path: Path) -> None:
    find = task_finder("scienceworld", {})
    ids = [f"{number}_0" for number in range(len(VARIATIONS) + 1)]
    longer = "9" * 5000  # than Python reads as a number
    path = write(
        tmp_path / "rows.json", [conversation_of(name) for name in (*ids, f"{longer}_0", f"sciworld_{longer}")]
    )
    *found, large, largest = [find(row) for row in read_published(path, "eto")]
    assert large == largest == []
    assert {task.task_type for tasks in found for task in tasks} == set(VARIATIONS)
    assert found[-1] == []
    named = {number: found[number][0].task_type for number in (0, 4, 11, 13, 16, 21, 26, 29)}
    assert named == {
        0: "boil",
        4: "measure-melting-point-known-substance",
        11: "find-animal",
        13: "find-non-living-thing",
        16: "grow-plant",
        21: "lifespan-longest-lived-then-shortest-lived",
        26: "inclined-plane-friction-named-surfaces",
        29: "mendelian-genetics-unknown-plant",
    }


def conversation_of(row_id: str) -> Row:
    return {"id": row_id, "conversations": [{"from": "gpt", "value": "Action: look around"}]}


def test_plain_actions_are_imported_too(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    (steps,) = expert_trajectories("alfworld", "valid_seen", 1, settings)
    actions = [step.action for step in steps]
    rows = [
        {"task_id": steps[0].task_id, "actions": actions, "thoughts": ["so be it"] * len(actions)},
        {"task_id": steps[0].task_id, "actions": []},
        {"task_id": steps[0].task_id, "actions": actions, "thoughts": ["one"]},
        {"actions": actions},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_trajectories(
        ImportSettings(files=[path], env="alfworld", format="actions", env_settings=settings, workers=0),
        tmp_path / "out",
    )
    found = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [(step.action, step.thought, step.split) for step in found] == [
        (action, "so be it", "valid_seen") for action in actions
    ]
    assert set(rejections(tmp_path / "out")) == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("[broken", "eto", r"rows\.json, line 1\b"),
        ("{broken", "eto", "rows.json.*row 0: .*line 1"),
        ('{"a": 1}', "eto", "rows.json.*row 0: .*'conversations'"),
        ("[]", "eto", "0 rows of .*rows.json"),
        ("[1]", "eto", "rows.json.*row 0: not in this format"),
        (
            "[]",
            "csv",
            "'csv'.* eto, early-experience, actions",
        ),
    ],
)
def test_unusable_files_are_named(text: str, form: str, message: str, games: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises((DataError, ConfigError), match=message):
        import_trajectories(
            ImportSettings(files=[path], env="alfworld", format=form, env_settings={"data": str(games)}, workers=0),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_rows_that_are_all_rejected_are_listed_beside_the_folder(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    (steps,) = expert_trajectories("alfworld", "train", 1, settings)
    named = {"game_file": f"train/{steps[0].task_id}/game.tw-pddl"}
    told = steps[0].context.observation
    lost, other = conversation(steps[:1], named, told), {"id": 3}
    path, listed = write(tmp_path / "rows.json", [lost, other, lost]), tmp_path / "deep" / "out.rejected.jsonl"

    def run() -> None:
        import_trajectories(
            ImportSettings(files=[path], env="alfworld", env_settings=settings, workers=0, format="eto"),
            tmp_path / "deep" / "out",
        )

    with pytest.raises(DataError, match=r"\b3 rows.*\(2 does not reach the goal, 1 not in this format\)") as caught:
        run()
    assert str(listed) in str(caught.value)
    assert [row["row"] for row in map(json.loads, listed.read_text().splitlines())] == [0, 1, 2]
    assert list((tmp_path / "deep").iterdir()) == [listed]
    write(path, [lost, conversation(steps, named, told)])
    run()
    assert rejections(tmp_path / "deep" / "out").keys() == {0} and not listed.exists()


def test_wrong_data_are_told_and_an_empty_split_is_passed_over(games: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        task_finder("alfworld", {"data": "nowhere"})
    shutil.copytree(games / "json_2.1.1" / "train", tmp_path / "json_2.1.1" / "train")
    (task, *_) = get_env("alfworld").tasks("train", data=tmp_path)
    row = Published(0, f"json_2.1.1/train/{task.task_id}/game.tw-pddl", "", ("look",), (None,))
    assert task_finder("alfworld", {"data": str(tmp_path)})(row) == [task]
    (tmp_path / "json_2.1.1" / "train" / task.task_id / "traj_data.json").write_text("cut sh")
    assert not task_finder("alfworld", {"data": str(tmp_path)})(row)
    shutil.rmtree(tmp_path / "json_2.1.1" / "train")
    with pytest.raises(DataError, match=r"json_2.1.1/train"):
        task_finder("alfworld", {"data": str(tmp_path)})


def test_an_environment_of_ones_own_is_imported_by_task_id(tmp_path: Path) -> None:
    register_env(EnvSpec("counting", Counting, lambda split: [Task("counting", split, "t0", "count")], {}, ("train",)))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"task_id": "t0", "actions": ["ADD", "stop"]}\n{"task_id": "t9", "actions": ["add"]}\n')
    import_trajectories(ImportSettings(files=[path], env="counting", format="actions", workers=0), tmp_path / "out")
    steps = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [(step.action, step.admissible, step.inferable) for step in steps] == [
        ("add", True, True),
        ("stop", True, True),
    ]
    assert rejections(tmp_path / "out") == {1: "no such task in these data: t9"}


class Counting:
    """Won by stopping after one `add`."""

    def reset(self, task: Task) -> Observation:
        self._count = 0
        return Observation("add once, then stop", "0", ("add", "stop"))

    def step(self, action: str) -> StepResult:
        self._count += action == "add"
        won = action == "stop" and self._count == 1
        return StepResult(
            str(self._count), ("add", "stop"), float(won), action == "stop", won, action in ("add", "stop")
        )

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"task_id": 17, "actions": ["look"]}', "'task_id' must be a string, not 17"),
        ('{"task_id": "t", "actions": ["look"], "thoughts": [3]}', "'thoughts' must be a list of strings and nulls"),
        ('{"task_id": "t", "actions": ["look"], "thoughts": 3}', "'thoughts' must be a list of strings and nulls"),
        ('{"task_id": "t", "actions": "look"}', "'actions' must be a non-empty list, not 'look'"),
        ('{"task_id": "t", "actions": [null]}', "'actions' must be a list of strings"),
        ('{"task_id": "t", "actions": ["look"]', "line 2: is not JSON"),
        ("[]", "it is not a JSON object but list"),
    ],
)
def test_a_bad_row_is_listed_and_the_others_are_read(row: str, reason: str, tmp_path: Path) -> None:
    path, good = tmp_path / "rows.jsonl", '{"task_id": "t", "actions": ["look"]}'
    path.write_text(f"{good}\n{row}\n{good}\n")
    first, bad, last = read_published(path, "actions")
    assert isinstance(first, Published) and isinstance(last, Published) and last.row == 2
    assert isinstance(bad, Unreadable) and bad.row == 1 and reason in bad.reason


@pytest.mark.parametrize(
    ("said", "thought"),
    [
        ("Thought: I see it.\nAction: go to desk 2", "I see it."),
        ("Thought: My Action: open fridge 1 failed.\nAction: go to desk 2", "My Action: open fridge 1 failed."),
        ("<think>Its\nAction: wait failed, so</think><action>go to desk 2</action>", "Its\nAction: wait failed, so"),
        ("<think>say <action>look</action>?</think>\n<action> go to desk 2 </action>", "say <action>look</action>?"),
        ("  Action:  go to desk 2", None),
        ("Thought:\nI see it.\n\nAction:\ngo to desk 2", "I see it."),
        ("Thought: I see it. Action: go to desk 2", "I see it."),
        ("THOUGHT: I see it.\nACTION: go to desk 2", "I see it."),
        ("THOUGHT: My next ACTION: look failed. ACTION: go to desk 2", "My next ACTION: look failed."),
        ("Think: I see it.\nAct: go to desk 2", "I see it."),
        ("Thought 3: I see it.\nAction 3: go to desk 2", "I see it."),
        ("**Thought:** I see it.\n\n**Action:** go to desk 2", "I see it."),
        ("**Thought**: I see it.\n- **Action**: go to desk 2\nObservation: You are there.", "I see it."),
        ("Thought: I see it.\nAction:\n```\ngo to desk 2\n```", "I see it."),
        ("Thought: I see it.\nAction: ```go to desk 2```", "I see it."),
        ("thought: i see it.\naction: go to desk 2", "i see it."),
        ("I see it.</think><action>go to desk 2</action>", "I see it."),
        ("<action></action><action>go to desk 2</action>", None),
        ("<action><action>go to desk 2</action></action>", None),
    ],
)
def test_what_a_thought_quotes_is_no_action(said: str, thought: str | None, tmp_path: Path) -> None:
    rows = [{"id": 1, "conversations": [{"from": "gpt", "value": said}]}]
    (read,) = read_published(write(tmp_path / "rows.json", rows), "eto")
    assert isinstance(read, Published) and read.actions == ("go to desk 2",)
    assert read.thoughts == (thought,)


def test_a_turn_of_ten_million_characters_is_read_in_linear_time(tmp_path: Path) -> None:
    """Quadratic patterns need hours here, and minutes for the shorter ones below."""
    for text in ("<action>" * 1_250_000, "<think>" * 1_400_000):
        assert decision(text) is None
    shorter = ("<action>" * 50_000 + "</action>" * 50_000, "<action>" + " " * 10**6, "Action:\n" * 100_000, "*" * 10**6)
    assert [decision(text) for text in shorter] == [None] * 4
    step = {"instruction": f"Prior to this step, you have taken {'9' * 5000} steps", "output": ""}
    assert len(list(read_published(write(tmp_path / "rows.json", [step, step]), "early-experience"))) == 2
    for text in ("put a " + "in " * 300_000, "put a in b" + " " * 10**6 + "c", "connect " * 10**5, '"' * 10**6):
        assert modern_action(modern_command(text)) and undecorated(text)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "gpt", "value": None}, "'value' must be a string, not None"),
        ({"from": 1, "value": "Action: look"}, "'from' must be a string, not 1"),
        ({"value": "Action: look"}, "has no 'from'"),
        ("Action: look", "it is not a JSON object but str"),
    ],
)
def test_a_bad_turn_makes_its_row_unreadable(turn: Any, reason: str, tmp_path: Path) -> None:
    rows = [{"id": 1, "conversations": [turn]}, conversation_of("1_0")]
    bad, good = read_published(write(tmp_path / "rows.json", rows), "eto")
    assert isinstance(bad, Unreadable) and reason in bad.reason
    assert isinstance(good, Published) and good.actions == ("look around",)


def test_lines_end_with_newlines_alone(tmp_path: Path) -> None:
    """JSON allows the other line separators of Unicode within a text."""
    told = "one\u2028two\u0085three"
    rows = [{"instruction": told, "actions": ["look"]}, {"task_id": "t", "actions": ["go"]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    first, second = read_published(path, "actions")
    assert isinstance(first, Published) and isinstance(second, Published)
    assert (first.instruction, second.task) == (told, "t")


def test_half_a_surrogate_pair_makes_a_row_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"task_id": "t", "actions": ["look"], "thoughts": ["\\ud83d"]}\n{"task_id": "t", "actions": ["go"]}\n'
    )
    bad, good = read_published(path, "actions")
    assert isinstance(bad, Unreadable) and "surrogates not allowed" in bad.reason
    assert isinstance(good, Published)
