"""Checks before a run, on verl's composed configurations with devices that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_stages import RECIPE_NAMES, composed
from samples import ALTERNATING, alternating_tokenizer, make_tokenizer, qwen3_8b_config
from transformers import Qwen3VLConfig

from verl_act.chain import load_recipe
from verl_act.chain.hydra_overrides import flat, hydra_value
from verl_act.chain.recipe import SFT_DATA, embedded_models
from verl_act.engine import load_tokenizer
from verl_act.errors import ConfigError
from verl_act.preflight import Devices, ModelShape, Problem, check_training, local_devices, model_shape
from verl_act.preflight.capacity import capacity_problems
from verl_act.preflight.conversation import conversation_problems, date_problems
from verl_act.preflight.lengths import length_problems
from verl_act.preflight.memory import checkpoint_bytes, device_memory, disk_problems, memory_problems
from verl_act.preflight.software import (
    attention_packages,
    attention_problems,
    device_problems,
    engine_problems,
    vllm_is_cpu_build,
)
from verl_act.prompts import get_template

H100 = Devices("cuda", 8, 85_000_000_000)
CPU = Devices("cpu", 1, 24_000_000_000)
ROLE = "actor_rollout_ref"
REFERENCE_OFFLOAD = f"{ROLE}.ref.fsdp_config.param_offload=true"
FOUR_GPUS = (
    "+act=critic",
    "trainer.n_gpus_per_node=4",
    f"{ROLE}.rollout.tensor_model_parallel_size=1",
    f"{ROLE}.rollout.gpu_memory_utilization=0.6",
)
BUDGET = f"{ROLE}.actor.ppo_max_token_len_per_gpu"


@pytest.fixture(scope="module")
def qwen3_8b(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    folder = tmp_path_factory.mktemp("qwen3-8b")
    qwen3_8b_config().save_pretrained(folder)
    return model_shape(str(folder))


def keys_named(problems: list[Problem], *keys: str) -> bool:
    text = " ".join(map(str, problems))
    return bool(problems) and all(key in text for key in keys)


def test_the_shape_of_a_model_is_that_of_its_weights(qwen3_8b: ModelShape) -> None:
    assert qwen3_8b.parameters == 8_190_735_360, "as the model card's 8.2B"
    assert qwen3_8b.kv_values == 2 * 36 * 8 * 128
    embedded = embedded_models()["alfworld"]
    shape = model_shape(str(embedded))
    from safetensors import safe_open

    with safe_open(embedded / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert shape.parameters == stored and shape.model_type == "qwen3"


def test_a_model_of_images_has_the_shape_of_its_text(tmp_path: Path) -> None:
    Qwen3VLConfig().save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))
    assert shape.layers == Qwen3VLConfig().text_config.num_hidden_layers and shape.parameters > 1e9


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ConfigError, match=str(tmp_path)):
        model_shape(str(tmp_path))


def test_eight_billion_parameters_on_four_gpus_are_too_many(qwen3_8b: ModelShape) -> None:
    """The arithmetic of the documents' 4-GPU command before it offloaded the reference."""
    memory = device_memory(composed(*FOUR_GPUS), qwen3_8b, H100)
    assert memory is not None
    parts = (memory.parameters, memory.adam, memory.reference, memory.engine)
    assert [round(part / 1e9, 1) for part in parts] == [8.2, 16.4, 8.2, 51.0]
    problems = memory_problems(composed(*FOUR_GPUS), qwen3_8b, H100)
    assert keys_named(problems, REFERENCE_OFFLOAD, "gpu_memory_utilization")
    assert not memory_problems(composed(*FOUR_GPUS, REFERENCE_OFFLOAD), qwen3_8b, H100)


@pytest.mark.parametrize(
    ("change", "fatal"),
    [
        (f"{ROLE}.rollout.gpu_memory_utilization=0.8", True),
        (f"{BUDGET}=200000", True),
        (f"{ROLE}.actor.fsdp_config.fsdp_size=1", True),
    ],
)
def test_what_does_not_fit_is_refused(change: str, fatal: bool, qwen3_8b: ModelShape) -> None:
    overrides = [one for one in FOUR_GPUS if not one.startswith(change.split("=")[0])]
    problems = memory_problems(composed(*overrides, REFERENCE_OFFLOAD, change), qwen3_8b, H100)
    assert any(problem.fatal is fatal for problem in problems)


