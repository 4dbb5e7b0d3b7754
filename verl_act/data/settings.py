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
    """The order of a pair's actions."""

    HASH = "hash"
    """One row per pair; the expert's action comes first in exactly half of them (with three candidates, in a third)."""
    BOTH = "both"
    """One row for each position of the expert's action: two for an ordinary pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActSettings:
    """Every key of `data.act`, with its default."""

    template: str = "cot"
    history_length: int | None = None
    """Turns of history in a prompt; null for all."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the template."""
    order: Order = Order.HASH
    seed: int = 0
    """Random seed of the order of candidates and of `mix`."""
    verb_balance: int = 1
    """Maximum times to show a training pair in an epoch, so that verbs alone do not reveal the better action."""
    inferable_only: bool = False
    """Leave out pairs and steps whose label does not follow from the prompt."""
    allow_degenerate: bool = False
    """Keep training if the first steps had no learning signal (all rewards of each group are equal)."""
    default_agent: str = "single_turn_agent"
    """The agent loop of rows in verl's own layout that name none."""
    mix: MixtureSettings = field(default_factory=MixtureSettings)
    """The training files in a fixed ratio; validation is never mixed."""
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    """Live episodes: limits, reward, environment pool."""

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
