"""Can a label that is marked as not inferable be learned? And what do drawn ties cost the experts?

    verl-act data games --out /tmp/games --counts '{"train": 600}' --size full --seed 7
    python benchmarks/expert_ties.py --alfworld /tmp/games [--official OFFICIAL_GAMES] [--scienceworld]

Each expert plays its tasks twice: with ties drawn by task and seed, and by the first listed action. Pairs of the
expert's action and an admissible one are made with and without margins; gradient boosting learns from shallow features
of the two actions (position in the list and in the transcript, words, number) which is the expert's, on two thirds of
the tasks, and is asked about the others. ScienceWorld's gold paths are not drawn: there the mark means knowledge that
the transcript lacks, and the alternative has the verb of the expert's action. Writes `results/expert_ties.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from verl_act.data_prep.expert.collect_expert import play
from verl_act.data_prep.pairs.pairing import make_pairs
from verl_act.data_prep.pairs.proposals import ADMISSIBLE
from verl_act.envs.alfworld.search import SearchExpert, decide
from verl_act.envs.base import Expert, ExpertGaveUp, Task
from verl_act.envs.registry import get_env
from verl_act.envs.ties import TieBreaker
from verl_act.envs.webshop.shopper import ShopperExpert, best_actions
from verl_act.parse import verb
from verl_act.schema import Context, Pair, Step
from verl_act.settings.data import PairsSettings

RESULT = Path(__file__).parent / "results" / "expert_ties.json"
SEED = 0
BUCKETS = 48
"""Of hashed words."""


class FirstListed(TieBreaker):
    def draw(self, texts: Sequence[str], step: int) -> str:
        return texts[0]


class FixedSearch(SearchExpert):
    """The search expert as a pure function of the transcript."""

    def act(self, context: Context, environment: Any = None) -> tuple[str, bool]:
        decision = decide(context, ties=FirstListed())
        return decision.action, decision.inferable


class FixedShopper(ShopperExpert):
    """The shopper as a pure function of the transcript."""

    def act(self, context: Context, environment: Any = None) -> tuple[str, bool]:
        best = best_actions(context)
        return best[0], len(best) == 1


def played(
    env: str, settings: Mapping[str, Any], tasks: Sequence[Task], make: Callable[[], Expert]
) -> tuple[list[Step], dict[str, Any]]:
    """The steps of the won episodes, and metrics of all."""
    environment, expert = get_env(env).make(**settings), make()
    steps, won, actions = [], 0, 0
    for task in tasks:
        try:
            episode = play(environment, expert, task, source="expert", seed=SEED)
        except ExpertGaveUp:
            continue
        won += episode[-1].success
        actions += len(episode)
        steps += episode if episode[-1].success else []
    environment.close()
    return steps, {
        "tasks": len(tasks),
        "won": won,
        "mean_steps": round(actions / len(tasks), 2),
        "inferable_share": round(sum(step.inferable for step in steps) / len(steps), 4),
    }


def pairs_of(steps: Sequence[Step], settings: Mapping[str, Any], margins: bool) -> list[Pair]:
    """Pairs with every admissible alternative."""
    every = PairsSettings(
        trajectories=[],
        env_settings=dict(settings),
        source=ADMISSIBLE,
        max_alternatives_per_state=1000,
        margins=margins,
        seed=SEED,
        workers=0,
    )
    return list(make_pairs(steps, {}, every, Counter()))


def features(context: Context, actions: tuple[str, str]) -> np.ndarray:
    first, second = (_described(context, action) for action in actions)
    return np.concatenate([first, second, first - second])


def _described(context: Context, action: str) -> np.ndarray:
    words, listed = action.split(), list(context.admissible_actions)
    texts = " ".join([*(turn.observation for turn in context.history), context.observation])
    name = " ".join(words[2:] if words[0] == "go" else words[1:])
    alike = [other for other in listed if verb(other) == verb(action)]
    row = np.zeros(8 + BUCKETS)
    row[:8] = (
        listed.index(action) if action in listed else -1,
        alike.index(action) if action in alike else -1,
        texts.lower().find(name.strip("[]").lower()),
        sum(turn.action == action for turn in context.history),
        len(action),
        int(words[-1]) if words[-1].isdigit() else -1,
        len({*words} & {*context.goal.lower().split()}),
        len(context.history),
    )
    for word in words:
        row[8 + zlib.crc32(word.encode()) % BUCKETS] += 1
    return row


def learned(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Accuracy on held-out tasks, with its standard error at chance."""
    rng = random.Random(SEED)
    rows, labels, groups = [], [], []
    for pair in pairs:
        first = rng.random() < 0.5
        actions = (pair.expert_action, pair.alternative_action)
        rows.append(features(pair.context, actions if first else actions[::-1]))
        labels.append(first)
        groups.append(zlib.crc32(pair.task_id.encode()) % 3 == 0)
    x, y, held_out = np.array(rows), np.array(labels), np.array(groups)
    if min(held_out.sum(), (~held_out).sum()) < 50:
        return {"pairs": len(pairs)}
    learner = HistGradientBoostingClassifier(max_iter=100, random_state=SEED).fit(x[~held_out], y[~held_out])
    asked = int(held_out.sum())
    accuracy = round(float(learner.score(x[held_out], y[held_out])), 4)
    return {"pairs": len(pairs), "held_out": asked, "accuracy": accuracy, "error_at_chance": round(0.5 / asked**0.5, 4)}