def test_offloading_and_adapters_take_less(qwen3_8b: ModelShape) -> None:
    def memory(*overrides: str) -> Any:
        return device_memory(composed(*FOUR_GPUS, *overrides), qwen3_8b, H100)

    assert memory(f"{ROLE}.actor.fsdp_config.optimizer_offload=true").adam == 0
    assert memory(f"{ROLE}.actor.fsdp_config.param_offload=true").parameters == 0
    lora = memory(f"{ROLE}.model.lora_rank=32")
    assert (lora.adam, lora.gradients, lora.reference) == (0, 0, 0) and lora.parameters
    assert memory("trainer.n_gpus_per_node=8").adam == memory().adam / 2
    ppo = device_memory(composed("+act=action_ppo", *FOUR_GPUS[1:]), qwen3_8b, H100)
    assert ppo is not None and ppo.value_model == ppo.parameters + ppo.adam


def test_an_engine_needs_room_for_its_weights(qwen3_8b: ModelShape) -> None:
    small = Devices("cuda", 8, 24_000_000_000)
    assert keys_named(
        memory_problems(composed("+act=action", *FOUR_GPUS[1:]), qwen3_8b, small), "tensor_model_parallel"
    )


@pytest.mark.parametrize("trainer", ["ppo_megatron_trainer", "sft_trainer_engine"])
def test_what_cannot_be_counted_is_not_guessed(trainer: str, qwen3_8b: ModelShape) -> None:
    group = "+act=sft" if trainer.startswith("sft") else "+act=critic"
    assert device_memory(composed(group, trainer=trainer), qwen3_8b, H100) is None
    assert device_memory(composed(*FOUR_GPUS), qwen3_8b, Devices("cuda", 0, 0)) is None


@pytest.mark.parametrize("stage", ["critic", "action", "action_ppo"])
def test_the_checkpoints_of_our_stages_are_bounded(stage: str, qwen3_8b: ModelShape) -> None:
    config = composed(f"+act={stage}")
    size, most = checkpoint_bytes(config, qwen3_8b)
    assert most == 3 and round(size / 1e9) == (229 if stage == "action_ppo" else 131)
    assert not disk_problems(config, qwen3_8b, 700_000_000_000)
    assert keys_named(disk_problems(config, qwen3_8b, 200_000_000_000), "trainer.max_actor_ckpt_to_keep")


def test_unbounded_checkpoints_are_named(qwen3_8b: ModelShape) -> None:
    unbounded = ("+act=critic", "trainer.max_actor_ckpt_to_keep=null")
    assert keys_named(disk_problems(composed(*unbounded), qwen3_8b, 10**15), "trainer.max_actor_ckpt_to_keep=2")
    steps = (*unbounded, "trainer.total_training_steps=400", "trainer.save_freq=20")
    assert checkpoint_bytes(composed(*steps), qwen3_8b)[1] is None
    assert keys_named(disk_problems(composed(*steps), qwen3_8b, 10**12), "2621.0 GB (20 of")
    sft = composed("+act=sft", trainer="sft_trainer_engine")
    assert checkpoint_bytes(sft, qwen3_8b)[1] == 3
    assert keys_named(disk_problems(sft, qwen3_8b, 10**9), "trainer.max_ckpt_to_keep")


def test_a_token_budget_below_a_sample_is_refused() -> None:
    lengths = ("data.max_prompt_length=4096", "data.max_response_length=2048")
    assert keys_named(length_problems(composed("+act=critic", *lengths, f"{BUDGET}=6000"), None), BUDGET, "6144")
    for fine in (f"{BUDGET}=6144", f"{BUDGET}=6000 {ROLE}.actor.use_dynamic_bsz=false"):
        config = composed("+act=critic", *lengths, *fine.split())
        assert not length_problems(config, None)
    parallel = (f"{BUDGET}=3072", f"{ROLE}.actor.ulysses_sequence_parallel_size=2")
    assert not length_problems(composed("+act=critic", *lengths, *parallel), None)


