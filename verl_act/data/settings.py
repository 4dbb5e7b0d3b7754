"""The configuration block `data.act`: how rows become prompts, and how live episodes are played."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from omegaconf import OmegaConf

from verl_act.data.mixture import MixtureSettings
from verl_act.errors import ConfigError
from verl_act.prompts import Template, get_template
from verl_act.rollout.settings import EpisodeSettings


class Order(StrEnum):
    """In which order a pair's actions are shown."""

    HASH = "hash"
    """One row per pair; the expert's action comes first in exactly half of them (of three candidates, in a third)."""
    BOTH = "both"
    """A row for each place that the expert's action can have: two of an ordinary pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActSettings:
    """Every key of `data.act`, with its default."""

    template: str = "cot"
    history_length: int | None = None
    """Turns of history that a prompt shows; null for all."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the template."""
    order: Order = Order.HASH
    seed: int = 0
    """Draws the order; any other seed shows every pair afresh."""
    verb_balance: int = 1
    """Most times that a training pair is shown in an epoch, so that its verbs alone do not tell the better action."""
    inferable_only: bool = False
    """Leave out pairs and steps whose label cannot be told from the prompt."""
    allow_degenerate: bool = False
    """Train on although the first steps have had no learning signal: all rewards of each group are equal."""
    default_agent: str = "single_turn_agent"
    """The agent loop of rows from verl's own data sets that name none."""
    mix: MixtureSettings = field(default_factory=MixtureSettings)
    """The training files in a fixed ratio; validation is never mixed."""
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    """Live episodes: limits, reward, environment pool."""

    def __post_init__(self) -> None:
        self.make_template()
        if self.verb_balance < 1:
            raise ConfigError(
                f"data.act.verb_balance is {self.verb_balance}; 1 shows every pair once, and is the least."
            )

    @classmethod
    def from_config(cls, data_config: Any) -> ActSettings:
        """Read `act` from verl's `data` configuration; an absent block gives the defaults.

        Raises `ConfigError` on an unknown key or an impossible value.
        """
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
        """The template with its options. Raises `ConfigError` where it is unknown."""
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
