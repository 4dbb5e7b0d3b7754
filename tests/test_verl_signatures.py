"""Cross-cutting: everything of verl's and vLLM's that this package calls, overrides or subclasses, pinned by name.

A newer verl that changes one of them fails here first, and says which of our files depends on it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import verl  # noqa: F401  (and with it the plugin)

from verl_act.upstream_gaps.cpu.platform import PlatformCPU

AGENT_LOOP = "verl.experimental.agent_loop.agent_loop"
LOOP_FILE = "verl_act/rollout/agent_loop.py"
DATASET_FILE = "verl_act/data/dataset.py"
ENGINE_FILE = "verl_act/engine.py"
ROLES_FILE = "verl_act/upstream_gaps/alternating_roles.py"
SEQUENCE_FILE = "verl_act/rollout/sequence.py"


@dataclass(frozen=True)
class Pin:
    """`target` (module:attribute) must take `parameters`, in this order unless `keywords`; `used_by` relies on it."""

    target: str
    parameters: tuple[str, ...]
    used_by: str
    keywords: bool = True
    exactly: bool = False


PINS = [
    Pin("verl.trainer.ppo.utils:create_rl_sampler", ("data_config", "dataset"), "verl_act/data/mixture.py"),
    Pin("verl.utils.import_utils:load_extern_object", ("module_path", "object_name"), "verl_act/reward_fns/route.py"),
    Pin(
        f"{AGENT_LOOP}:AgentLoopBase.__init__",
        (
            *("self", "trainer_config", "server_manager", "tokenizer", "processor", "dataset_cls"),
            *("data_config", "hf_model_type", "kwargs"),
        ),
        LOOP_FILE,
        exactly=True,
    ),
    Pin(f"{AGENT_LOOP}:AgentLoopBase.run", ("self", "sampling_params", "kwargs"), LOOP_FILE, exactly=True),
    Pin(
        "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder.build_initial_tokens",
        ("self", "messages"),
        SEQUENCE_FILE,
        keywords=False,
    ),
    Pin(
        "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder._tokenize_single_non_tool",
        ("self", "message", "tools", "add_generation_prompt"),
        ROLES_FILE,
        exactly=True,
    ),
    Pin(
        "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder.render_delta_token_id",
        ("self", "prefix_messages", "appended_messages", "add_generation_prompt", "tools"),
        ROLES_FILE,
        exactly=True,
    ),
    Pin(
        "verl.utils.dataset.multiturn_sft_dataset:extract_system_prompt_and_generation",
        ("tokenizer", "apply_chat_template_kwargs"),
        ROLES_FILE,
        exactly=True,
    ),
    Pin(
        "verl.utils.dataset.multiturn_sft_dataset:MultiTurnSFTDataset._process_single_message",
        ("self", "index", "message", "full_message", "tools", "enable_thinking"),
        "verl_act/data/sft_dataset.py",
        exactly=True,
    ),
    Pin(
        "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder.merge_context_tokens",
        ("self", "previous_messages", "updated_messages", "runtime_token_ids"),
        SEQUENCE_FILE,
        keywords=False,
    ),
    Pin(
        "verl.utils.tokenizer.continuous_token:ContinuousTokenBuilder.align_response_metadata",
        ("self", "merge_result", "response_mask", "response_logprobs"),
        SEQUENCE_FILE,
        keywords=False,
    ),
    Pin(
        "verl.utils.tokenizer.continuous_token_wiring:create_continuous_token_builder",
        ("tokenizer", "hf_model_type", "chat_template_kwargs", "processor"),
        ENGINE_FILE,
    ),
    Pin("verl.utils.tokenizer:hf_processor", ("name_or_path",), ENGINE_FILE, keywords=False),
    Pin(f"{AGENT_LOOP}:register", ("agent_name",), LOOP_FILE, keywords=False),
    Pin(f"{AGENT_LOOP}:DictConfigWrap.__init__", ("self", "config"), "tests/test_agent_loop.py"),
    Pin(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_metrics",
        ("self", "batch", "metrics"),
        "verl_act/upstream_gaps/training_metrics.py",
        keywords=False,
    ),
    Pin(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._add_prompts_to_generate",
        ("self", "num_prompts"),
        "verl_act/upstream_gaps/failed_rollouts.py",
        exactly=True,
    ),
    Pin(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._validate",
        ("self",),
        "verl_act/upstream_gaps/failed_rollouts.py",
        exactly=True,
    ),
    Pin(
        "verl.experimental.reward_loop.reward_loop:RewardLoopWorker._init_reward_fn",
        ("self",),
        "verl_act/upstream_gaps/trusted_code.py",
        exactly=True,
    ),
    Pin(
        f"{AGENT_LOOP}:AgentLoopWorker._run_agent_loop",
        ("self", "sampling_params", "trajectory", "agent_name"),
        "verl_act/upstream_gaps/one_output.py",
        keywords=False,
    ),
    Pin(
        f"{AGENT_LOOP}:AgentLoopWorker._agent_loop_postprocess",
        ("self", "output", "validate"),
        "verl_act/upstream_gaps/one_output.py",
        keywords=False,
    ),
    Pin(
        "verl.utils.device:auto_set_device", ("config",), "verl_act/upstream_gaps/cpu/requested_device.py", exactly=True
    ),
    Pin(
        "verl.workers.rollout.llm_server:LLMServerClient.generate",
        ("self", "request_id", "prompt_ids", "sampling_params"),
        LOOP_FILE,
    ),
    Pin(
        "verl.utils.dataset.rl_dataset:RLHFDataset.__init__",
        ("self", "data_files", "tokenizer", "config", "processor", "max_samples"),
        f"{DATASET_FILE} (same constructor) and verl_act/data/verl_rows.py (calls it)",
        exactly=True,
    ),
    Pin(
        "verl.utils.dataset.rl_dataset:RLHFDataset.process_multi_modal_info",
        ("messages", "image_patch_size", "config"),
        DATASET_FILE,
    ),
    Pin("verl.utils.dataset.rl_dataset:collate_fn", ("data_list",), f"{DATASET_FILE} (its rows)", exactly=True),
    Pin("verl.utils.dataset.rl_dataset:get_dataset_class", ("data_config",), "verl_act/config/act/_base.yaml"),
    Pin("verl.utils.fs:copy_to_local", ("src", "cache_dir", "use_shm"), DATASET_FILE),
    Pin("verl.utils.tokenizer:normalize_token_ids", ("tokenized_output",), "verl_act/data/length.py"),
    Pin(
        "verl.utils.reward_score:default_compute_score",
        ("data_source", "solution_str", "ground_truth", "extra_info"),
        "verl_act/reward_fns/route.py",
        keywords=False,
    ),
    Pin(
        "verl.plugin.platform.platform_manager:PlatformRegistry.register",
        ("platform",),
        "verl_act/upstream_gaps/cpu/platform.py",
    ),
    Pin(
        "verl.utils.distributed:initialize_global_process_group_ray",
        ("backend",),
        "verl_act/upstream_gaps/cpu/process_group.py",
    ),
    Pin(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer:BucketedWeightReceiver.receive_weights",
        ("self", "on_bucket_received"),
        "verl_act/upstream_gaps/cpu/shared_memory.py",
        exactly=True,
    ),
    Pin(
        "verl.utils.model:load_valuehead_model",
        ("local_path", "torch_dtype", "model_config", "trust_remote_code"),
        "verl_act/upstream_gaps/value_model.py",
        exactly=True,
    ),
    Pin(
        "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.__init__",
        ("self", "trainer_mode", "trainer_config", "poll_interval"),
        "verl_act/upstream_gaps/cpu/sampling_poll.py",
    ),
    Pin(
        "verl.utils.seqlen_balancing:get_seqlen_balanced_partitions",
        ("seqlen_list", "k_partitions", "equal_size"),
        "verl_act/upstream_gaps/cpu/padded_micro_batches.py",
    ),
    Pin(
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        ("layer", "remove_weight"),
        "verl_act/upstream_gaps/cpu/vllm_linear.py",
        exactly=True,
    ),
    Pin("vllm.v1.engine.async_llm:AsyncLLM.from_engine_args", ("engine_args", "usage_context"), ENGINE_FILE),
    Pin(
        "vllm.v1.engine.async_llm:AsyncLLM.generate",
        ("self", "prompt", "sampling_params", "request_id", "data_parallel_rank"),
        ENGINE_FILE,
    ),
    Pin(
        "vllm.engine.arg_utils:AsyncEngineArgs.__init__",
        (
            *("model", "max_model_len", "enable_prefix_caching", "disable_log_stats", "dtype", "enforce_eager"),
            *("max_num_batched_tokens", "enable_chunked_prefill", "data_parallel_size", "seed"),
        ),
        ENGINE_FILE,
    ),
    Pin(
        "vllm:SamplingParams",
        ("n", "temperature", "top_p", "top_k", "max_tokens", "seed", "output_kind"),
        ENGINE_FILE,
    ),
]

NAMES = [
    ("vllm.sampling_params:RequestOutputKind.FINAL_ONLY", ENGINE_FILE),
    ("vllm.platforms:current_platform.is_cpu", ENGINE_FILE),
    ("vllm.usage.usage_lib:UsageContext.LLM_CLASS", ENGINE_FILE),
    ("vllm.v1.engine.async_llm:AsyncLLM.shutdown", ENGINE_FILE),
    ("verl.plugin.platform:get_platform", "verl_act/chain/check.py"),
    ("verl.trainer.main_ppo:main", "verl_act/chain/stages.py"),
    (f"{AGENT_LOOP}:_agent_loop_registry", "tests/test_plugin.py"),
    ("verl.utils.distributed:get_device_name", "verl_act/upstream_gaps/cpu/process_group.py"),
    ("verl.workers.engine.fsdp.transformer_impl:CPUOffloadPolicy", "verl_act/upstream_gaps/cpu/reference_offload.py"),
]

FIELDS = [
    (
        f"{AGENT_LOOP}:AgentLoopOutput",
        {
            *("prompt_ids", "response_ids", "response_mask", "response_logprobs", "num_turns", "metrics"),
            *("multi_modal_data", "extra_fields"),
        },
        LOOP_FILE,
    ),
    (f"{AGENT_LOOP}:AgentLoopMetrics", {"generate_sequences", "tool_calls"}, LOOP_FILE),
    ("verl.workers.rollout.replica:TokenOutput", {"token_ids", "log_probs", "extra_fields"}, LOOP_FILE),
]


def found(target: str, used_by: str) -> Any:
    """What `module:attribute.attribute` names."""
    module, _, path = target.partition(":")
    try:
        value: Any = import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"{target} is gone ({error}). {used_by} depends on it.") from error
    return value


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.target.split(":")[1])
def test_parameters(pin: Pin) -> None:
    call = inspect.unwrap(found(pin.target, pin.used_by))
    names = tuple(inspect.signature(call).parameters)
    wanted = f"{pin.target} now takes {names}; {pin.used_by} depends on {pin.parameters}"
    if pin.exactly:
        assert names == pin.parameters, wanted
    elif pin.keywords:
        assert set(pin.parameters) <= set(names), wanted
    else:
        assert names[: len(pin.parameters)] == pin.parameters, wanted


@pytest.mark.parametrize(("target", "used_by"), NAMES, ids=lambda text: text.split(":")[-1])
def test_names(target: str, used_by: str) -> None:
    found(target, used_by)


@pytest.mark.parametrize(("target", "wanted", "used_by"), FIELDS, ids=[target for target, _, _ in FIELDS])
def test_fields(target: str, wanted: set[str], used_by: str) -> None:
    missing = wanted - set(found(target, used_by).model_fields)
    assert not missing, f"{target} has lost {missing}; {used_by} sets or reads them."


def test_what_verl_awaits_of_an_agent_loop_is_a_coroutine() -> None:
    loop = found(f"{AGENT_LOOP}:AgentLoopBase", LOOP_FILE)
    assert inspect.iscoroutinefunction(loop.run), f"run is no coroutine any more; see {LOOP_FILE}"


def test_the_cpu_platform_is_a_whole_platform() -> None:
    base = found("verl.plugin.platform.platform_base:PlatformBase", "verl_act/upstream_gaps/cpu/platform.py")
    assert issubclass(PlatformCPU, base)
    missing = {name for name in base.__abstractmethods__ if name not in vars(PlatformCPU)}
    assert not missing, f"verl's platforms now have {missing}; add them to verl_act/upstream_gaps/cpu/platform.py."
    for name in base.__abstractmethods__:
        method = vars(base)[name]
        if not isinstance(method, property):
            ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (PlatformCPU, base))
            assert list(ours.parameters) == list(theirs.parameters), f"PlatformCPU.{name}{ours}, verl: {theirs}"


def test_a_list_of_outputs_is_stored_one_by_one() -> None:
    """Step-wise episodes are lists of outputs; only verl's V1 trainer takes them."""
    worker = found("verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ", LOOP_FILE)
    source = inspect.getsource(worker._agent_loop_postprocess)
    assert "isinstance(output, list)" in source, f"{worker} takes no list of outputs any more; see {LOOP_FILE}"
