"""What a stage is: a command of this package, or a training run of verl."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl_act.chain.hydra_overrides import hydra_value
from verl_act.command_line import words
from verl_act.commands import COMMANDS, Command
from verl_act.run_folder import NamedStage, TrainingFolder
from verl_act.settings.base import Settings

Trainer = Literal["ppo", "sft", "dpo"]
_MODULES: Mapping[Trainer, str] = {
    "ppo": "verl.trainer.main_ppo",
    "sft": "verl.trainer.sft_trainer",
    "dpo": "verl_act.dpo",
}
CONFIG_NAMES: Mapping[Trainer, str] = {"ppo": "ppo_trainer", "sft": "sft_trainer_engine"}
"""The configurations of verl that the trainers start from."""
_SPLITS = "train_split or valid_splits"


@dataclass(frozen=True, slots=True)
class CommandStage(NamedStage):
    """A command of this package. `inputs` are hashed to decide whether it is up to date, besides its input files."""

    command: str
    settings: Settings
    output: Path
    """Exists when the stage is done; the value of `--out`, if the command has one."""
    other_inputs: Sequence[Path] = ()
    block: str = ""
    """Block of the recipe that has the command's options."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Option -> key of the recipe, where they differ otherwise."""
    shared: bool = False
    """Whether it makes data that all methods and seeds use."""

    @property
    def inputs(self) -> list[Path]:
        return [*self.settings.inputs(), *self.other_inputs]

    @property
    def definition(self) -> Command:
        return COMMANDS[self.command]

    def recorded(self) -> dict[str, Any]:
        """Everything besides the inputs that determines the output."""
        return {"command": self.command, **self.settings.recorded()}

    def recipe_key(self, option: str, recipe: Settings) -> str:
        """The recipe's key for an option of the command."""
        name, dot, rest = option.partition(".")
        options = type(getattr(recipe, self.block)).model_fields if self.block else {}
        keys = {"split": _SPLITS, "splits": _SPLITS, **self.keys}
        return keys.get(name, f"{self.block}.{name}" if name in options else name) + dot + rest

    def argv(self) -> list[str]:
        out = [] if self.definition.writes == "nothing" else ["--out", str(self.output)]
        return [sys.executable, "-m", "verl_act", *self.command.split(), *out, *words(self.settings)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStage(NamedStage):
    """A run of verl, or of TRL for `dpo`, which writes a model to `folder.model` and resumes from its checkpoints."""

    trainer: Trainer
    config: Sequence[str]
    """Hydra groups, such as `act=critic`."""
    overrides: Mapping[str, Any]
    """Dotted key of verl, with `++` where it may be new -> value."""
    folder: TrainingFolder
    inputs: Sequence[Path]
    key: str
    """The recipe's key of the stage, `training.critic`."""

    @property
    def output(self) -> Path:
        return self.folder.path

    def recorded(self) -> dict[str, Any]:
        """Everything besides the inputs that determines the output."""
        return {"trainer": self.trainer, "config": list(self.config), "overrides": dict(self.overrides)}

    def override(self, *keys: str) -> Any:
        """The value of the first of verl's `keys` that the stage sets; None if it sets none."""
        values = {key.lstrip("+"): value for key, value in self.overrides.items()}
        return next((values[key] for key in keys if values.get(key) is not None), None)

    def sets_null(self, *keys: str) -> bool:
        """Whether the stage sets one of verl's `keys` to null."""
        return any(key.lstrip("+") in keys and value is None for key, value in self.overrides.items())

    def hydra_overrides(self, further: Mapping[str, Any] | None = None) -> list[str]:
        """The arguments of verl's trainer; `further` overrides are added."""
        values = {**self.overrides, **(further or {})}
        return [
            *(f"+{group}" for group in self.config),
            *(f"{key}={hydra_value(value)}" for key, value in values.items()),
        ]

    def argv(self, further: Mapping[str, Any] | None = None) -> list[str]:
        launcher = [sys.executable, "-m"]
        if self.trainer != "ppo":  # one process per device
            processes = self.override("trainer.n_gpus_per_node") or 1
            launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        return [*launcher, _MODULES[self.trainer], *self.hydra_overrides(further)]


Stage = CommandStage | TrainingStage