def compared(
    env: str, settings: Mapping[str, Any], tasks: Sequence[Task], experts: Mapping[str, Callable[[], Expert]]
) -> dict[str, Any]:
    result = {}
    for name, make in experts.items():
        steps, metrics = played(env, settings, tasks, make)
        guessed = [step for step in steps if not step.inferable]
        for key, margins in (("not_inferable", False), ("not_inferable_with_margin", True)):
            pairs = [pair for pair in pairs_of(guessed, settings, margins) if not pair.inferable]
            metrics[key] = learned(pairs)
        result[name] = metrics
        print(env, name, json.dumps(metrics))
    return result


def gold_paths() -> dict[str, Any]:
    """ScienceWorld's labels that are marked as not inferable, beside an alternative with the same verb."""
    env, settings = "scienceworld", {"max_steps": 60}
    spec, rng = get_env(env), random.Random(SEED)
    tasks = rng.sample(list(spec.tasks("train", **settings)), 60)
    steps, metrics = played(env, settings, tasks, spec.experts["gold"])
    for key, inferable in (("not_inferable", False), ("inferable", True)):
        pairs = []
        for step in (step for step in steps if step.inferable is inferable):
            alike = [a for a in step.context.admissible_actions if verb(a) == verb(step.action) and a != step.action]
            (pair,) = list(pairs_of([replace(step, tied_actions=())], settings, False))[:1] or (None,)
            if alike and pair is not None:
                pairs.append(replace(pair, alternative_action=rng.choice(alike)))
        metrics[f"{key}_of_one_verb"] = learned(pairs)
    print(env, json.dumps(metrics))
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alfworld", type=Path, required=True, help="generated games")
    parser.add_argument("--official", type=Path, help="the official games")
    parser.add_argument("--scienceworld", action="store_true")
    parser.add_argument("--tasks", type=int, default=600, help="most tasks of each environment")
    options = parser.parse_args()
    search = {"drawn": SearchExpert, "first listed": FixedSearch}
    shopper = {"drawn": ShopperExpert, "first listed": FixedShopper}
    result: dict[str, Any] = {}
    for name, data in (("alfworld, generated", options.alfworld), ("alfworld, official", options.official)):
        if data is not None:
            settings = {"data": str(data)}
            tasks = get_env("alfworld").tasks("train", **settings)[: options.tasks]
            result[name] = compared("alfworld", settings, tasks, search)
    tasks = get_env("webshop").tasks("train")[: options.tasks]
    result["webshop"] = compared("webshop", {}, tasks, shopper)
    if options.scienceworld:
        result["scienceworld"] = {"gold": gold_paths()}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
