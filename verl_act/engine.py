"""vLLM outside verl, for sampling alternatives and for evaluation. No other module starts an engine.

Asynchronous, so that episodes of different lengths share one engine without waiting for each other. On a CPU build of
vLLM the engine runs in fp32 on the available cores; on a GPU, vLLM's defaults apply.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from verl_act.errors import ConfigError, EngineError, OptionError
from verl_act.manifest import digest
from verl_act.process import quiet_vllm
from verl_act.prompts import Message
from verl_act.prompts.plain_text import as_plain_text, with_opening
from verl_act.prompts.rendering import render, require_usable
from verl_act.prompts.reply_decoder import ReplyDecoder
from verl_act.settings.model import EngineOptions, ModelSettings, Sampling

if TYPE_CHECKING:
    from verl_act.rollout.sequence import GrowingSequence

Result = TypeVar("Result")

_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# vLLM 0.28 rewinds the generator of a seeded request after a partial prefill, which a CPU generator cannot do
# ("CPU Generator does not use offset"), so prompts are prefilled whole.
# One process schedules and runs the model. As "uni", vLLM would start a second one for the model to set its OpenMP
# variables: one more process to start, and to talk to for every token. The caller's environment, or else torch, sets
# the number of threads (`nobind`).
_CPU_ENGINE = {
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_batched_tokens": 8192,
    "enable_chunked_prefill": False,
}

_NOT_OF_VLLM = ("chat_template_kwargs", "seed_requests", "thought_markers")
_DEVICES_OF_A_REPLICA = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply and its log-probability.

    `log_probability` sums over the reply's tokens, before temperature and top-p; None if the prompt left no room for a
    reply, or if it is not finite. `cut`: the reply was truncated.
    """

    text: str
    log_probability: float | None
    cut: bool = False


def check_engine(settings: ModelSettings, sampling: Sampling) -> None:
    """Raise `ConfigError` if the engine has no such option, or a long reply would leave no room for a prompt."""
    require_room(settings, sampling.max_tokens)
    if not (others := settings.engine_options.keys() - EngineOptions.__annotations__.keys()):
        return  # vLLM takes seconds to import
    known = sorted(entry.name for entry in fields(_engine_arguments()))
    for key in others.difference(known):
        like = get_close_matches(key, known, 1)
        hint = f"; do you mean {like[0]!r}?" if like else ". See vLLM's documentation of its engine arguments."
        raise OptionError("engine_options", f"has a key {key!r}, which vLLM's engine does not take{hint}")


def require_room(settings: ModelSettings, max_tokens: int, option: str = "max_tokens") -> None:
    """Raise `OptionError` about `option` if a reply of `max_tokens` fills the model's context."""
    if max_tokens >= settings.context_length:
        raise OptionError(
            option,
            f"is {max_tokens}, which leaves no room for a prompt: the model's context has {settings.context_length} "
            "tokens (max_model_len). Lower the first or raise the second.",
        )


def _engine_arguments() -> Any:
    """vLLM's class of engine arguments. Raises `EngineError` if vLLM cannot be imported."""
    quiet_vllm()
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
    except ImportError as error:
        raise EngineError(f"vLLM cannot be imported ({error}). Install it: see docs/install.md.") from error
    return AsyncEngineArgs


def finite(log_probability: float | None) -> float | None:
    """None instead of NaN and infinities of a diverged model, which JSON cannot hold."""
    return log_probability if log_probability is not None and math.isfinite(log_probability) else None


def request_seed(seed: int, item: str) -> int:
    """The seed for one item's replies. With a shared seed, vLLM would draw the same noise for every item."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{item}".encode()).digest()[:4])


def model_digest(model: str) -> str | None:
    """The hash of a model's folder, whose content may change under the same name; None for a model on a hub."""
    return digest(model) if Path(model).is_dir() else None


def vllm_arguments(settings: ModelSettings) -> dict[str, Any]:
    """vLLM's engine arguments for `settings` on this machine, without the model."""
    from vllm.platforms import current_platform

    extra = {name: value for name, value in settings.engine_options.items() if name not in _NOT_OF_VLLM}
    if current_platform.is_cpu():
        defaults = _CPU_ENGINE
        for name, value in _CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    else:
        defaults = _replicas(extra, current_platform.device_count())
    return {
        **defaults,
        "max_model_len": settings.max_model_len,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        **extra,
    }


