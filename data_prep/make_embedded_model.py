"""The embedded model: a Qwen3 of about a million parameters that reads ALFWorld and answers in the action format.

It is the initial policy of the quickstart, where no weights can be downloaded. It is made from nothing but expert
trajectories: a byte-level tokenizer trained on their prompts, then supervised warm-up with transformers' Trainer on
two kinds of rows: the expert's next action, and choice questions whose answer is drawn at random. So it can act a
little, it answers choice questions in the right format, and it judges at chance: what the RL stages teach can be
seen.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_act.manifest import atomic_folder, make_manifest, write_manifest
from verl_act.prompts import Message, Template, get_template
from verl_act.schema import Step, read_steps

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, so that verl's Qwen token builder fits."""
TEMPLATE_OPTIONS = {"history_length": 8}
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModelSettings:
    """Size and warm-up of the model; the defaults made the weights that are shipped."""

    vocabulary: int = 640
    layers: int = 4
    width: int = 128
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 384
    context: int = 2048
    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 2e-3
    choice_share: float = 0.5
    """Share of the warm-up rows that are choice questions (with random answers)."""
    stranger_share: float = 0.5
    """Share of the choice questions whose other candidate comes from another state, so that answering means copying."""
    whole_text_share: float = 0.25
    """Share of the rows whose prompt is learned too, which teaches the words."""
    seed: int = 0


def make_embedded_model(out: Path, trajectories: Sequence[Path], settings: EmbeddedModelSettings | None = None) -> None:
    """Write a Hugging Face model folder to `out`, with `warmup_log.jsonl` and a manifest.

    `trajectories` are files of expert steps (schema TRAJECTORY) from tasks that no experiment uses.
    """
    import torch
    from transformers import Qwen3ForCausalLM, set_seed

    # Optimizer moments of words that hardly occur become denormal numbers, which a CPU handles many times slower. Said
    # before the first parallel operation, because threads inherit it.
    torch.set_flush_denormal(True)
    settings = settings or EmbeddedModelSettings()
    set_seed(settings.seed)
    template = get_template("compact", **TEMPLATE_OPTIONS)
    rows = list(warmup_rows(read_steps(trajectories), template, settings))
    tokenizer = train_tokenizer(rows, settings.vocabulary)
    model = Qwen3ForCausalLM(model_config(tokenizer, settings))
    log = _warm_up(model, tokenizer, rows, settings, scratch=out.with_name(f".{out.name}.warmup"))
    with atomic_folder(out) as folder:
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "warmup_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        write_manifest(
            folder,
            make_manifest(
                "make_embedded_model",
                settings={**{name: getattr(settings, name) for name in settings.__slots__}, **TEMPLATE_OPTIONS},
                inputs=list(trajectories),
                counts={"rows": len(rows), "parameters": sum(p.numel() for p in model.parameters())},
                seed=settings.seed,
            ),
        )


def warmup_rows(
    steps: Sequence[Step], template: Template, settings: EmbeddedModelSettings
) -> Iterator[tuple[list[Message], str]]:
    """(prompt, answer) for every step, and choice questions between its action and another one."""
    rng = random.Random(settings.seed)
    questions_per_action = settings.choice_share / (1 - settings.choice_share)
    for step in steps:
        yield template.action_messages(step.context), _answer(step.action)
        stranger = rng.random() < settings.stranger_share
        actions = rng.choice(steps).context.admissible_actions if stranger else step.context.admissible_actions
        others = [action for action in actions if action != step.action]
        if others and rng.random() < questions_per_action:
            candidates = [step.action, rng.choice(others)]
            rng.shuffle(candidates)
            yield template.choice_messages(step.context, candidates), _answer(rng.choice(candidates))


def _answer(action: str) -> str:
    return f"<action>{action}</action>"


def train_tokenizer(rows: Sequence[tuple[list[Message], str]], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer: the domain's words are one token each, and no text is unknown to it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = (text for messages, answer in rows for text in (messages[-1]["content"], answer))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # Not special: decoding skips special tokens, and the parser needs the tags.
    tags = [
        AddedToken(tag, special=False, normalized=False) for tag in ("<action>", "</action>", "<think>", "</think>")
    ]
    bpe.add_tokens(tags)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def model_config(tokenizer: Any, settings: EmbeddedModelSettings) -> Any:
    """A Qwen3 configuration of the asked size, its vocabulary padded to a multiple of 64."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        head_dim=settings.width // settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(tokenizer: Any, messages: list[Message], answer: str, whole_text: bool) -> dict[str, list[int]]:
    """Token ids and labels; only the answer (with its end of turn) is learned unless `whole_text`."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    reply = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return {"input_ids": prompt + reply, "labels": (prompt if whole_text else [IGNORED] * len(prompt)) + reply}


def _warm_up(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[list[Message], str]],
    settings: EmbeddedModelSettings,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train in place; the Trainer's log. Prompts of like length are batched together."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    rng = random.Random(settings.seed)
    encoded = [
        encode(tokenizer, messages, answer, rng.random() < settings.whole_text_share) for messages, answer in rows
    ]
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        logging_steps=25,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=settings.seed,
        dataloader_num_workers=0,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(encoded),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
    )
    try:
        trainer.train()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
