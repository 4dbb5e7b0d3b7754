"""Settings of models, prompts and sampling, shared by several stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from pydantic import Field

from verl_act.errors import OptionError
from verl_act.options import NotNegative, Positive, TopP, check_options
from verl_act.settings.base import Settings, Text

if TYPE_CHECKING:
    from verl_act.prompts import Template


class SamplingOptions(Settings):
    """What every stage that samples replies can set."""

    temperature: NotNegative = 1.0
    """Sampling temperature; 0: greedy."""
    max_tokens: Positive = 512
    """Most tokens of a reply."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(**{name: value for name, value in self if name in Sampling.model_fields})


class Sampling(SamplingOptions):
    """How replies are sampled."""

    n: Positive = 1
    """Replies for each prompt."""
    top_p: TopP = 1.0
    """Nucleus sampling: probability mass to sample from."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Number of tokens to sample from; -1: all."""

    def check(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise OptionError(
                "n", f"is {self.n} at temperature 0, where all samples are the same; raise the temperature."
            )


class EngineOptions(TypedDict):
    """Keys of `engine_options` that this package reads too."""

    max_model_len: Positive
    """Most tokens of prompt and reply together, instead of the option of this name."""
    trust_remote_code: bool
    """Run code that comes with the model."""
    chat_template_kwargs: dict[str, Any]
    """For prompts."""
    seed_requests: bool
    """Whether every request has a seed of its own, so that its replies do not depend on what else the engine runs.
    If not, the engine has one seed, and a repeated or resumed run samples other replies. The default is true where it
    costs nothing: on a CPU, and with vLLM's V2 model runner. The sampler of its V1 runner handles seeded requests one
    by one, and without FlashInfer."""
    thought_markers: list[str]
    """The texts that begin and end a thought, for a model that marks it by control tokens and whose family is not in
    `parse.THOUGHT_MARKERS`; [] if it marks none."""


class ModelSettings(Settings):
    """A model and the engine that it runs on."""

    model: Text
    """Model folder or hub id."""
    max_model_len: Positive = 4096
    """Most tokens of prompt and reply together."""
    engine_options: dict[str, Any] = {}
    """Further arguments of vLLM's engine, and `chat_template_kwargs`."""

    def check(self) -> None:
        check_options(EngineOptions, self.engine_options, "engine_options")
        if "model" in self.engine_options:
            raise OptionError("engine_options", "has a key 'model'; give it as --model instead.")
        super().check()

    @property
    def trust_remote_code(self) -> bool:
        """Whether code that comes with the model may run."""
        return bool(self.engine_options.get("trust_remote_code", False))

    @property
    def context_length(self) -> int:
        """Maximum tokens of a prompt and its reply together."""
        return self.engine_options.get("max_model_len") or self.max_model_len


class TemplateSettings(Settings):
    template: Text = "cot"
    """Prompt template: `cot`, `plain`, `compact`, or your own."""
    template_options: dict[str, Any] = {}
    """Options of the template, such as `history_length=10`."""

    def make_template(self) -> Template:
        """The template with its options. Raises `ConfigError` if it is unknown."""
        from verl_act.prompts import get_template

        return get_template(self.template, **self.template_options)
