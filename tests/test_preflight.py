"""Checks before a run, on verl's composed configurations with devices that are not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from recipe_stages import RECIPE_NAMES, composed, training
from samples import ALTERNATING, alternating_tokenizer, embedded_models, make_tokenizer, qwen3_8b_config
from transformers import Qwen3Config, Qwen3VLConfig

from verl_act.chain import load_recipe
from verl_act.chain.check import verl_config
from verl_act.dpo import DpoSettings
from verl_act.engine import load_tokenizer
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError
from verl_act.preflight import Devices, ModelShape, Problem, check_training, local_devices, model_shape
from verl_act.preflight.capacity import capacity_problems, count_problems
from verl_act.preflight.conversation import conversation_problems, date_problems
from verl_act.preflight.lengths import length_problems
from verl_act.preflight.memory import checkpoint_bytes, device_memory, disk_problems, memory_problems
from verl_act.preflight.software import (
    attention_packages,
    attention_problems,
    device_problems,
    engine_problems,
    missing_attention,
    vllm_is_cpu_build,
)
from verl_act.prompts import get_template

H100 = Devices("cuda", 8, 85_000_000_000)
CPU = Devices("cpu", 1, 24_000_000_000)
ROLE = "actor_rollout_ref"
UTILIZATION = f"{ROLE}.rollout.gpu_memory_utilization"
FOUR_GPUS = (
    "+act=critic",
    "trainer.n_gpus_per_node=4",
    f"{ROLE}.rollout.tensor_model_parallel_size=1",
    f"{UTILIZATION}=0.6",
)
BUDGET = f"{ROLE}.actor.ppo_max_token_len_per_gpu"
WORD = re.compile(r"(?<![\w>=-])\+*[a-z_][\w./]*=(?!=)[^\s,()]*[^\s,().]")
"""A word of verl's command line in a remedy."""


def shape_of(config: Qwen3Config, folder: Path) -> ModelShape:
    config.save_pretrained(folder)
    return model_shape(str(folder))


