"""Settings of evaluations and reports (`verl-act eval ...`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from verl_act.errors import OptionError
from verl_act.options import Above0, NotNegative, Positive
from verl_act.settings.base import ARGUMENT, RUNTIME, File, Settings, Text
from verl_act.settings.data import EnvSettings, Files, SeedSettings
from verl_act.settings.model import ModelSettings, Sampling, TemplateSettings


class PoolSettings(Settings):
    """Environment processes of live episodes."""

    actors: Annotated[Positive, RUNTIME] = 1
    """Number of environment processes."""
    step_timeout: Annotated[Above0, RUNTIME] = 60.0
    """Time limit (s) of one step of an environment."""
    reset_timeout: Annotated[Above0, RUNTIME] = 120.0
    """Time limit (s) of a reset."""
    max_memory_mb: Annotated[Above0, RUNTIME] = 8192.0
    """Memory (MB) above which an environment process is replaced."""
    num_cpus: Annotated[NotNegative, RUNTIME] = 0.0
    """CPUs that Ray reserves for an environment process."""

    @property
    def pool(self) -> dict[str, Any]:
        """The keyword arguments of `EnvPool`."""
        return {name: getattr(self, name) for name in PoolSettings.model_fields}


class EvaluationOptions(PoolSettings):
    temperature: NotNegative = 0.0
    """Sampling temperature; 0: greedy."""
    max_tokens: Positive | None = None
    """Most tokens of a reply."""
    max_turns: Positive = 50
    """Most turns of an episode."""
    mode: Literal["stepwise", "concat"] = "stepwise"
    """Format of episodes, as in training: a prompt per turn, or one growing sequence."""
    limit: Positive | None = None
    """Expert states and pairs to sample from each split; all tasks and questions are used. Default: all."""
    rationale: list[Literal["free", "none", "wrong"]] = []
    """Ask the pairs once more under this intervention on the thought: the model's own, none, or one that argues for
    another action; may be given several times."""
    rationale_limit: Positive | None = None
    """Most pairs of each split under an intervention. Default: the limit, or else 400."""
    reasoning: Files = []
    """Questions as in MATH-500 or GPQA-Diamond, .jsonl, .csv or .parquet; may be given several times."""
    reasoning_max_tokens: Positive | None = None
    """Most tokens of a reply to a reasoning question. Default: as for other replies."""


class EvaluationSettings(EvaluationOptions, ModelSettings, TemplateSettings, EnvSettings, SeedSettings):
    max_tokens: Positive = 512
    """Most tokens of a reply."""
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

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, max_tokens=self.max_tokens)


class CompareSettings(Settings):
    evaluations: Annotated[list[File], ARGUMENT]
    """Folders written by `eval run`."""


class MethodRuns(Settings):
    """The evaluations of one method; folders are relative to the run."""

    steps: dict[str, int]
    """Training stage -> optimizer steps; -1 where epochs decide."""
    against: list[str]
    """Methods for paired tests."""
    evaluations: dict[str, str]
    """Seed -> folder of the evaluation."""
    training: dict[str, list[str]]
    """Seed -> names of its training stages."""


class MethodsTableSettings(Settings):
    run: Annotated[File, ARGUMENT]
    """Folder written by `run` with a recipe that lists methods."""
    methods: dict[str, MethodRuns]
    """Method -> steps, against, evaluations and training."""
    initial_model: str = ""
    """The model that all methods start from."""


class ReportSettings(Settings):
    runs: Annotated[list[File], ARGUMENT]
    """Folders written by `run` (finished or not) or `eval run`."""
    examples: Positive = 40
    """Most episodes, next actions and choices shown per model."""
