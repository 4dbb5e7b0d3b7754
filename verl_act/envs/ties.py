"""Ties of experts: if an expert's rules rank several actions equal, task and seed decide which one it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from verl_act.envs.base import Task


@dataclass(frozen=True, slots=True)
class TieBreaker:
    """Random choices that repeat for the same task, seed and step, and that no transcript reveals."""

    key: str = ""

    @classmethod
    def of(cls, task: Task, seed: int) -> Self:
        return cls(f"{task.env}\0{task.split}\0{task.task_id}\0{seed}")

    def rank(self, text: str, step: int) -> bytes:
        """The sort key of `text` at a step of the episode."""
        return hashlib.sha256(f"{self.key}\0{step}\0{text}".encode(errors="surrogatepass")).digest()

    def sample(self, texts: Sequence[str], step: int) -> str:
        """One of `texts`, which must not be empty."""
        return min(texts, key=lambda text: self.rank(text, step))
