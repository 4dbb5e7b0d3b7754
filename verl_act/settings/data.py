"""Settings of the stages that make data (`verl-act data ...`). `...Options` are blocks of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from verl_act.errors import OptionError
from verl_act.options import Above0, Count, NotNegative, Positive, Seed, Share, TopP
from verl_act.process import TASK_TIMEOUT
from verl_act.settings.base import ARGUMENT, INPUT, RUNTIME, File, Settings, Text
from verl_act.settings.model import ModelSettings, SamplingOptions, TemplateSettings

Files = Annotated[list[File], INPUT]
RoomSize = Literal["full", "small"]
SftKind = Literal["il", "reflection", "choice", "rejection", "dpo"]
OFFICIAL_GAMES = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
"""Playable games of the official ALFWorld data: the splits of its own evaluation (arXiv 2010.03768)."""


class EnvSettings(Settings):
    env_settings: dict[str, Any] = {}
    """Keyword arguments of the environment, such as `data=games`."""


class WorkerSettings(Settings):
    workers: Annotated[Count, RUNTIME] = 1
    """Worker processes; 0: none, and no time limit."""
    task_timeout: Annotated[Above0, RUNTIME] = TASK_TIMEOUT
    """Time limit (s) of one game, task, row or trajectory; one that exceeds it is left out and reported."""


class SeedSettings(Settings):
    seed: Seed = 0
    """Random seed."""


class GamesOptions(SeedSettings):
    counts: dict[str, Count] | None = None
    """Number of games of each split."""
    size: RoomSize = "full"
    """Size of the rooms: `full`, the whole floor plan as in ALFWorld, or `small`, nine receptacles."""


class GamesSettings(GamesOptions, WorkerSettings):
    env: Annotated[Text, ARGUMENT] = "alfworld"
    """Name of the environment."""
    counts: dict[str, Count] = OFFICIAL_GAMES
    """Number of games of each split."""


class CatalogueSettings(SeedSettings):
    products: Positive = 1000
    """Number of products."""
    instructions: Positive = 4
    """Number of instructions (goals) per product."""


class ExpertSettings(EnvSettings, SeedSettings, WorkerSettings):
    env: Annotated[Text, ARGUMENT]
    """Name of the environment."""
    split: Annotated[Text, ARGUMENT]
    """The split whose tasks are played."""
    expert: Text | None = None
    """Name of the expert. Default: the environment's first."""
    limit: Positive | None = None
    """Most tasks, sampled with the seed. Default: all."""


class ImportSettings(EnvSettings, WorkerSettings):
    env: Annotated[Text, ARGUMENT]
    """Name of the environment."""
    files: Annotated[list[File], INPUT, ARGUMENT]
    """Published files of one environment."""
    format: Text = "actions"
    """Format of the files: `eto`, `early-experience`, `webshop-human`, or `actions` (task_id and actions)."""
    split: Text | None = None
    """Import only this split. Default: all."""


class AlternativesOptions(SamplingOptions):
    n: Positive = 4
    """Number of samples per state."""
    top_p: TopP = 1.0
    """Nucleus sampling: probability mass to sample from."""
    limit: Positive | None = None
    """Sample whole trajectories until a split has this many states. Default: all."""
    workers: Annotated[Count, RUNTIME] = 0
    """Number of engines on a Ray cluster; 0: one local engine, without Ray."""
    gpus_per_worker: Annotated[NotNegative, RUNTIME] = 1
    """GPUs of each of those engines."""


class AlternativesSettings(AlternativesOptions, ModelSettings, TemplateSettings, SeedSettings):
    trajectories: Files
    """Files of expert trajectories; may be given several times."""
    allow_degenerate: Annotated[bool, RUNTIME] = False
    """Continue even if no reply so far has an action."""


