"""Small real records, tokenizers and configurations that several tests build on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from verl_act.envs.registry import installed_env, known_envs
from verl_act.schema import Context, Pair, Step, Turn, pair_id


def embedded_models() -> dict[str, Path]:
    """Environment -> folder of its model `embedded`, of the installed environments that have one."""
    specs = filter(None, map(installed_env, known_envs()))
    folders = {spec.name: Path(spec.models["embedded"]) for spec in specs if "embedded" in spec.models}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


ROOM = "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1."
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_context(number: int = 0) -> Context:
    """A state two steps into game `number`."""
    return Context(
        goal=f"put some mug {number} on shelf 1.",
        history=(Turn(ROOM, "go to desk 1"), Turn(f"On the desk 1, you see a mug {number}.", "examine desk 1")),
        observation=f"On the desk 1, you see a mug {number}.",
        admissible_actions=("go to shelf 1", "inventory", "look", f"take mug {number} from desk 1"),
    )


def make_pair(number: int = 0, **changes: Any) -> Pair:
    """Pair `number`: taking the mug against looking around."""
    context = changes.pop("context", make_context(number))
    expert = changes.pop("expert_action", f"take mug {number} from desk 1")
    alternative = changes.pop("alternative_action", "go to shelf 1")
    state = changes.get("state_id", f"game-{number}/expert#2")
    fields: dict[str, Any] = {
        "pair_id": pair_id(state, expert, alternative),
        "env": "alfworld",
        "split": "train",
        "task_id": f"game-{number}",
        "task_type": "pick_and_place",
        "state_id": state,
        "step": 2,
        "alternative_source": "policy",
        "alternative_admissible": True,
        "model": "a-model",
        "sampling": '{"temperature": 1.0}',
        "margin": 2,
        "inferable": True,
    }
    return Pair(context=context, expert_action=expert, alternative_action=alternative, **{**fields, **changes})


def make_step(number: int = 0, **changes: Any) -> Step:
    """The step that `make_pair(number)` is about."""
    fields: dict[str, Any] = {
        "context": make_context(number),
        "env": "alfworld",
        "split": "train",
        "task_id": f"game-{number}",
        "task_type": "pick_and_place",
        "trajectory_id": f"game-{number}/expert",
        "step": 2,
        "action": f"take mug {number} from desk 1",
        "reward": 0.0,
        "done": False,
        "success": True,
        "source": "planner",
        "inferable": True,
        "plan_length": 3,
        "verified": True,
    }
    return Step(**{**fields, **changes})


def make_tokenizer(texts: Iterable[str] = (), special: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template; control tokens: `<|im_start|>`, `<|im_end|>` and `special`."""
    control = ["<|im_start|>", "<|im_end|>", "<unk>", *special]
    words = {word for text in texts for word in text.split()}
    vocabulary = {word: number for number, word in enumerate([*control, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": control})
    fast.pad_token = "<|im_end|>"
    fast.chat_template = CHAT_TEMPLATE
    return fast


def byte_level(
    special: Sequence[str], chat_template: str, ordinary: Sequence[str] = (), **named: str
) -> PreTrainedTokenizerFast:
    """Every byte a token, the special ones, and `ordinary` ones that were added."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    bpe.add_tokens([AddedToken(name, special=False, normalized=False) for name in ordinary])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=chat_template, **named)


def data_config(act: dict[str, Any] | None = None, **keys: Any) -> DictConfig:
    """verl's `data` block, as far as datasets read it."""
    base = {"prompt_key": "prompt", "max_prompt_length": 4096, "filter_overlong_prompts": False, "truncation": "error"}
    return OmegaConf.create({**base, "act": act or {}, **keys})


GEMMA_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
"""As Gemma 2's."""
MISTRAL_TEMPLATE = """{{ bos_token }}{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token }}
{%- else -%}{{ raise_exception('Only user and assistant roles are supported!') }}{%- endif -%}
{%- endfor -%}"""
"""As Mistral 7B Instruct's."""


def alternating_tokenizer(template: str) -> Any:
    """The embedded model's tokenizer with a chat template that demands alternating roles, and its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_models()["alfworld"])
    tokenizer.add_special_tokens(
        {
            "bos_token": "<bos>",
            "eos_token": "</s>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"],
        }
    )
    tokenizer.chat_template = template
    return tokenizer


ALTERNATING = [GEMMA_TEMPLATE, MISTRAL_TEMPLATE]


def qwen3_8b_config() -> Qwen3Config:
    """That of Qwen3-8B."""
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
    )


def first_shard(out: Path) -> list[dict[str, Any]]:
    """The rows of the first shard of alternatives that a command has saved next to `out`; empty before that."""
    for kept in out.parent.glob(f".{out.name}.journal/*"):
        lines = kept.read_bytes().splitlines(keepends=True)
        for entry in (json.loads(line) for line in lines if line.endswith(b"\n")):
            if entry["number"] == 0:
                rows: list[dict[str, Any]] = entry["record"]["rows"]
                return rows
    return []
