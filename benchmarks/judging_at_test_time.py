"""Does judging reach acting? Episodes in which a model's own choices decide between the actions that it proposes.

    python benchmarks/judging_at_test_time.py runs/methods --recipe alfworld/methods --seed 0 [--split valid_seen]
      [--method IL --method "ACT -> IL"]

For every method of a finished comparison the eval set is played three times more, without any training. Each turn the
model proposes its greedy action and four sampled ones; of those that are admissible

* `likeliest` takes the one it finds most probable: what acting gains from proposals alone;
* `judged` starts from that one and asks the model's own choice prompt about each of the others, in both orders; another
  action wins where both answers name it;
* `drawn` takes any of them: what the proposals are worth without a judge.

Where a model judges better than it acts, `judged` is above `likeliest`. Writes
`results/<name>_judging_at_test_time.json` beside this file; methods that are not played keep their figures there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.asyncio import tqdm_asyncio

from verl_act.chain import load_recipe
from verl_act.engine import Engine, request_seed
from verl_act.envs.base import Task, read_tasks
from verl_act.envs.pool import EnvPool
from verl_act.evaluate.records import EPISODES
from verl_act.evaluate.statistics import ItemOutcome, against, estimate
from verl_act.parse import match_action, parse_action, parse_choice
from verl_act.prompts import Template
from verl_act.ray_session import ray_session
from verl_act.rollout.episode import play
from verl_act.run_folder import RunFolder
from verl_act.schema import Context
from verl_act.settings.model import ModelSettings, Sampling

RESULTS = Path(__file__).parent / "results"
PROPOSALS = 4


@dataclass(frozen=True, slots=True)
class Model:
    """What proposes and judges."""

    engine: Engine
    template: Template
    max_tokens: int

    async def proposals(self, context: Context, name: str) -> tuple[str, list[str]]:
        """The greedy reply, and the admissible actions among it and the sampled ones, the most probable first."""
        messages = self.template.action_messages(context)
        greedy, drawn = (
            Sampling(temperature=0, max_tokens=self.max_tokens),
            Sampling(n=PROPOSALS, max_tokens=self.max_tokens),
        )
        seed = request_seed(0, name)
        replies = [
            *await self.engine.scored_reply(messages, greedy, seed=seed),
            *await self.engine.scored_reply(messages, drawn, seed=seed),
        ]
        found: dict[str, float] = {}
        for reply in replies:
            action = match_action(parse_action(reply.text).action or "", context.admissible_actions)
            if action is not None and reply.log_probability is not None:
                found[action] = max(reply.log_probability, found.get(action, reply.log_probability))
        return replies[0].text, sorted(found, key=lambda action: -found[action])

    async def prefers(self, context: Context, other: str, to: str) -> bool:
        """Whether both answers, one to each order, name `other`."""

        async def names_other(candidates: list[str]) -> bool:
            messages = self.template.choice_messages(context, candidates)
            greedy = Sampling(temperature=0, max_tokens=self.max_tokens)
            (reply,) = await self.engine.reply(messages, greedy)
            index = parse_choice(reply, candidates).index
            return index is not None and candidates[index] == other

        return all(await asyncio.gather(names_other([other, to]), names_other([to, other])))


Decide = Callable[[Model, Context, Sequence[str], random.Random], Awaitable[str]]


async def likeliest(model: Model, context: Context, proposals: Sequence[str], rng: random.Random) -> str:
    return proposals[0]


async def judged(model: Model, context: Context, proposals: Sequence[str], rng: random.Random) -> str:
    best = proposals[0]
    for other in proposals[1:]:
        if await model.prefers(context, other, best):
            best = other
    return best


async def drawn(model: Model, context: Context, proposals: Sequence[str], rng: random.Random) -> str:
    return rng.choice(proposals)


WAYS: dict[str, Decide] = {"likeliest": likeliest, "judged": judged, "drawn": drawn}


@dataclass(slots=True)
class Player:
    """The policy of one episode."""

    model: Model
    decide: Decide
    task: Task
    rng: random.Random
    turn: int = 0

    async def reply(self, context: Context) -> str:
        self.turn += 1
        greedy, proposals = await self.model.proposals(context, f"{self.task.task_id}#{self.turn}")
        if not proposals:
            return greedy
        return f"<action>{await self.decide(self.model, context, proposals, self.rng)}</action>"


async def play_all(model: Model, tasks: Sequence[Task], pool: EnvPool, way: str, max_turns: int) -> dict[str, bool]:
    """Task -> won."""
    places = asyncio.Semaphore(64)

    async def one(task: Task) -> tuple[str, bool]:
        async with places:
            session = await pool.open(task)
            try:
                player = Player(model, WAYS[way], task, random.Random(task.task_id))
                return task.task_id, (await play(task, session, player, max_turns)).success
            finally:
                await session.close()

    return dict(await tqdm_asyncio.gather(*map(one, tasks), desc=way, unit="episode"))


def figures(won: dict[str, dict[str, bool]]) -> dict[str, Any]:
    """The share of each way with its interval, and each against the likeliest proposal on the same tasks."""
    items = {
        way: [{task: ItemOutcome(float(success)) for task, success in outcomes.items()}]
        for way, outcomes in won.items()
    }
    found: dict[str, Any] = {}
    for way, own in items.items():
        test = against(own, items["likeliest"]) if way != "likeliest" else None
        found[way] = {**asdict(estimate(own, is_share=True)), "against_likeliest": asdict(test) if test else None}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", default="alfworld/methods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="valid_seen")
    parser.add_argument("--method", action="append", help="may be given several times; without it, all with a model")
    parser.add_argument("--name", default="alfworld", help="of the file in results")
    options = parser.parse_args()
    run = RunFolder(options.run.resolve(), options.seed)
    recipe = load_recipe(options.recipe)
    result = RESULTS / f"{options.name}_judging_at_test_time.json"
    results = json.loads(result.read_text()) if result.is_file() else {}
    eval_tasks = read_tasks(run.tasks("eval"))
    tasks = [task for task in eval_tasks if task.split == options.split]
    games = {"data": str(run.games)} if run.games.is_dir() else {}
    template = recipe.make_template()
    for name in options.method or recipe.methods:
        stages = recipe.methods[name].stages
        path = run.training(stages).model if stages else Path(recipe.model_path)
        evaluation = run.evaluation(name) / EPISODES
        if not path.is_dir() or not evaluation.is_file():
            print(f"{name}: is not in {run.root}")
            continue
        records = [json.loads(line) for line in evaluation.read_text().splitlines()]
        won = {
            "greedy": {record["task_id"]: record["success"] for record in records if record["split"] == options.split}
        }
        settings = ModelSettings(model=str(path), max_model_len=recipe.max_model_len)
        with Engine(settings) as engine, ray_session():
            model = Model(engine, template, recipe.evaluate.max_tokens)
            pool = EnvPool(recipe.env, {**recipe.env_settings, **games})
            for way in WAYS:
                won[way] = engine.run(play_all(model, tasks, pool, way, recipe.evaluate.max_turns))
        results.setdefault(options.split, {})[name] = {"seed": options.seed, **figures(won)}
        result.write_text(json.dumps(results, indent=2) + "\n")
        print(name, {way: f"{100 * entry['value']:.1f}" for way, entry in figures(won).items()}, flush=True)


if __name__ == "__main__":
    main()