def qwen3_600m_config() -> Qwen3Config:
    """That of Qwen3-0.6B, whose embeddings are tied."""
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def qwen3_8b(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return shape_of(qwen3_8b_config(), tmp_path_factory.mktemp("qwen3-8b"))


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


def parts(config: Any, model: ModelShape, phase: str = "sampling", devices: Devices = H100) -> Mapping[str, float]:
    (found,) = (found for found in device_memory(config, model, devices) if found.name == phase)
    return found.parts


def test_eight_billion_parameters_on_four_gpus(qwen3_8b: ModelShape) -> None:
    """The arithmetic of the documents' 4-GPU command; the reference policy is in the host's memory."""
    config = composed(*FOUR_GPUS)
    assert config.actor_rollout_ref.ref.fsdp_config.forward_only, "else verl would keep the reference on the devices"
    sampling, trained = parts(config, qwen3_8b), parts(config, qwen3_8b, "training")
    assert {name: round(size / 1e9, 1) for name, size in sampling.items()} == {
        **{"parameters": 8.2, "adam": 16.4, "gradients": 0},
        **{"engine": 51.0},
    }
    assert [round(trained[name] / 1e9, 1) for name in ("parameters", "adam", "gradients")] == [8.2, 16.4, 8.2]
    assert not memory_problems(config, qwen3_8b, H100)


@pytest.mark.parametrize(
    ("change", "fatal"),
    [
        (f"{UTILIZATION}=0.7", False),  # 84.1 of 85.0 GB, and 2 for CUDA's contexts
        (f"{UTILIZATION}=0.8", True),
        (f"{BUDGET}=200000", True),
        (f"{ROLE}.actor.fsdp_config.fsdp_size=1", True),
    ],
)
def test_what_does_not_fit_is_refused_and_what_hardly_fits_a_warning(
    change: str, fatal: bool, qwen3_8b: ModelShape
) -> None:
    overrides = [one for one in FOUR_GPUS if not one.startswith(change.split("=")[0])]
    problems = memory_problems(composed(*overrides, change), qwen3_8b, H100)
    assert problems and all(problem.fatal is fatal for problem in problems)


def test_offloading_and_adapters_take_less(qwen3_8b: ModelShape) -> None:
    def memory(*overrides: str, phase: str = "sampling") -> Mapping[str, float]:
        return parts(composed(*FOUR_GPUS, *overrides), qwen3_8b, phase)

    adam, parameters = (f"{ROLE}.actor.fsdp_config.{name}=true" for name in ("optimizer_offload", "param_offload"))
    assert memory(adam)["adam"] == memory(parameters)["parameters"] == 0
    assert memory(adam, parameters, phase="training") == memory(phase="training"), "verl loads what it updates"
    fsdp2 = (f"{ROLE}.actor.strategy=fsdp2", f"{ROLE}.actor.fsdp_config.offload_policy=true")
    assert set(memory(*fsdp2, phase="training")) == {"activations"}
    lora = memory(f"{ROLE}.model.lora_rank=32", phase="training")
    assert (lora["adam"], lora["gradients"]) == (0, 0) and lora["parameters"]
    assert memory("trainer.n_gpus_per_node=8")["adam"] == memory()["adam"] / 2
    ppo = parts(composed("+act=action_ppo", *FOUR_GPUS[1:]), qwen3_8b)
    assert ppo["value model"] == ppo["parameters"] + ppo["adam"]


def test_an_engine_needs_room_for_its_weights(qwen3_8b: ModelShape) -> None:
    small = Devices("cuda", 8, 24_000_000_000)
    config = composed("+act=action", *FOUR_GPUS[1:], "trainer.n_gpus_per_node=8")
    assert keys_named(memory_problems(config, qwen3_8b, small), "tensor_model_parallel_size=2")


SFT = ("data.max_length=6144", "data.max_token_len_per_gpu=16384", "trainer.n_gpus_per_node=4")


def sft(*overrides: str) -> Any:
    return composed("+act=sft", *SFT, *overrides, trainer="sft_trainer_engine")


def test_supervised_fine_tuning_is_counted_by_shards(qwen3_8b: ModelShape) -> None:
    found = parts(sft(), qwen3_8b, "training")
    assert [round(found[name] / 1e9, 1) for name in ("parameters", "adam", "gradients")] == [8.2, 16.4, 8.2]
    assert not memory_problems(sft(), qwen3_8b, H100)
    for larger in ("trainer.n_gpus_per_node=1", "data.max_token_len_per_gpu=100000"):
        assert memory_problems(sft(larger), qwen3_8b, H100)[0].fatal


def dpo(**trainer: int) -> Any:
    data = {"train_files": ["rows"], "max_length": 6144, "micro_batch_size_per_gpu": 1}
    settings = {"data": data, "model": {"path": "model"}, "trainer": {"default_local_dir": "x", **trainer}}
    return OmegaConf.create(DpoSettings(**settings).model_dump())


def test_dpo_is_counted_with_its_reference_by_shards(qwen3_8b: ModelShape) -> None:
    found = parts(dpo(n_gpus_per_node=8), qwen3_8b, "training")
    whole = sum(found[name] for name in ("parameters", "adam", "gradients", "reference"))
    assert 8 * whole == pytest.approx(20 * qwen3_8b.parameters)
    assert not check_training(dpo(n_gpus_per_node=8), qwen3_8b, Devices("cpu", 1, 0), 10**12)
    assert not memory_problems(dpo(n_gpus_per_node=4), qwen3_8b, H100)
    (problem,) = memory_problems(dpo(n_gpus_per_node=1), qwen3_8b, H100)
    assert problem.fatal and "trainer.n_gpus_per_node=4" in problem.fix()
    alone = Devices("cuda", 1, H100.memory)
    assert memory_problems(dpo(n_gpus_per_node=1), qwen3_8b, alone)[0].fatal, "one GPU of 80 GB is too small"
    size, most = checkpoint_bytes(dpo(), qwen3_8b)
    assert (size, most) == (12 * qwen3_8b.parameters, 2) and disk_problems(dpo(), qwen3_8b, int(size))


def test_pairs_as_long_as_they_may_be_are_a_warning(qwen3_8b: ModelShape) -> None:
    config = dpo(n_gpus_per_node=8)
    config.data.micro_batch_size_per_gpu = 8
    (problem,) = memory_problems(config, qwen3_8b, H100)
    assert not problem.fatal and "data.micro_batch_size_per_gpu=1" in problem.fix()


@pytest.mark.parametrize(
    "make",
    [
        lambda change="": composed(*FOUR_GPUS, f"{UTILIZATION}=0.75", *change.split()),
        lambda change="": composed(*FOUR_GPUS, f"{BUDGET}=90000", *change.split()),
        lambda change="": composed(*FOUR_GPUS, f"{UTILIZATION}=0.1", *change.split()),
        lambda change="": composed(*FOUR_GPUS, "trainer.n_gpus_per_node=2", f"{UTILIZATION}=0.5", *change.split()),
        lambda change="": sft("data.max_token_len_per_gpu=100000", *change.split()),
        lambda change="": sft("trainer.n_gpus_per_node=1", *change.split()),
    ],
    ids=["engine's share", "tokens", "small share", "two devices", "tokens of SFT", "devices of SFT"],
)
def test_what_a_remedy_of_memory_says_helps(make: Callable[..., Any], qwen3_8b: ModelShape) -> None:
    def faults(config: Any) -> set[str]:
        return {problem.message.split()[0] for problem in memory_problems(config, qwen3_8b, H100)}

    for problem in memory_problems(make(), qwen3_8b, H100):
        words = WORD.findall(problem.fix())
        assert words, problem
        for word in [" ".join(words)] if " and " in problem.fix() else words:
            assert problem.message.split()[0] not in faults(make(word)), word


@pytest.mark.parametrize("trainer", ["ppo_megatron_trainer", "sft_trainer_engine"])
def test_what_cannot_be_counted_is_not_guessed(trainer: str, qwen3_8b: ModelShape) -> None:
    other = ("+act=critic",) if trainer.startswith("ppo") else ("+act=sft", "engine=megatron")
    assert device_memory(composed(*other, trainer=trainer), qwen3_8b, H100) == []
    assert device_memory(composed(*FOUR_GPUS), qwen3_8b, Devices("cuda", 0, 0)) == []


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
    assert checkpoint_bytes(sft(), qwen3_8b)[1] == 3
    assert keys_named(disk_problems(sft(), qwen3_8b, 10**9), "trainer.max_ckpt_to_keep")


def test_a_token_budget_below_a_sample_is_refused() -> None:
    lengths = ("data.max_prompt_length=4096", "data.max_response_length=2048")
    assert keys_named(length_problems(composed("+act=critic", *lengths, f"{BUDGET}=6000"), None), BUDGET, "6144")
    for fine in (f"{BUDGET}=6144", f"{BUDGET}=6000 {ROLE}.actor.use_dynamic_bsz=false"):
        config = composed("+act=critic", *lengths, *fine.split())
        assert not length_problems(config, None)
    parallel = (f"{BUDGET}=3072", f"{ROLE}.actor.ulysses_sequence_parallel_size=2")
    assert not length_problems(composed("+act=critic", *lengths, *parallel), None)
    short = length_problems(composed("+act=critic", *lengths, f"{BUDGET}=3000", parallel[1]), None)
    assert keys_named(short, f"{BUDGET}=3072 ")


def test_every_budget_of_a_run_is_compared() -> None:
    small = [f"{ROLE}.rollout.log_prob_max_token_len_per_gpu=100", f"{ROLE}.ref.log_prob_max_token_len_per_gpu=101"]
    assert len(length_problems(composed("+act=critic", *small), None)) == 2
    assert len(length_problems(composed("+act=action", *small), None)) == 1, "no reference model"
    ppo = length_problems(composed("+act=action_ppo", "+critic.ppo_infer_max_token_len_per_gpu=100"), None)
    assert keys_named(ppo, "++critic.ppo_infer_max_token_len_per_gpu=5120")
    long = ("data.max_prompt_length=40000", f"{BUDGET}=50000", f"{ROLE}.rollout.log_prob_max_token_len_per_gpu=50000")
    assert keys_named(
        length_problems(composed("+act=action_ppo", *long), None), "+critic.ppo_infer_max_token_len_per_gpu"
    )
    unread = "critic.ppo_max_token_len_per_gpu=100"  # by verl's trainer
    assert not length_problems(composed("+act=action_ppo", unread), None)
    assert keys_named(length_problems(sft("data.max_token_len_per_gpu=2048"), None), "data.max_token_len_per_gpu=6144")
    assert not length_problems(dpo(), None), "which truncates"


def test_actors_hold_the_episodes_of_a_batch() -> None:
    config = composed("+act=action", "data.train_batch_size=32", f"{ROLE}.rollout.n=4", "data.act.episode.actors=1")
    (problem,) = capacity_problems(config, 64)
    assert problem.fatal and "128 live episodes" in problem.message
    assert "data.act.episode.actors=2" in problem.fix()
    assert not capacity_problems(config, 128) and not capacity_problems(config, None)


def test_the_devices_of_a_stage_are_there_and_divide_into_engines() -> None:
    assert not count_problems(composed(*FOUR_GPUS), H100) and not count_problems(dpo(n_gpus_per_node=8), H100)
    for config in (composed(*FOUR_GPUS, "trainer.n_gpus_per_node=16"), dpo(n_gpus_per_node=16)):
        assert keys_named(count_problems(config, H100), "trainer.n_gpus_per_node=8", "RAY_ADDRESS")
        unseen = count_problems(config, Devices("cuda", 0, 0))
        assert keys_named(unseen, "nvidia-smi", "--gpus all", "CUDA_VISIBLE_DEVICES")
        assert not WORD.findall(unseen[0].fix()), "no number of devices helps"
    parallel = f"{ROLE}.rollout.tensor_model_parallel_size"
    assert keys_named(count_problems(composed(*FOUR_GPUS, f"{parallel}=3"), H100), f"{parallel}=2")
    assert not count_problems(composed(*FOUR_GPUS, "trainer.n_gpus_per_node=16", "trainer.nnodes=2"), H100)


def test_the_engines_context_holds_a_sample(qwen3_8b: ModelShape) -> None:
    context = f"{ROLE}.rollout.max_model_len"
    assert keys_named(length_problems(composed("+act=critic", f"{context}=2048"), qwen3_8b), context)
    long = ("data.max_prompt_length=40000", f"{BUDGET}=50000")
    assert keys_named(length_problems(composed("+act=critic", *long), qwen3_8b), "40960")
    assert not length_problems(composed("+act=critic"), qwen3_8b)


def test_missing_attention_is_named_with_three_ways_out() -> None:
    config = composed("+act=action_ppo")
    problems = attention_problems(config, H100, {})
    assert keys_named(problems, "actor_rollout_ref.model and critic.model", "flash_attention_2")
    assert keys_named(problems, "verl-wheelhouse", "kernels", "+act/device=gpu_sdpa")
    for package in ("flash_attn", "kernels"):
        assert not attention_problems(config, H100, {package: ""})
    broken = attention_problems(config, H100, {"flash_attn": "ImportError: undefined symbol", "kernels": ""})
    assert keys_named(broken, "flash_attn cannot be imported", "undefined symbol", "Uninstall")


@pytest.mark.parametrize(("trainer", "suffix"), [("ppo_trainer", ""), ("sft_trainer_engine", "_sft")])
def test_the_remedy_of_missing_attention_works(trainer: str, suffix: str) -> None:
    group = f"+act={'sft' if suffix else 'action_ppo'}"
    (problem,) = attention_problems(composed(group, trainer=trainer), H100, {})
    (word,) = WORD.findall(problem.fix())
    assert word == f"+act/device=gpu_sdpa{suffix}"
    assert not attention_problems(composed(group, word, trainer=trainer), H100, {})


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wheel for another torch, whose import ends with an undefined symbol."""
    (tmp_path / "flash_attn.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c10')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    attention_packages.cache_clear()
    try:
        packages = attention_packages()
    finally:
        attention_packages.cache_clear()
    assert "undefined symbol" in packages["flash_attn"]
    assert keys_named(missing_attention(packages), "flash_attn", "undefined symbol", "Uninstall")


def test_flash_attention_on_a_cpu_is_refused() -> None:
    assert keys_named(attention_problems(composed("+act=critic"), CPU, {"flash_attn": ""}), "+act/device=cpu")
    assert keys_named(attention_problems(sft(), CPU, {}), "+act/device=cpu_sft")
    assert not attention_problems(composed("+act=critic", "+act/device=cpu"), CPU, {})
    megatron = composed("+act=critic", trainer="ppo_megatron_trainer")
    assert not attention_problems(megatron, H100, {}), "it has kernels of its own"
    assert not attention_problems(dpo(), H100, {}), "it takes what is there"


def test_trainer_and_engine_are_of_one_kind() -> None:
    assert keys_named(device_problems(CPU, False), "not supported", "make setup")
    assert keys_named(device_problems(H100, True), "make setup-gpu")
    for devices, cpu_engine in ((CPU, True), (H100, False), (H100, None)):
        assert not device_problems(devices, cpu_engine)


def test_a_limit_that_the_engine_ignores_is_named() -> None:
    tokens = "data.act.episode.max_tokens_per_turn=256"
    refused = [f"{ROLE}.rollout.name=trtllm", tokens]
    (problem,) = engine_problems(composed("+act=action", *refused))
    for word in WORD.findall(problem.fix()):
        assert not engine_problems(composed("+act=action", *refused, word))
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


GPU_RECIPES = [name for name in RECIPE_NAMES if name.endswith("full") or name.startswith("alfworld/gpu_smoke")]


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_the_recipes_for_gpus_fit_the_machine_that_they_are_for(
    name: str, qwen3_8b: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 GPUs of 80 GB and 2 TB of disk; the smoke runs on one GPU of 24 GB."""
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    recipe = load_recipe(name)
    models = {"Qwen/Qwen3-8B": qwen3_8b, "Qwen/Qwen3-0.6B": shape_of(qwen3_600m_config(), tmp_path)}
    model = models.get(recipe.model_path) or model_shape(recipe.model_path)
    devices = Devices("cuda", 1, 24_000_000_000) if "smoke" in name else H100
    assert {"critic", "action"} <= set(recipe.training)
    for stage in recipe.training:
        (config,) = map(verl_config, training(load_recipe(name, [f"stages=[{stage}]"]), tmp_path).values())
        assert config.trainer.n_gpus_per_node == devices.count
        assert not count_problems(config, devices)
        assert not length_problems(config, model)
        assert not memory_problems(config, model, devices)
        assert not disk_problems(config, model, 2 * 10**12)


def test_a_batch_of_live_episodes_fits_the_full_recipe_of_scienceworld(tmp_path: Path) -> None:
    recipe = load_recipe("scienceworld/full", ["training.action.data=episodes"])
    config = verl_config(training(recipe, tmp_path)["action"])
    assert config.data.train_batch_size * config.actor_rollout_ref.rollout.n == 1024
    assert not capacity_problems(config, get_env("scienceworld").max_episodes)