def _replicas(extra: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """`data_parallel_size` such that every device is used; nothing where the user places the engine on devices."""
    if any(name.startswith(("data_parallel", "nnodes")) for name in extra):
        return {}
    devices_each = math.prod(int(extra.get(name, 1)) for name in _DEVICES_OF_A_REPLICA)
    return {"data_parallel_size": max(1, devices // devices_each)}


def start_vllm(model: str, arguments: Mapping[str, Any]) -> Any:
    """A running `AsyncLLM`, with the batch size of vLLM's offline class.

    Without a usage context, vLLM would run 128 sequences at once where `LLM` runs 1,024 (on an H100).
    """
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    engine_arguments = _engine_arguments()(model=model, **arguments)
    return AsyncLLM.from_engine_args(engine_arguments, usage_context=UsageContext.LLM_CLASS)


def _seeds_are_free(config: Any) -> bool:
    """Whether vLLM samples seeded requests as fast as others."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu() or bool(getattr(config, "use_v2_model_runner", False))


class RunningModel:
    """A model to ask until its context is left. `without_room` counts the prompts so far that left no room for a reply.

    It has one event loop for its whole life: vLLM's output handler belongs to the loop that first used it.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.chat_template_kwargs = settings.engine_options.get("chat_template_kwargs", {})
        self.without_room = 0
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let its tasks end."""
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine that awaits replies, and return its result."""
        return self._loop.run(coroutine)


class Engine(RunningModel):
    """A running vLLM engine and its tokenizer. Use as a context manager; leaving it stops the engine's processes.

    A start that takes longer than `start_seconds` fails; the default is vLLM's `VLLM_ENGINE_READY_TIMEOUT_S`, or else
    half an hour. `seed` is the engine's own, for requests without one. `max_num_seqs` is the number of requests that
    all replicas of the model run at once.

    On GPUs every group of `tensor_parallel_size` x `pipeline_parallel_size` devices runs a replica, unless
    `data_parallel_size` is set.

    Raises `ConfigError` if the model folder is unusable, and `EngineError` if vLLM does not start.
    """

    seed_requests = True
    replicas = 1
    decoder: ReplyDecoder | None = None

    def __init__(self, settings: ModelSettings, start_seconds: float | None = None, seed: int = 0) -> None:
        if start_seconds is None:
            start_seconds = float(os.environ.get("VLLM_ENGINE_READY_TIMEOUT_S", 1800))
        super().__init__(settings)
        self.tokenizer = usable_tokenizer(settings)
        self.decoder = reply_decoder(self.tokenizer, settings)
        self.reply_prefix = self.decoder.prefix
        _engine_arguments()  # raises an error that says how to install vLLM
        arguments = {"seed": seed, **vllm_arguments(settings)}
        self.max_model_len = arguments["max_model_len"]
        _exit_in_order_when_terminated()
        try:
            with _processes_end_after(start_seconds) as overdue:
                self.llm = start_vllm(settings.model, arguments)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            if overdue.is_set():
                raise EngineError(
                    f"vLLM has not started within {start_seconds:.0f} s with model {settings.model} and "
                    f"{arguments}. Its own messages above say why; if it only needs more time, raise "
                    "VLLM_ENGINE_READY_TIMEOUT_S (seconds)."
                ) from error
            raise EngineError(
                f"vLLM did not start with model {settings.model} and {arguments}: {error}. "
                "Its own messages above say more; lower max_model_len or free memory if it ran out."
            ) from error
        config = self.llm.vllm_config
        self.replicas = config.parallel_config.data_parallel_size
        self.max_num_seqs = self.replicas * config.scheduler_config.max_num_seqs
        self.seed_requests = settings.engine_options.get("seed_requests", _seeds_are_free(config))
        self._next_replica = cycle(range(self.replicas))

    def close(self) -> None:
        """Stop the engine's processes, then let its tasks end."""
        self.llm.shutdown()
        super().close()

    def encode(self, messages: Sequence[Message], opening: str = "") -> list[int]:
        """Token ids of a prompt and the `opening` of its reply, with control tokens in their texts neutralised."""
        plain = as_plain_text(messages, self.tokenizer)
        options = {"add_generation_prompt": True, **self.chat_template_kwargs}
        if not opening:
            token_ids: list[int] = render(self.tokenizer, plain, return_dict=False, **options)
            return token_ids
        (reply,) = as_plain_text([{"role": "assistant", "content": opening}], self.tokenizer)
        prompt = with_opening(
            render(self.tokenizer, plain, tokenize=False, **options), reply["content"], self.reply_prefix
        )
        return list(self.tokenizer.encode(prompt, add_special_tokens=False))

    async def reply(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None, opening: str = ""
    ) -> list[str]:
        """`sampling.n` replies to a prompt, each preceded by what the prompt already wrote of it (`<think>`).

        `opening`, which starts with `<think>`, is put into the model's mouth: replies continue and contain it.

        They are truncated at the end of the model's context. A prompt that leaves no room gets empty replies, which
        then count as malformed.
        """
        completions = await self.complete(messages, sampling, seed, opening)
        start = opening or self.reply_prefix
        return [start + self._text(completion) for completion in completions] or [""] * sampling.n

    async def scored_reply(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None
    ) -> list[Reply]:
        """As `reply`, with each reply's log-probability and whether it was truncated."""
        completions = await self.complete(messages, sampling, seed, logprobs=0)
        replies = [
            Reply(self.reply_prefix + self._text(one), finite(one.cumulative_logprob), one.finish_reason == "length")
            for one in completions
        ]
        return replies or [Reply("", None, cut=True)] * sampling.n

    def sequence(self, messages: Sequence[Message]) -> GrowingSequence:
        """An episode as one growing sequence, as verl's agent loops build it for this model."""
        from verl_act.rollout.sequence import GrowingSequence

        sequence = GrowingSequence(messages, self.tokenizer, self._token_builder)
        sequence.replica = next(self._next_replica) if self.replicas > 1 else None
        return sequence

    @cached_property
    def _token_builder(self) -> Any:
        """The token builder that verl chooses for the model's family."""
        from verl.utils.tokenizer import hf_processor
        from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

        return create_continuous_token_builder(
            self.tokenizer,
            hf_model_type=self.llm.model_config.hf_config.model_type,
            chat_template_kwargs=self.chat_template_kwargs,
            processor=hf_processor(self.settings.model, trust_remote_code=self.settings.trust_remote_code),
        )

    async def next_reply(self, sequence: GrowingSequence, sampling: Sampling, seed: int | None = None) -> str | None:
        """One reply to what `sequence` says so far, which then holds it; None where no room for one is left."""
        completions = await self.generate(sequence.sample.token_ids, sampling, seed, sequence.replica)
        if not completions:
            return None
        (completion,) = completions
        text = self._text(completion)
        sequence.reply(completion.token_ids, text)
        return f"{self.reply_prefix}{text}"

    def _text(self, completion: Any) -> str:
        if self.decoder is None or not self.decoder.rewrites:
            text: str = completion.text
            return text
        return self.decoder.text(completion.token_ids)

    async def complete(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None, opening: str = "", **options: Any
    ) -> list[Any]:
        """vLLM's completions; none if the prompt leaves no room, which is counted."""
        completions = await self.generate(self.encode(messages, opening), sampling, seed, **options)
        self.without_room += not completions
        return completions

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        seed: int | None,
        replica: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """vLLM's completions; none if the prompt leaves no room. `options` are further sampling parameters.

        `replica` is the one that runs the request; None: the least busy.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = self.max_model_len - len(prompt_ids)
        if room < 1:
            return []
        sampling_options = {**sampling.model_dump(), "max_tokens": min(sampling.max_tokens, room), **options}
        if self.seed_requests:
            sampling_options["seed"] = seed
        parameters = SamplingParams(**sampling_options, output_kind=RequestOutputKind.FINAL_ONLY)
        placed = {} if replica is None else {"data_parallel_rank": replica}
        final = None
        prompt = {"prompt_token_ids": list(prompt_ids)}
        async for output in self.llm.generate(prompt, parameters, uuid4().hex, **placed):
            final = output
        if final is None:
            raise EngineError("vLLM ended a request without a reply; its messages above say why.")
        return list(final.outputs)


@contextmanager
def _processes_end_after(seconds: float) -> Iterator[threading.Event]:
    """Kill processes that were started in this block and still run after `seconds`; the event is set if so.

    vLLM's engine process may hang after a failed start, because Python collects its ZeroMQ context before the sockets,
    and vLLM waits without limit for its message or its exit.
    """
    before = set(multiprocessing.active_children())
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        for process in set(multiprocessing.active_children()) - before:
            process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield overdue
    finally:
        timer.cancel()


def _exit_in_order_when_terminated() -> None:
    """Let SIGTERM end this process like an exception: vLLM's processes do not notice if it just disappears."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(signal_number: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the shutdown of vLLM
    sys.exit(128 + signal_number)


def usable_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of an engine. Raises `ConfigError` as `load_tokenizer` does, without starting the engine."""
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    require_usable(tokenizer, settings.engine_options.get("chat_template_kwargs"))
    reply_decoder(tokenizer, settings)
    return tokenizer


def reply_decoder(tokenizer: Any, settings: ModelSettings) -> ReplyDecoder:
    """The decoder of the model's replies. Raises `ConfigError` if it may mark thoughts in a way that is not known."""
    options = settings.engine_options
    return ReplyDecoder(tokenizer, options.get("chat_template_kwargs"), options.get("thought_markers"))


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer; code that comes with the model only runs with `trust_remote_code`.

    Raises `ConfigError` if the folder has none, or one that cannot render our prompts.
    """
    from transformers import AutoTokenizer

    if Path(model).is_absolute() and not Path(model, "config.json").is_file():
        raise ConfigError(
            f"{model}: no model here (config.json is missing). Give a Hugging Face folder or model id; a model of this "
            "package that is missing is made by `make` in a checkout (make embedded-model-full, for example)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged files raise errors of many types
        raise ConfigError(
            f"{model}: has no tokenizer that can be read ({type(error).__name__}: {error}). Copy tokenizer.json, "
            "tokenizer_config.json and config.json into the folder, from the model it was trained from."
        ) from error
    require_usable(tokenizer)
    return tokenizer
