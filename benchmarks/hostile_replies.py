"""100,000 hostile replies through the parser and the rewards: does one raise, score outside the tiers or take long?

    python benchmarks/hostile_replies.py

Replies are strung together at random (seed 0) from tags, labels, candidates, control tokens, odd Unicode and text.
Prints and writes `benchmarks/results/hostile_replies.json`; exits with 1 where one failed.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from verl_act.parse import Malformed, normalise, parse_action, parse_choice
from verl_act.reward_fns.route import compute_score

RESULTS = Path(__file__).parent / "results" / "hostile_replies.json"
REPLIES = 100_000
SLOW = 0.1
"""Seconds of processor time that one reply may take."""
EXPERT = "take mug 2 from desk 1"
ADMISSIBLE = ["inventory", "look", EXPERT, *(f"go to shelf {number}" for number in range(1, 28))]
CANDIDATES = ["go to shelf 1", EXPERT, "go to shelf 11"]
INFO = {"candidates": CANDIDATES, "admissible_actions": ADMISSIBLE}
TIERS = {1.0, 0.1, 0.0, -0.5}
PIECES = [
    *(
        "<action>",
        "</action>",
        "<think>",
        "</think>",
        "<ACTION>",
        "< action>",
        "</ action>",
        "<action",
        "action>",
        "<",
        ">",
    ),
    *("<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "</s>", "[INST]", "[/INST]"),
    *CANDIDATES,
    *(
        "Action 1",
        "action 2",
        "ACTION 3",
        "Action 4",
        "1",
        "2",
        "3",
        "0",
        "-1",
        "A",
        "b",
        "C",
        "D",
        "01",
        "１",
        "1.",
        "(a)",
        "**B**",
        "Action 1: go to shelf 1",
        "2. go to shelf 1",
        "Option C",
        " or ",
        "Ⅱ",
        "²",
    ),
    *("look", "LOOK", "ｌｏｏｋ", "go to shelf 27", "go to the moon", "take  mug\t2\nfrom desk 1", "İ", "ß", "ﬁ", "ﷺ"),
    *("\0", "\ufeff", "\u202e", "\u200b", "\u0301" * 40, "\ud800", "\U0010ffff", "𝟙", "\n", "\t", "\u2028", "\x85"),
    *("{{ 7 * 7 }}", "%s%n", "\\", "$(reboot)", "'; DROP TABLE pairs; --", "__import__('os')", "null", "NaN", "1e999"),
]


def replies(count: int, seed: int = 0) -> Iterator[str]:
    """Short and long ones; one in a hundred repeats itself up to some ten thousand characters."""
    generator = random.Random(seed)
    for number in range(count):
        parts = generator.choices(PIECES, k=generator.randint(0, 14))
        if number % 100 == 0:
            parts *= generator.randint(1, 300)
        if number % 3 == 0:  # else few would get as far as an answer, or two
            answers = generator.choices(PIECES, k=generator.randint(1, 2))
            parts = [*parts[: len(parts) // 2], "</think>", *(f"<action>{answer}</action>" for answer in answers)]
        yield "".join(parts)


def fault(reply: str) -> str | None:
    """What is wrong with how `reply` is read and scored."""
    parsed, choice = parse_action(reply), parse_choice(reply, CANDIDATES)
    if (parsed.action is None) != isinstance(parsed.malformed, Malformed):
        return "neither an action nor a reason"
    if choice.index is not None and not 0 <= choice.index < len(CANDIDATES):
        return "a candidate that there is not"
    if parsed.action is not None and normalise(normalise(parsed.action)) != normalise(parsed.action):
        return "not normal after normalising"
    for kind in ("choice", "action"):
        score = compute_score(f"act/alfworld/{kind}", reply, EXPERT, INFO)
        if score["score"] not in TIERS or sum(score[tier] for tier in ("acc", "adm", "fmt")) > 1:
            return f"{kind}: {score}"
        if score != compute_score(f"act/alfworld/{kind}", reply, EXPERT, INFO):
            return f"{kind}: another score the second time"
    return None


def main() -> None:
    failures: list[dict[str, str]] = []
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    fault("<action>fly</action>")  # loads the environment's module, once
    started = time.perf_counter()
    for reply in replies(REPLIES):
        begun = time.process_time()  # what else the machine does is not counted
        try:
            wrong = fault(reply)
            outcomes[str(parse_choice(reply, CANDIDATES).malformed or "read")] += 1
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        taken = time.process_time() - begun
        slowest = max(slowest, taken)
        if taken > SLOW and wrong is None:
            wrong = f"took {taken:.3f} s"
        if wrong:
            failures.append({"reply": ascii(reply[:200]), "fault": wrong})
    figures = {
        "python": platform.python_version(),
        "replies": REPLIES,
        "seconds": round(time.perf_counter() - started, 1),
        "slowest_milliseconds": round(slowest * 1e3, 2),
        "outcomes": dict(outcomes.most_common()),
        "failures": failures,
    }
    print(json.dumps({**figures, "failures": failures[:5]}, indent=2))
    print(f"{len(failures)} failures")
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