class PairsOptions(Settings):
    max_alternatives_per_state: Positive = 1
    """Most alternatives per state."""
    candidates: Positive = 2
    """Most actions in a pair, including the expert's; with more than two, a pair has several alternatives."""
    source: Literal["policy", "admissible"] = "policy"
    """`policy`: replies sampled from the initial policy; `admissible`: random admissible actions."""
    matched_first: bool = True
    """Prefer alternatives that are admissible and have the expert's verb and number of words: shallow features tell
    others from the expert's action."""
    stand_ins: bool = True
    """Give a state without a usable reply a random admissible action, marked as such."""
    margins: bool = True
    """Measure margins in the environment; otherwise they are unknown, and no alternative is dropped for its margin."""
    keep_nonpositive_margin: bool = False
    """Keep alternatives that are no worse than the expert's action."""
    inferable_only: bool = False
    """Leave out states whose expert action does not follow from the transcript."""
    max_inadmissible_share: Share = 1.0
    """Largest share of pairs whose alternative the environment refuses."""
    limit: Positive | None = None
    """Most pairs; trajectories are then used in random order. Default: all."""

    def check(self) -> None:
        most = 1 + self.max_alternatives_per_state
        if not 2 <= self.candidates <= most:
            raise OptionError(
                "candidates",
                f"is {self.candidates}; it must be at least 2, and at most 1 + max_alternatives_per_state ({most}).",
            )


class PairsSettings(PairsOptions, EnvSettings, SeedSettings, WorkerSettings):
    trajectories: Files
    """Files of expert trajectories; may be given several times."""
    alternatives: Files = []
    """Files of sampled alternatives; may be given several times."""

    def check(self) -> None:
        super().check()
        if self.source == "policy" and not self.alternatives:
            raise OptionError("alternatives", "is missing: give files of `data alternatives`, or source admissible.")


class PreferencesSettings(Settings):
    files: Annotated[list[File], INPUT, ARGUMENT]
    """Preference data: .parquet, .jsonl or .json, also .gz."""
    split: Text = "train"
    """Split name of the pairs."""
    env: Text = "preference"
    """Environment name, used in the data source `act/<env>/choice`."""
    candidates: Annotated[int, Field(ge=2)] = 2
    """Most candidate replies of one choice."""


class AuditOptions(Settings):
    """Highest accuracy allowed for a classifier that sees only a feature unrelated to the label. With two candidates
    0.5 is chance."""

    max_length_accuracy: Share = 0.75
    """Accuracy of always choosing the longer, or the shorter, action. Above the bound: an error."""
    max_verb_accuracy: Share = 0.65
    """Accuracy of preferring one verb. Above the bound: a warning, because experts do prefer some verbs."""
    max_probe_accuracy: Share = 0.75
    """Accuracy of a classifier of shallow features (`FEATURES` in `verl_act.data_prep.pairs.probe`). Above the bound: a
    warning, because some features, such as words of the goal, are reasons too."""
    max_order_imbalance: Share = 0.01
    """Distance of the share of rows with the expert's action first from its fair share, one half with two candidates.
    Above the bound: an error."""


class AuditSettings(AuditOptions, TemplateSettings, SeedSettings):
    pairs: Files
    """Pairs that are used together for training; may be given several times."""
    held_out: Files = []
    """Held-out pairs, checked for leakage; may be given several times."""


class TasksSettings(EnvSettings, SeedSettings):
    env: Annotated[Text, ARGUMENT]
    """Name of the environment."""
    splits: Annotated[list[Text], Field(min_length=1)]
    """Split of tasks; may be given several times."""
    limit: Positive | None = None
    """Most tasks of each split, sampled with the seed. Default: all."""


class ReflectSettings(SamplingOptions, ModelSettings, TemplateSettings, EnvSettings, SeedSettings, WorkerSettings):
    trajectories: Files
    """Files of expert trajectories; may be given several times."""
    pairs: Files
    """Pairs of these trajectories; may be given several times."""


