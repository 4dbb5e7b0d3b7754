"""Write a layout in ALFWorld's file format: `game.tw-pddl`, `traj_data.json` and `initial_state.pddl`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from verl_act.envs.alfworld.games.layout import Layout
from verl_act.envs.alfworld.games.rooms import contents_of, receptacle_type
from verl_act.envs.alfworld.package import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH, constants, gdict

_ESCAPES = (("-", "_minus_"), ("|", "_bar_"), ("+", "_plus_"), (".", "_dot_"), (",", "_comma_"))
_ABILITIES = ("Cleanable", "Heatable", "Coolable", "Toggleable", "Sliceable")


def folder_name(layout: Layout) -> str:
    """The name of the task's folder, as in ALFRED: `<task>-<object>-None-<target>-<room>`."""
    return f"{layout.task_type}-{layout.object_type}-None-{layout.target_type}-{layout.room.floor_plan}"


def game_content(layout: Layout, trial: str) -> dict[str, Any]:
    """The content of `game.tw-pddl`, except `solvable` and `walkthrough`."""
    return {
        "pddl_domain": _text(ALFRED_PDDL_PATH),
        "grammar": _text(ALFRED_TWL2_PATH).replace("UNKNOWN GOAL", layout.sentence),
        "pddl_problem": problem(layout, trial),
    }


def traj_data(layout: Layout, trial: str) -> dict[str, Any]:
    """The fields of `traj_data.json` that text games need."""
    return {
        "task_id": trial,
        "task_type": layout.task_type,
        "pddl_params": {
            "object_target": layout.object_type,
            "parent_target": "" if layout.looks else layout.target_type,
            "toggle_target": layout.target_type if layout.looks else "",
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{layout.room.floor_plan}", "scene_num": layout.room.floor_plan},
        "plan": {"high_pddl": [], "low_actions": []},
        "images": [],
        "turk_annotations": {"anns": [{"task_desc": layout.sentence, "high_descs": [], "votes": [1, 1, 1]}]},
    }


def problem(layout: Layout, trial: str) -> str:
    """The PDDL problem of a layout."""
    room, goal = layout.room, gdict[layout.task_type]["pddl"]
    names = {"obj": layout.object_type, "recep": layout.target_type, "toggle": layout.target_type, "mrecep": ""}
    declared, facts = _declare(layout), _facts(layout)
    return (
        f"\n(define (problem plan_{trial}_room_{room.floor_plan})\n(:domain alfred)\n"
        f"(:objects\n{_lines(declared)}\n)\n(:init\n{_lines(facts)}\n)\n{goal.format(**names).replace('#', '-')}"
    )


def _declare(layout: Layout) -> list[str]:
    receptacles, things = layout.room.receptacles, sorted(layout.inside)
    object_types = {_type(thing) for thing in things} | {layout.object_type}
    locations = {*receptacles.values(), layout.start}
    return [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in sorted(object_types)),
        *(f"{kind}Type - rtype" for kind in sorted(layout.room.receptacle_types())),
        *(f"{_escape(thing)} - object" for thing in things),
        *(f"{_escape(r)} - receptacle" for r in receptacles),
        *(f"{_escape(location)} - location" for location in sorted(locations)),
    ]


def _facts(layout: Layout) -> list[str]:
    receptacles, inside = layout.room.receptacles, dict(sorted(layout.inside.items()))
    object_types = {_type(thing) for thing in inside}
    receptacle_types = sorted(layout.room.receptacle_types())
    movable = [thing for thing in inside if _type(thing) in constants.MOVABLE_RECEPTACLES]
    return [
        f"(atLocation agent1 {_escape(layout.start)})",
        *(f"(receptacleType {_escape(r)} {receptacle_type(r)}Type)" for r in receptacles),
        *(f"(receptacleAtLocation {_escape(r)} {_escape(location)})" for r, location in receptacles.items()),
        *(f"(openable {_escape(r)})" for r in receptacles if receptacle_type(r) in constants.OPENABLE_CLASS_LIST),
        *(f"(canContain {r}Type {o}Type)" for r in receptacle_types for o in sorted(object_types & contents_of(r))),
        *(f"(objectType {_escape(thing)} {_type(thing)}Type)" for thing in inside),
        *(f"(pickupable {_escape(thing)})" for thing in inside if _type(thing) not in _abilities("Toggleable")),
        *(f"(isReceptacleObject {_escape(thing)})" for thing in movable),
        *(f"({a.lower()} {_escape(thing)})" for a in _ABILITIES for thing in inside if _type(thing) in _abilities(a)),
        *(f"(inReceptacle {_escape(thing)} {_escape(r)})" for thing, r in inside.items()),
        *(f"(objectAtLocation {_escape(thing)} {_escape(receptacles[r])})" for thing, r in inside.items()),
    ]


def _type(thing: str) -> str:
    return thing.partition("|")[0]


def _abilities(ability: str) -> frozenset[str]:
    return frozenset(constants.VAL_ACTION_OBJECTS[ability])


def _escape(name: str) -> str:
    """An AI2-THOR id as ALFWorld spells it in PDDL."""
    for sign, word in _ESCAPES:
        name = name.replace(sign, word)
    return name


def _lines(entries: list[str]) -> str:
    return "\n".join(f"    {entry}" for entry in entries)


@cache
def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
