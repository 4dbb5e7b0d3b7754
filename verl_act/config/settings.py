"""The configuration block `data.act`: how rows become prompts, and how live episodes are played.

Commands import it too, so it is light: heavy modules are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from verl_act.errors import ConfigError, OptionError
from verl_act.options import Above0, Positive, check_options

if TYPE_CHECKING:
    from verl_act.prompts import Template

_LARGEST_UNIT = 10_000


class Mode(StrEnum):
    """How the turns of an episode become training samples."""

    CONCAT = "concat"
    """One growing token sequence; the loss covers only the model's tokens."""
    STEPWISE = "stepwise"
    """Each turn is a sample, whose prompt shows the last turns of the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSettings:
    """The block `data.act.episode`: limits and reward of an episode, and the size of the environment pool.

    `data.max_response_length` limits a reply in stepwise mode and the whole episode in concat mode;
    `data.max_prompt_length` limits each prompt. The reward of an episode is the sum of its parts.
    """

    mode: Mode = Mode.STEPWISE
    """Format of an episode, a sample per turn (`stepwise`) or one growing sequence (`concat`)."""
    max_turns: Positive = 50
    """Most turns."""
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
    actors: Positive = 1
    """Environment processes (Ray actors), which episodes share."""
    step_timeout: Above0 = 60.0
    """Time limit (s) of one step of an environment."""
    reset_timeout: Above0 = 120.0
    """Time limit (s) of a reset."""
    max_memory_mb: Above0 = 8192.0
    """Memory (MB) above which an actor is replaced, and its episodes are replayed."""
    env_settings: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))
        try:
            check_options(EpisodeSettings, {key.name: getattr(self, key.name) for key in fields(self)})
        except OptionError as error:
            raise ConfigError(f"data.act.episode.{error.option} {error.problem}") from error


class StoppingStrategy(StrEnum):
    """When an epoch ends; the names are those of `datasets.interleave_datasets`."""

    ALL_EXHAUSTED = "all_exhausted"
    """Every row has been shown; files that are short for their weight repeat rows."""
    FIRST_EXHAUSTED = "first_exhausted"
    """One file is used up; no row comes twice, and some rows of other files never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """The block `data.act.mix`. Without weights, files are concatenated."""

    weights: tuple[float, ...] = ()
    """Relative number of rows of each file of `data.train_files`, in their order; [1, 3] is a quarter of the first."""
    stopping_strategy: StoppingStrategy = StoppingStrategy.ALL_EXHAUSTED
    """When an epoch ends."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights or ()))
        object.__setattr__(self, "stopping_strategy", StoppingStrategy(self.stopping_strategy))
        for weight in self.weights:
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ConfigError(f"data.act.mix.weights has {weight!r}; a weight is a number above 0.")
        if self.weights and sum(self.units()) > _LARGEST_UNIT:
            raise ConfigError(
                f"data.act.mix.weights are {list(self.weights)}: the smallest whole numbers in that ratio are "
                f"{self.units()}, too large for an epoch. Round them."
            )

    def units(self) -> list[int]:
        """The weights as the smallest whole numbers in their ratio."""
        exact = [Fraction(str(weight)) for weight in self.weights]
        whole = [int(weight * math.lcm(*(other.denominator for other in exact))) for weight in exact]
        return [count // math.gcd(*whole) for count in whole]


class Order(StrEnum):
    """The order of a pair's actions."""

    HASH = "hash"
    """One row per pair; the expert's action comes first in exactly half of them (with three candidates, in a third)."""
    BOTH = "both"
    """One row for each position of the expert's action: two for an ordinary pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActSettings:
    """Every key of `data.act`, with its default."""

    template: str = "cot"
    """Prompt template: `cot`, `plain`, `compact`, or your own."""
    history_length: int | None = None
    """Most turns of the history in a prompt, the last ones. Default: all."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the template."""
    order: Order = Order.HASH
    """The rows of a pair, by the order of its actions."""
    seed: int = 0
    """Random seed of the order of candidates and of `mix`."""
    verb_balance: int = 1
    """Maximum times to show a training pair in an epoch, so that verbs alone do not reveal the better action."""
    shuffled_labels: bool = False
    """A control in which any candidate of a training pair, drawn once by `seed`, earns the reward of the expert's
    action."""
    inferable_only: bool = False
    """Leave out pairs and steps whose label does not follow from the prompt."""
    allow_degenerate: bool = False
    """Keep training if the first steps had no learning signal (all rewards of each group are equal)."""
    default_agent: str = "single_turn_agent"
    """The agent loop of rows in verl's own layout that name none."""
    thought_markers: tuple[str, ...] | None = None
    """The texts that begin and end a thought, for a model that marks it by control tokens and whose family is not in
    `parse.THOUGHT_MARKERS`; [] if it marks none."""
    mix: MixtureSettings = field(default_factory=MixtureSettings)
    """The training files in a fixed ratio; validation is never mixed."""
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    """Limits and reward of live episodes, and their environment pool."""

    def __post_init__(self) -> None:
        self.make_template()
        if self.verb_balance < 1:
            raise ConfigError(
                f"data.act.verb_balance is {self.verb_balance}; it must be at least 1, which shows every pair once."
            )

    @classmethod
    def from_config(cls, data_config: Any) -> ActSettings:
        """Read `act` from verl's `data` configuration; an absent block gives the defaults.

        Raises `ConfigError` on an unknown key or an impossible value.
        """
        from omegaconf import OmegaConf

        block = data_config.get("act")
        if OmegaConf.is_config(block):
            block = OmegaConf.to_container(block, resolve=True)
        keys = _checked(block, cls, "data.act")
        try:
            if "episode" in keys:
                keys["episode"] = EpisodeSettings(**_checked(keys["episode"], EpisodeSettings, "data.act.episode"))
            if "mix" in keys:
                keys["mix"] = MixtureSettings(**_checked(keys["mix"], MixtureSettings, "data.act.mix"))
            if "order" in keys:
                keys["order"] = Order(keys["order"])
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"data.act: {error}.") from error
        return cls(**keys)

    def make_template(self) -> Template:
        """The template with its options. Raises `ConfigError` if it is unknown."""
        from verl_act.prompts import get_template

        options = dict(self.template_options or {})
        return get_template(self.template, **{"history_length": self.history_length, **options})


def _checked(block: Any, settings: type, name: str) -> dict[str, Any]:
    """`block` as keyword arguments of the dataclass `settings`."""
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        raise ConfigError(f"{name} is {block!r}; it must be a block of keys.")
    known = [known.name for known in fields(settings)]
    for key in block:
        if key not in known:
            raise ConfigError(f"{name} has no key {key!r}; there are {', '.join(known)}.")
    return dict(block)