def test_every_budget_of_a_run_is_compared() -> None:
    small = [f"{ROLE}.rollout.log_prob_max_token_len_per_gpu=100", f"{ROLE}.ref.log_prob_max_token_len_per_gpu=101"]
    assert len(length_problems(composed("+act=critic", *small), None)) == 2
    assert len(length_problems(composed("+act=action", *small), None)) == 1, "no reference model"
    ppo = length_problems(composed("+act=action_ppo", "+critic.ppo_infer_max_token_len_per_gpu=100"), None)
    assert keys_named(ppo, "+critic.ppo_infer_max_token_len_per_gpu")
    long = ("data.max_prompt_length=40000", f"{BUDGET}=50000", f"{ROLE}.rollout.log_prob_max_token_len_per_gpu=50000")
    assert keys_named(
        length_problems(composed("+act=action_ppo", *long), None), "+critic.ppo_infer_max_token_len_per_gpu"
    )
    unread = "critic.ppo_max_token_len_per_gpu=100"  # by verl's trainer
    assert not length_problems(composed("+act=action_ppo", unread), None)
    sft = composed("+act=sft", "data.max_length=4096", "data.max_token_len_per_gpu=2048", trainer="sft_trainer_engine")
    assert keys_named(length_problems(sft, None), "data.max_token_len_per_gpu")


def test_actors_hold_the_episodes_of_a_batch() -> None:
    config = composed("+act=action", "data.train_batch_size=32", f"{ROLE}.rollout.n=4", "data.act.episode.actors=1")
    (problem,) = capacity_problems(config, 64)
    assert problem.fatal and "128 live episodes" in problem.message and "at least 2" in problem.remedy
    assert not capacity_problems(config, 128) and not capacity_problems(config, None)


def test_the_engines_context_holds_a_sample(qwen3_8b: ModelShape) -> None:
    context = f"{ROLE}.rollout.max_model_len"
    assert keys_named(length_problems(composed("+act=critic", f"{context}=2048"), qwen3_8b), context)
    long = ("data.max_prompt_length=40000", f"{BUDGET}=50000")
    assert keys_named(length_problems(composed("+act=critic", *long), qwen3_8b), "40960")
    assert not length_problems(composed("+act=critic"), qwen3_8b)


def test_missing_attention_is_named_with_three_ways_out() -> None:
    config = composed("+act=action_ppo")
    problems = attention_problems(config, H100, frozenset())
    assert [problem.message.split()[0] for problem in problems] == ["actor_rollout_ref.model", "critic.model"]
    assert keys_named(problems, "verl-wheelhouse", "kernels", "attn_implementation=sdpa", "flash_attention_2")
    for package in ("flash_attn", "kernels"):
        assert not attention_problems(config, H100, frozenset([package]))


@pytest.mark.parametrize("trainer", ["ppo_trainer", "sft_trainer_engine"])
def test_the_remedy_of_missing_attention_works(trainer: str) -> None:
    group = "+act=sft" if trainer.startswith("sft") else "+act=critic"
    (problem,) = attention_problems(composed(group, trainer=trainer), H100, frozenset())
    remedy = problem.remedy.split("or set ")[1].rstrip(".").split()
    assert not attention_problems(composed(group, *remedy, trainer=trainer), H100, frozenset())


def test_flash_attention_on_a_cpu_is_refused() -> None:
    assert keys_named(attention_problems(composed("+act=critic"), CPU, frozenset(["flash_attn"])), "+act/device=cpu")
    assert not attention_problems(composed("+act=critic", "+act/device=cpu"), CPU, frozenset())
    megatron = composed("+act=critic", trainer="ppo_megatron_trainer")
    assert not attention_problems(megatron, H100, frozenset()), "it has kernels of its own"


def test_trainer_and_engine_are_of_one_kind() -> None:
    assert keys_named(device_problems(CPU, False), "not supported", "make setup")
    assert keys_named(device_problems(H100, True), "make setup-gpu")
    for devices, cpu_engine in ((CPU, True), (H100, False), (H100, None)):
        assert not device_problems(devices, cpu_engine)


def test_a_limit_that_the_engine_ignores_is_named() -> None:
    tokens = "data.act.episode.max_tokens_per_turn=256"
    assert keys_named(engine_problems(composed("+act=action", f"{ROLE}.rollout.name=trtllm", tokens)), "vllm", "sglang")
    assert not engine_problems(composed("+act=action", f"{ROLE}.rollout.name=trtllm"))
    assert not engine_problems(composed("+act=action", tokens))


