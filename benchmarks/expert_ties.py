"""Can a label that is marked as not inferable be learned? And what do drawn ties cost the experts?

    verl-act data games --out /tmp/games --counts train=300 --size full --seed 7
    python benchmarks/expert_ties.py --alfworld /tmp/games --official OFFICIAL_GAMES --webshop --scienceworld 60

Each expert plays its tasks twice: with ties drawn by task and seed, and by the first of the tied actions, as a pure
function of the transcript. Gradient boosting learns from shallow features of the two actions (positions in the list and
in the transcript, words, number) which of two tied actions is the expert's, on two thirds of the tasks, and is asked
about the others; the same for those whose measured margin says that the other is worse. ScienceWorld's gold paths are
not drawn: there the mark means knowledge that the transcript lacks. Writes what was asked for to
`results/expert_ties.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from verl_act.data_prep.expert.collect_expert import play
from verl_act.data_prep.pairs.margins import TrajectoryReplayers
from verl_act.envs.alfworld.search import SearchExpert, decide
from verl_act.envs.base import Expert, ExpertGaveUp, Task
from verl_act.envs.registry import get_env
from verl_act.envs.ties import TieBreaker
from verl_act.envs.webshop.shopper import ShopperExpert, best_actions
from verl_act.parse import verb
from verl_act.schema import Context, Step

RESULT = Path(__file__).parent / "results" / "expert_ties.json"
SEED = 0
BUCKETS = 48
"""Of hashed words."""
FEWEST = 100
"""Choices to learn from."""


class FirstListed(TieBreaker):
    def sample(self, texts: Sequence[str], step: int) -> str:
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


class Choice(NamedTuple):
    task_id: str
    context: Context
    expert: str
    alternative: str


def tied_choices(steps: Sequence[Step], settings: Mapping[str, Any], margins: bool) -> Iterator[Choice]:
    """A choice for each state where the expert's action is tied; with `margins`, one where the other is worse."""
    trajectories: dict[str, list[Step]] = {}
    for step in steps:
        if step.tied_actions:
            trajectories.setdefault(step.trajectory_id, []).append(step)
    replayers = TrajectoryReplayers(settings, ())
    for trajectory in trajectories.values():
        if not margins:
            yield from (_choice(step, _others(step)[0]) for step in trajectory)
            continue
        for state in replayers.get(trajectory[0].env).replay(trajectory):
            worse = (other for other in _others(state.step) if (state.judge(other).margin or 0) > 0)
            yield from (_choice(state.step, other) for other in islice(worse, 1))
    replayers.close()


def _others(step: Step) -> list[str]:
    """The actions that the expert's is tied with, in random order."""
    others = [action for action in step.tied_actions if action != step.action]
    random.Random(f"{SEED}/{step.state_id}").shuffle(others)
    return others


def _choice(step: Step, other: str) -> Choice:
    return Choice(step.task_id, step.context, step.action, other)


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


def learned(choices: Sequence[Choice]) -> dict[str, Any]:
    """Accuracy on tasks that were not learned from (three folds), with its standard error at chance."""
    rng = random.Random(SEED)
    rows, labels = [], []
    for choice in choices:
        first = rng.random() < 0.5
        actions = (choice.expert, choice.alternative)
        rows.append(features(choice.context, actions if first else actions[::-1]))
        labels.append(first)
    if len(choices) < FEWEST:
        return {"choices": len(choices)}
    learner = HistGradientBoostingClassifier(max_iter=100, random_state=SEED)
    groups = [choice.task_id for choice in choices]
    predicted = cross_val_predict(learner, np.array(rows), np.array(labels), groups=groups, cv=GroupKFold(3))
    accuracy = round(float((predicted == np.array(labels)).mean()), 4)
    return {"choices": len(choices), "accuracy": accuracy, "error_at_chance": round(0.5 / len(choices) ** 0.5, 4)}


def compared(
    env: str, settings: Mapping[str, Any], tasks: Sequence[Task], experts: Mapping[str, Callable[[], Expert]]
) -> dict[str, Any]:
    result = {}
    for name, make in experts.items():
        steps, metrics = played(env, settings, tasks, make)
        metrics["tied"] = learned(list(tied_choices(steps, settings, margins=False)))
        metrics["tied, the alternative worse"] = learned(list(tied_choices(steps, settings, margins=True)))
        result[name] = metrics
        print(env, name, json.dumps(metrics), flush=True)
    return result


def gold_paths(tasks: int) -> dict[str, Any]:
    """ScienceWorld's labels, those marked as not inferable and the others, beside an alternative of the same verb."""
    env, settings = "scienceworld", {"max_steps": 60}
    spec, rng = get_env(env), random.Random(SEED)
    sample = rng.sample(list(spec.tasks("train", **settings)), tasks)
    steps, metrics = played(env, settings, sample, spec.experts["gold"])
    for key, inferable in (("not inferable, one verb", False), ("inferable, one verb", True)):
        choices = []
        for step in (step for step in steps if step.inferable is inferable and step.admissible):
            alike = [a for a in step.context.admissible_actions if verb(a) == verb(step.action) and a != step.action]
            if alike:
                choices.append(_choice(step, rng.choice(alike)))
        metrics[key] = learned(choices)
    print(env, json.dumps(metrics))
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alfworld", type=Path, help="generated games")
    parser.add_argument("--official", type=Path, help="ALFWorld's official games")
    parser.add_argument("--webshop", action="store_true")
    parser.add_argument("--scienceworld", type=int, metavar="TASKS", help="tasks of ScienceWorld; it needs Java")
    parser.add_argument("--tasks", type=int, default=250, help="most tasks of each other environment")
    options = parser.parse_args()
    for name, data in (("alfworld, generated", options.alfworld), ("alfworld, official", options.official)):
        if data is not None:
            settings = {"data": str(data)}
            tasks = random.Random(SEED).sample(list(get_env("alfworld").tasks("train", **settings)), options.tasks)
            save(name, compared("alfworld", settings, tasks, {"drawn": SearchExpert, "first listed": FixedSearch}))
    if options.webshop:
        tasks = get_env("webshop").tasks("train")[: 4 * options.tasks]
        save("webshop", compared("webshop", {}, tasks, {"drawn": ShopperExpert, "first listed": FixedShopper}))
    if options.scienceworld:
        save("scienceworld", {"gold": gold_paths(options.scienceworld)})


def save(name: str, result: Mapping[str, Any]) -> None:
    """Write the result of one environment beside those of the others."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(dict(sorted({**known, name: result}.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
