"""Settings of evaluations and reports (`verl-act eval ...`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from verl_act.errors import OptionError
from verl_act.options import NotNegative, Positive
from verl_act.settings.base import ARGUMENT, RUNTIME, File, Settings, Text
from verl_act.settings.data import EnvSettings, Files, SeedSettings
from verl_act.settings.episodes import EpisodeOptions
from verl_act.settings.model import ModelSettings, SamplingOptions, TemplateSettings


class Rationale(StrEnum):
    """Whose thought precedes the answer."""

    FREE = "free"
    """The model's own."""
    NONE = "none"
    """Nobody's: the reply begins with an empty thought and the answer's tag, so that no other thought can follow."""
    WRONG = "wrong"
    """One that argues for the alternative, as the template words it, opens the reply."""


class EvaluationOptions(EpisodeOptions):
    temperature: NotNegative = 0.0
    """Sampling temperature; 0: greedy."""
    limit: Positive | None = None
    """Expert states and pairs to sample from each split; all tasks and questions are used. Default: all."""
    rationale: list[Annotated[Rationale, Field(strict=False)]] = []
    """Ask the pairs once more under this intervention on the thought: the model's own, none, or one that argues for
    another action; may be given several times."""
    rationale_limit: Positive | None = None
    """Most pairs of each split under an intervention. Default: the limit, or else 400."""
    reasoning: Files = []
    """Questions as in MATH-500 or GPQA-Diamond, .jsonl, .csv or .parquet; may be given several times."""
    reasoning_max_tokens: Positive | None = None
    """Most tokens of a reply to a reasoning question. Default: as for other replies."""


class EvaluationSettings(
    EvaluationOptions, SamplingOptions, ModelSettings, TemplateSettings, EnvSettings, SeedSettings
):
    endpoint: Text | None = None
    """URL of an OpenAI-compatible server that runs the model, such as http://localhost:8000/v1; its key is in
    $OPENAI_API_KEY. Default: an engine of our own."""
    name: Annotated[Text, RUNTIME] = "model"
    """Name of the model in tables and reports."""
    suite: Text | None = None
    """Evaluation suite to play: it fixes tasks, order, environment, turns and seed, so that results can be cited."""
    samples: Positive = 1
    """Samplings of everything, each with another seed; the metrics are means, with the deviation over samplings."""
    tasks: Files = []
    """Eval sets to play, each task once; may be given several times."""
    trajectories: Files = []
    """Expert states for next-action prediction; may be given several times."""
    pairs: Files = []
    """Pairs for choices; may be given several times."""

    def check(self) -> None:
        super().check()
        if self.rationale and not self.pairs:
            raise OptionError("rationale", "intervenes in the answers to pairs; give --pairs.")
        if self.samples > 1 and self.temperature == 0:
            raise OptionError(
                "samples", f"is {self.samples} at temperature 0, where all are the same; raise the temperature."
            )


class CompareSettings(Settings):
    evaluations: Annotated[list[File], ARGUMENT]
    """Folders written by `eval run`."""


class MethodRuns(Settings):
    """The evaluations of one method; folders are relative to the run."""

    stages: list[str]
    """Training stages in order."""
    steps: dict[str, int]
    """Training stage -> optimizer steps; -1 where epochs decide."""
    against: list[str]
    """Methods for paired tests."""
    evaluations: dict[str, str]
    """Seed -> folder of the evaluation."""


class MethodsTableSettings(Settings):
    run: Annotated[File, ARGUMENT]
    """Folder written by `run` with a recipe that lists methods."""
    methods: dict[str, MethodRuns]
    """Method -> stages, steps, against and evaluations."""
    initial_model: str = ""
    """The model that all methods start from."""


class ReportSettings(Settings):
    runs: Annotated[list[File], ARGUMENT]
    """Folders written by `run` (finished or not) or `eval run`."""
    examples: Positive = 40
    """Most episodes, next actions and choices shown per model."""


class SmokeSettings(Settings):
    run: Annotated[File, ARGUMENT]
    """Folder of a run of the recipe `alfworld/gpu_smoke`."""