def test_this_machine_passes_its_own_checks() -> None:
    config = composed("+act=critic", "+act/device=cpu")
    devices, model = local_devices(), model_shape(str(embedded_models()["alfworld"]))
    assert (devices.kind, devices.count) == ("cpu", 1) and devices.memory > 1e9
    assert vllm_is_cpu_build() is True and "flash_attn" not in attention_packages()
    (problem,) = check_training(config, model, devices, 10**12)
    assert "max_position_embeddings" in problem.message, "the embedded model's context is short"
    short = composed("+act=critic", "+act/device=cpu", "data.max_prompt_length=960", "data.max_response_length=16")
    assert not check_training(short, model, devices, 10**12)


def test_a_tokenizer_that_verls_builder_refuses() -> None:
    """As DeepSeek-R1-Distill-Qwen's, of type qwen2 with other markers of turns."""
    tokenizer = load_tokenizer(str(embedded_models()["alfworld"]))
    template = get_template("cot")
    for one_sequence in (False, True):
        assert not conversation_problems(tokenizer, "qwen3", template, one_sequence=one_sequence)
    other = make_tokenizer(["look"])
    assert keys_named(conversation_problems(other, "qwen2", template), "'qwen2'", "<|im_end|>")


@pytest.mark.parametrize("chat_template", ALTERNATING)
def test_templates_of_alternating_roles_take_a_follow_up(chat_template: str) -> None:
    tokenizer = alternating_tokenizer(chat_template)
    assert not conversation_problems(tokenizer, "mistral", get_template("cot"), one_sequence=True)


def test_a_template_without_follow_ups_is_refused_in_one_sequence() -> None:
    tokenizer = load_tokenizer(str(embedded_models()["alfworld"]))
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    )
    template = get_template("cot")
    assert not conversation_problems(tokenizer, "llama", template)
    assert keys_named(conversation_problems(tokenizer, "llama", template, one_sequence=True), "stepwise")


LLAMA_DATE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today Date: {{ date_string }}{% for message in messages %}{{ message.content }}{% endfor %}"
)
GPT_OSS_DATE = (
    "Current date: {{ strftime_now('%Y-%m-%d') }}{% for message in messages %}{{ message.content }}{% endfor %}"
)


def test_a_template_with_the_date_is_named() -> None:
    """As Llama 3's, which takes a date, and gpt-oss's, which does not."""
    tokenizer = make_tokenizer(["go"])
    assert not date_problems(tokenizer)
    fixed = {"date_string": "26 Jul 2024"}
    for chat_template, takes_a_date in ((LLAMA_DATE, True), (GPT_OSS_DATE, False)):
        tokenizer.chat_template = chat_template
        assert keys_named(date_problems(tokenizer), "chat_template_kwargs")
        assert bool(date_problems(tokenizer, fixed)) is not takes_a_date


GPU_RECIPES = [name for name in RECIPE_NAMES if name.endswith("full") or name == "alfworld/gpu_smoke"]


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_the_recipes_for_gpus_fit_the_machine_that_they_are_for(
    name: str, qwen3_8b: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 GPUs of 80 GB and 2 TB of disk; the smoke run on one GPU of 24 GB."""
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    recipe = load_recipe(name)
    smoke = name.endswith("smoke")
    model = model_shape(recipe.model_path) if smoke else qwen3_8b
    devices = Devices("cuda", 1, 24_000_000_000) if smoke else H100
    assert {"critic", "action"} <= set(recipe.training)
    for stage in recipe.training.values():
        if stage.data == "dpo":  # TRL's, which verl does not configure
            continue
        trainer = "sft_trainer_engine" if stage.data in SFT_DATA else "ppo_trainer"
        overrides = [f"{key}={hydra_value(value)}" for key, value in flat(stage.overrides).items()]
        config = composed(*(f"+{group}" for group in stage.config), *overrides, trainer=trainer)
        assert config.trainer.n_gpus_per_node == devices.count
        assert not length_problems(config, model)
        assert not memory_problems(config, model, devices)
        assert not disk_problems(config, model, 2 * 10**12)
