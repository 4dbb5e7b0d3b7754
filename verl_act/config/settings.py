"""The configuration block `data.act`: how rows become prompts, and how live episodes are played.

Commands import it too, so it is light: heavy modules are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from verl_act.errors import ConfigError, OptionError
from verl_act.options import Above0, Positive, Seed
from verl_act.settings.base import Settings, Text
from verl_act.settings.data import EnvSettings
from verl_act.settings.episodes import EpisodeOptions
from verl_act.settings.model import TemplateSettings

if TYPE_CHECKING:
    from verl_act.prompts import Template

_LARGEST_UNIT = 10_000


class EpisodeSettings(EpisodeOptions, EnvSettings):
    """The block `data.act.episode`: limits and reward of an episode, and the size of the environment pool.

    `data.max_response_length` limits a reply in stepwise mode and the whole episode in concat mode;
    `data.max_prompt_length` limits each prompt. The reward of an episode is the sum of its parts.
    """

    max_tokens_per_turn: Positive | None = None
    """Most tokens of a reply in concat mode, so that one reply cannot use all of an episode. Default: no limit."""
    success_reward: float = 1.0
    """Reward for meeting the goal."""
    score_reward: float = 0.0
    """Reward for each point of the environment's own score, the sum of its rewards: partial credit in WebShop and
    ScienceWorld."""
    inadmissible_penalty: float = 0.0
    """Added to the reward for each turn whose action the environment refused; usually negative or zero."""
    malformed_penalty: float = 0.0
    """Added to the reward for each turn without an action; usually negative or zero."""


class StoppingStrategy(StrEnum):
    """When an epoch ends; the names are those of `datasets.interleave_datasets`."""

    ALL_EXHAUSTED = "all_exhausted"
    """Every row has been shown; files that are short for their weight repeat rows."""
    FIRST_EXHAUSTED = "first_exhausted"
    """One file is used up; no row is shown twice, and some rows of other files never."""


class MixtureSettings(Settings):
    """The block `data.act.mix`. Without weights, files are concatenated."""

    weights: list[Above0] = []
    """Relative number of rows of each file of `data.train_files`, in their order; [1, 3] is a quarter of the first."""
    stopping_strategy: Annotated[StoppingStrategy, Field(strict=False)] = StoppingStrategy.ALL_EXHAUSTED
    """When an epoch ends."""

    def check(self) -> None:
        if sum(self.units()) > _LARGEST_UNIT:
            raise OptionError(
                "weights",
                f"are {self.weights}: the smallest whole numbers in that ratio are {self.units()}, too large for an "
                "epoch. Round them.",
            )

    def units(self) -> list[int]:
        """The weights as the smallest whole numbers in their ratio."""
        exact = [Fraction(str(weight)) for weight in self.weights]
        units = [int(weight * math.lcm(*(other.denominator for other in exact))) for weight in exact]
        return [unit // math.gcd(*units) for unit in units]


class Order(StrEnum):
    """The order of a pair's actions."""

    HASH = "hash"
    """One row per pair; the expert's action comes first in exactly half of them (with three candidates, in a third)."""
    BOTH = "both"
    """One row for each position of the expert's action: two for an ordinary pair."""


class ActSettings(TemplateSettings):
    """Every key of `data.act`, with its default."""

    history_length: int | None = None
    """Most turns of the history in a prompt, the last ones. Default: all."""
    order: Annotated[Order, Field(strict=False)] = Order.HASH
    """The rows of a pair, by the order of its actions."""
    seed: Seed = 0
    """Random seed of the order of candidates and of `mix`."""
    verb_balance: Positive = 1
    """Maximum times to show a training pair in an epoch, so that verbs alone do not reveal the better action."""
    shuffled_labels: bool = False
    """A control in which any candidate of a training pair, sampled once by `seed`, earns the reward of the expert's
    action."""
    inferable_only: bool = False
    """Leave out pairs and steps whose label does not follow from the prompt."""
    allow_degenerate: bool = False
    """Keep training if the first steps had no learning signal (all rewards of each group are equal)."""
    default_agent: Text = "single_turn_agent"
    """The agent loop of rows in verl's own layout that name none."""
    thought_markers: list[str] | None = None
    """The texts that begin and end a thought, for a model that marks it by control tokens and whose family is not in
    `parse.THOUGHT_MARKERS`; [] if it marks none."""
    mix: MixtureSettings = MixtureSettings()
    """The training files in a fixed ratio; validation is never mixed."""
    episode: EpisodeSettings = EpisodeSettings()
    """Limits and reward of live episodes, and their environment pool."""

    def check(self) -> None:
        self.make_template()

    @classmethod
    def from_config(cls, data_config: Any) -> ActSettings:
        """Read `act` from verl's `data` configuration; an absent block gives the defaults.

        Raises `ConfigError` on an unknown key or an impossible value.
        """
        from omegaconf import OmegaConf

        block = data_config.get("act")
        if OmegaConf.is_config(block):
            block = OmegaConf.to_container(block, resolve=True)
        if not isinstance(block, Mapping | None):
            raise ConfigError(f"data.act is {block!r}; it must be a block of keys.")
        try:
            return cls(**{str(key): value for key, value in (block or {}).items() if value is not None})
        except OptionError as error:
            raise ConfigError(f"{f'data.act.{error.option}'.rstrip('.')} {error.problem}") from error

    def make_template(self) -> Template:
        """The template with its options. Raises `ConfigError` if it is unknown."""
        from verl_act.prompts import get_template

        return get_template(self.template, **{"history_length": self.history_length, **self.template_options})
