"""Microseconds a choice reward takes, for ordinary replies and for hostile ones up to a megabyte.

    python benchmarks/choice_reward.py

Prints a table and writes `benchmarks/results/choice_reward.json`.
"""

from __future__ import annotations

import json
import platform
import timeit
from pathlib import Path

from verl_act.reward_fns.route import compute_score

RESULTS = Path(__file__).parent / "results" / "choice_reward.json"
SIZES = (1_000, 10_000, 100_000, 1_000_000)
EXPERT = "take mug 2 from desk 1"
ADMISSIBLE = ["inventory", "look", EXPERT, *(f"go to shelf {number}" for number in range(1, 28))]
INFO = {"candidates": ["go to shelf 1", EXPERT], "admissible_actions": ADMISSIBLE}
REASONING = "The mug is on the desk, so I should take it before I go on. " * 30

ORDINARY = {
    "the expert's action": f"<think>{REASONING}</think><action>{EXPERT}</action>",
    "a label": f"<think>{REASONING}</think><action>Action 2</action>",
    "another admissible action": f"<think>{REASONING}</think><action>go to shelf 27</action>",
    "the same in capitals": f"<think>{REASONING}</think><action>GO TO SHELF 27</action>",
    "no action of this state": f"<think>{REASONING}</think><action>go to the moon</action>",
    "no tag": f"<think>{REASONING}</think>{EXPERT}",
}
HOSTILE = {
    "open tags": "<action>",
    "closed tags": "</action>",
    "different answers": "<action>a</action><action>b</action>",
    "one answer, many times": "<action>a</action>",
    "thoughts": "<think></think>",
    "plain words": "the mug is on the desk ",
    "combining marks in a tag": "\u0315\u0300",
    "both candidates in a tag": "go to shelf 1 take mug 2 from desk 1 ",
}


def microseconds(reply: str) -> float:
    """The best of several rounds, each of at least 20 ms."""
    timer = timeit.Timer(lambda: compute_score("act/alfworld/choice", reply, EXPERT, INFO))
    once = max(timer.timeit(1), 1e-6)
    number = max(1, round(0.02 / once))
    return min(timer.repeat(repeat=5, number=number)) / number * 1e6


def hostile(name: str, size: int) -> str:
    """A reply of about `size` bytes."""
    text = HOSTILE[name] * (size // len(HOSTILE[name].encode()))
    return f"<action>{text}</action>" if name.endswith("in a tag") else text


def main() -> None:
    ordinary = {name: microseconds(reply) for name, reply in ORDINARY.items()}
    grown = {name: [microseconds(hostile(name, size)) for size in SIZES] for name in HOSTILE}
    print(f"{'ordinary replies (2 kB of reasoning, 30 admissible actions)':<62}{'microseconds':>14}")
    for name, figure in ordinary.items():
        print(f"{name:<62}{figure:>14.1f}")
    print(f"\n{'hostile replies: microseconds':<32}" + "".join(f"{size:>12,} B" for size in SIZES) + f"{'growth':>10}")
    for name, figures in grown.items():
        growth = figures[-1] / figures[-2]
        print(f"{name:<32}" + "".join(f"{figure:>14,.1f}" for figure in figures) + f"{growth:>10.1f}")
    print("growth: time at the last size over the one before, ten times smaller; linear is 10, quadratic 100.")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"python": platform.python_version(), "ordinary": ordinary, "sizes": SIZES, "hostile": grown}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
