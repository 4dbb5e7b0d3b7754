"""Settings of the verdict on a smoke run."""

from __future__ import annotations

from typing import Annotated

from verl_act.settings.base import ARGUMENT, File, Settings


class SmokeSettings(Settings):
    run: Annotated[File, ARGUMENT]
    """Folder of a run of the recipe `alfworld/gpu_smoke`."""