class SftSettings(TemplateSettings, SeedSettings):
    kind: SftKind = "il"
    """What the rows teach. `il`: the expert's actions; `reflection`: these, and again with a reflection before them;
    `choice`: the better action of a pair; `rejection`: sampled replies that have the expert's action; `dpo`: to prefer
    the expert's action, for TRL's `DPOTrainer`."""
    trajectories: Files = []
    """Files of expert trajectories; may be given several times. For `il`, `reflection` and `rejection`."""
    pairs: Files = []
    """Pairs; may be given several times. For `choice` and `dpo`."""
    alternatives: Files = []
    """Files of `data alternatives`; may be given several times. For `rejection`."""
    reflections: Files = []
    """Files of `data reflect`; may be given several times. For `reflection`."""
    model: Text
    """Model folder or hub id, whose tokenizer counts the tokens."""
    max_length: Positive | None = None
    """Most tokens of a row; longer rows are left out. Default: no limit."""
    trust_remote_code: Annotated[bool, RUNTIME] = False
    """Run code that comes with the model's tokenizer."""
    chat_template_kwargs: dict[str, Any] = {}
    """The trainer's `data.apply_chat_template_kwargs`, to count tokens as it does."""

    def check(self) -> None:
        needed = SFT_INPUTS[self.kind]
        for name, files in self.values(INPUT).items():
            if bool(files) != (name in needed):
                raise OptionError(
                    name,
                    f"is {'missing' if not files else 'given'}, but rows of kind {self.kind} need {', '.join(needed)}.",
                )


SFT_INPUTS: dict[SftKind, tuple[str, ...]] = {
    "il": ("trajectories",),
    "reflection": ("trajectories", "reflections"),
    "choice": ("pairs",),
    "rejection": ("trajectories", "alternatives"),
    "dpo": ("pairs",),
}
"""Kind of rows -> the files that they are made from."""


class EmbeddedModelSettings(SeedSettings):
    """Size and warm-up of an embedded model; the Makefile has the settings of each environment."""

    trajectories: Files
    """Files of expert trajectories; may be given several times."""
    vocabulary: Positive = 1024
    """Tokens of the byte-level BPE, without the added phrases and names."""
    layers: Positive = 4
    """Transformer layers."""
    width: Positive = 128
    """Hidden size."""
    heads: Positive = 4
    """Attention heads."""
    key_value_heads: Positive = 2
    """Key-value heads."""
    feed_forward: Positive = 384
    """Size of the feed-forward layer."""
    context: Positive = 2048
    """Positions of the model, the most tokens that it can read."""
    steps: Positive = 8000
    """Training steps."""
    batch_size: Positive = 32
    """Rows per step."""
    learning_rate: Above0 = 3e-3
    """Learning rate of AdamW, for embeddings and norms."""
    matrix_learning_rate: Above0 = 0.02
    """Learning rate of Muon, for the layers' matrices. Loss in ALFWorld after 800 steps: 0.36; AdamW alone: 0.44."""
    expert_share: Share = 0.6
    """Share of the next actions that are the expert's; the others are sampled from the admissible ones."""
    choice_share: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    """Share of the warm-up rows that are choice questions (with random answers); at most one a step."""
    stranger_share: Share = 0.5
    """Share of the choice questions whose other candidate comes from another state, so that answering means copying."""
    passes: Positive = 2
    """How often rows are made of every step, each time with other random answers, so that none is memorized."""
    whole_text_share: Share = 0.25
    """Share of the rows whose prompt is learned too, which teaches the vocabulary."""
    held_out: Count = 500
    """How many of the last steps, with all of their tasks, are held out for the metrics."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """Data type of the saved weights, `float32` or `bfloat16`; training uses float32."""
    thoughts: bool = False
    """Whether a thought, `<think>subgoal</think>`, precedes the answer. Another task's thought and action then replace
    the random action."""
    template_options: dict[str, Any] = {}
    """Options of the template `compact`, over those of the environment's dialect."""
    start: str = ""
    """Folder of an embedded model to continue from, with its tokenizer and size; empty: new weights."""
