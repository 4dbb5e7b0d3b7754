"""Values of every kind, as words that Hydra reads back."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from verl_act.chain.hydra_overrides import hydra_value

VALUES = [
    *("/home/José", "runs/lr=1e-5", "runs (1)", "a,b", "{a: b}", "50%", "[x]", "a b ", "null", "1e-5", "'", '"'),
    *('say "hi"', "back\\slash", 'before\\"quote', "at the end\\", "both\\\\", '\\\\"', "", "two\nlines"),
]


def test_hydra_reads_values_as_they_were() -> None:
    config: dict[str, Any] = {}
    for number, value in enumerate(VALUES):
        config |= {f"path{number}": value, f"list{number}": [value, 1, None, True], f"map{number}": {"key": value}}
    words = [f"++{name}={hydra_value(entry)}" for name, entry in config.items()]
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = OmegaConf.to_container(compose("ppo_trainer", overrides=words))
    assert isinstance(composed, dict)
    assert {name: composed[name] for name in config} == config
