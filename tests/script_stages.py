"""Stages that run a Python script where a command of the package, or verl, would run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_act.chain.stages import CommandStage, TrainingStage
from verl_act.run_folder import TrainingFolder
from verl_act.settings.base import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Script(CommandStage):
    code: str
    arguments: Sequence[str]

    def recorded(self) -> dict[str, Any]:
        return {"code": self.code, "arguments": list(self.arguments)}

    def argv(self) -> list[str]:
        return [sys.executable, "-c", self.code, *self.arguments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer(TrainingStage):
    code: str
    arguments: Sequence[str] = field(default_factory=list)

    def argv(self, further: Mapping[str, Any] | None = None) -> list[str]:
        return [sys.executable, "-c", self.code, *self.arguments, *self.hydra_overrides(further)]


def script(title: str, code: str, output: Path, inputs: Sequence[Path] = (), arguments: Sequence[str] = ()) -> Script:
    return Script(
        title=title,
        command="dev script",
        settings=Settings(),
        output=output,
        other_inputs=inputs,
        code=code,
        arguments=arguments,
    )


def trainer(
    title: str,
    code: str,
    folder: Path,
    inputs: Sequence[Path] = (),
    arguments: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Trainer:
    return Trainer(
        title=title,
        trainer="sft",
        config=[f"stage={argument}" for argument in arguments],
        overrides=overrides or {},
        folder=TrainingFolder(folder),
        inputs=inputs,
        key="training.critic",
        code=code,
        arguments=arguments,
    )
