"""WebShop as an `Environment`: find the product that an instruction asks for in a shop of text pages, and buy it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from verl_act.envs.base import Observation, StepResult, Task
from verl_act.envs.webshop.actions import click
from verl_act.envs.webshop.catalogue import Catalogue, load_catalogue
from verl_act.envs.webshop.goals import SPLIT_BY, Goal, goal_of
from verl_act.envs.webshop.instruction import likely_search
from verl_act.envs.webshop.nouns import EMBEDDED, noun_tagger
from verl_act.envs.webshop.pages import STYLES, page_parts
from verl_act.envs.webshop.planner import Rank, WebShopPlanner
from verl_act.envs.webshop.reward import score_purchase
from verl_act.envs.webshop.session import START, Page, ShopState, clickables, follow
from verl_act.errors import ConfigError, EnvError


@dataclass(frozen=True, slots=True)
class WebShopSnapshot:
    """The state of an episode. `reward` is the reward of the purchase, 0.0 before it."""

    state: ShopState = START
    steps: int = 0
    reward: float = 0.0


class WebShopEnvironment:
    """Plays WebShop's goals. Deterministic, so a task's seed is not used.

    `admissible_actions` are the clicks that the page offers; on the start page, the one search that the instruction
    suggests (its content words). The list cannot hold every search: all others are admissible too, on every page, and
    `admissible` of a step says so (see `session.follow` for the limits). An inadmissible action shows the same page
    again.

    The step that buys has WebShop's reward for the purchase, between 0 and 1; all others have 0.0. Success is a reward
    of exactly 1.0.

    Environments of one process share catalogue, search index and goals; each needs a few hundred bytes.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        max_steps: int = 15,
        goals: str = "human",
        observation: str = "text",
        nouns: str = EMBEDDED,
        split_by: str = SPLIT_BY[0],
    ) -> None:
        """`data`: the folder with WebShop's files (default: the embedded catalogue); `max_steps`: the longest
        episode, in actions; `goals`: `human` or `synthetic` instructions; `observation`: WebShop's `text` or
        `text_rich`, or `brief`, which is `text` without the instruction; `nouns`: the noun tagger of the reward (see
        `nouns`); `split_by`: whether the splits divide goals, as WebShop's do, or products.

        The data are read at the first reset. Raises `ConfigError` for invalid settings.
        """
        if max_steps < 1:
            raise ConfigError(f"max_steps is {max_steps}; an episode needs at least one step.")
        if observation not in STYLES:
            raise ConfigError(f"observation is {observation!r}; it must be one of {', '.join(STYLES)}.")
        self.nouns = noun_tagger(nouns)
        self._data = data
        self._max_steps = max_steps
        if split_by not in SPLIT_BY:
            raise ConfigError(f"split_by is {split_by!r}; it must be one of {', '.join(SPLIT_BY)}.")
        self._kind = goals
        self._split_by = split_by
        self._style = STYLES[observation]
        self._catalogue: Catalogue | None = None
        self._goal: Goal | None = None
        self._planner: WebShopPlanner | None = None
        self._now = WebShopSnapshot()

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` if it is not a goal of this catalogue, `DataError` for missing or damaged
        files.
        """
        self._goal = None  # if this fails, the old episode must not continue
        if self._catalogue is None:
            self._catalogue = load_catalogue(self._data)
        self._goal = goal_of(task, self._catalogue, self._kind, self._split_by)
        self._planner = None
        self._now = WebShopSnapshot()
        return Observation(self._goal.instruction, self._page(), self._admissible())

    def step(self, action: str) -> StepResult:
        """Take `action`. After the end of an episode, it has no effect."""
        catalogue, goal = self._playing()
        over = self._over()
        after = None if over else follow(self._now.state, action, catalogue)
        if not over:
            self._now = replace(self._now, steps=self._now.steps + 1)
        if after is not None:
            self._now = replace(self._now, state=after)
        if after is not None and after.page is Page.DONE:
            score = score_purchase(catalogue.product(after.row), dict(after.options), goal, self.nouns)
            self._now = replace(self._now, reward=score.reward)
        return StepResult(
            observation=self._page(),
            admissible_actions=self._admissible(),
            reward=0.0 if over else self._now.reward,
            done=self._over(),
            success=self._now.reward == 1.0,
            admissible=after is not None,
        )

    def close(self) -> None:
        """End the episode. The catalogue stays in memory for the other environments of this process."""
        self._goal = self._planner = None

    def snapshot(self) -> WebShopSnapshot:
        """Return the current state; valid until the next `reset`."""
        self._playing()
        return self._now

    def restore(self, snapshot: WebShopSnapshot) -> None:
        """Return to `snapshot`."""
        self._playing()
        self._now = snapshot

    def plan(self, rank: Rank | None = None) -> tuple[str, ...] | None:
        """Return the shortest action sequence to a purchase of reward 1.0, ignoring the step limit (privileged; see
        `planner`). `rank` chooses between sequences of the same length.

        None if the planner finds none, which does not prove that there is none, unless the purchase is made.
        """
        catalogue, goal = self._playing()
        if self._now.state.page is Page.DONE:
            return () if self._now.reward == 1.0 else None
        if self._planner is None:
            self._planner = WebShopPlanner(catalogue, goal, self.nouns)
        return self._planner.plan(self._now.state, rank)

    def plan_length(self) -> int | None:
        """Return the length of `plan` (privileged); None if there is no plan."""
        plan = self.plan()
        return None if plan is None else len(plan)

    def _playing(self) -> tuple[Catalogue, Goal]:
        if self._catalogue is None or self._goal is None:
            raise EnvError("No episode is being played. Call `reset(task)` first.")
        return self._catalogue, self._goal

    def _over(self) -> bool:
        return self._now.state.page is Page.DONE or self._now.steps >= self._max_steps

    def _page(self) -> str:
        catalogue, goal = self._playing()
        return self._style(page_parts(self._now.state, goal, catalogue, self._now.reward))

    def _admissible(self) -> tuple[str, ...]:
        catalogue, goal = self._playing()
        if self._now.state.page is Page.SEARCH:
            return (f"search[{likely_search(goal.instruction)}]",)
        return tuple(map(click, clickables(self._now.state, catalogue)))
