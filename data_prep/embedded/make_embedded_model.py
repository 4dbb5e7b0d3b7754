"""Make an embedded model: a Qwen3 of about a million parameters that reads one environment and answers in the action
format.

Embedded models are the initial policies of the quickstarts, where no weights can be downloaded. Each is made from
expert trajectories alone: a tokenizer with the domain's names and phrases as single tokens, then supervised warm-up
with transformers' Trainer on two kinds of rows. Next actions are partly the expert's and partly sampled at random;
choice questions have random answers. So the model acts a little, answers choice questions in the right format, and
chooses at chance level, which shows what the RL stages teach.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.data_prep.sft.rows import action_reply
from verl_act.envs.dialect import Dialect, Thinker, Thought
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, work_path, writes_folder
from verl_act.parse import parse_action, parse_choice
from verl_act.prompts import Message, Template, get_template
from verl_act.prompts.plain_text import OWN_TAGS
from verl_act.schema import Context, Step, read_steps, steps_to_learn
from verl_act.settings.data import EmbeddedModelSettings
from verl_act.text_files import write_json_lines

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that works with verl's token builder for Qwen."""
RAREST_NAME = 20
"""Names in fewer prompts do not become tokens."""
LONGEST_REPLY = 32
_REPLIES_AT_ONCE = 100
IGNORED = -100


@writes_folder("make_embedded_model")
def make_embedded_model(settings: EmbeddedModelSettings, out: str | PathLike[str]) -> Manifest:
    """Write a Hugging Face model folder to `out`, with `warmup_log.jsonl`, `warmup_metrics.json` and a manifest.

    The trajectories (schema TRAJECTORY) are of one environment, from tasks that no experiment evaluates
    on. Raises `ConfigError` if they mix environments, are too few, or the environment has no dialect.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM, set_seed

    # Optimizer moments of rare tokens become denormal numbers, which are many times slower on a CPU. Set before the
    # first parallel operation, because threads inherit it.
    torch.set_flush_denormal(True)
    set_seed(settings.seed)
    steps = steps_to_learn(read_steps(settings.trajectories))
    dialect = _dialect(steps, settings)
    held_out = steps[max(0, len(steps) - settings.held_out) :]
    template_options = {**dialect.template_options, **settings.template_options}
    template = get_template("compact", **template_options)
    unseen_tasks = {step.task_id for step in held_out}
    trained_on = [step for step in steps if step.task_id not in unseen_tasks]
    rows = [
        row
        for index in range(settings.passes)
        for row in warmup_rows(
            trained_on, template, settings.model_copy(update={"seed": settings.seed + index}), dialect.think
        )
    ]
    if len(rows) < settings.batch_size:
        raise ConfigError(
            f"{len(rows)} rows are fewer than one batch ({settings.batch_size}): of {len(steps)} steps, the tasks of "
            f"the last held_out={settings.held_out} are held out. Pass more trajectories, or set a smaller held_out or "
            "batch_size."
        )
    if settings.start:
        tokenizer = AutoTokenizer.from_pretrained(settings.start)
        model = Qwen3ForCausalLM.from_pretrained(settings.start, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(rows, settings.vocabulary, dialect)
        model = Qwen3ForCausalLM(model_config(tokenizer, settings))
        compose_embeddings(model, tokenizer)
    log = _warm_up(model, tokenizer, rows, settings, scratch=work_path(out, "warmup"))
    with atomic_folder(out) as folder:
        # Rounded first, so that the metrics are those of the saved weights.
        model.to(getattr(torch, settings.storage)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json_lines(folder / "warmup_log.jsonl", log)
        model.float()
        metrics = examine(model, tokenizer, held_out, template, settings)
        (folder / "warmup_metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        manifest = make_manifest(
            "make_embedded_model",
            settings={**settings.recorded(), "template_options": template_options},
            inputs=settings.inputs(),
            counts={"rows": len(rows), "parameters": sum(p.numel() for p in model.parameters())},
            seed=settings.seed,
        )
        write_manifest(folder, manifest)
    return manifest


def _dialect(steps: Sequence[Step], settings: EmbeddedModelSettings) -> Dialect:
    environments = {step.env for step in steps}
    if len(environments) != 1:
        raise ConfigError(f"the trajectories are of {sorted(environments)}; an embedded model reads one environment.")
    env = environments.pop()
    dialect = get_env(env).dialect
    if dialect is None or (settings.thoughts and dialect.think is None):
        lacking = "`think` of the dialect" if dialect else "`dialect`"
        raise ConfigError(f"no embedded model can be made for {env!r}: its EnvSpec has no {lacking}. Set it.")
    return dialect


def warmup_rows(
    steps: Sequence[Step], template: Template, settings: EmbeddedModelSettings, think: Thinker | None = None
) -> Iterator[tuple[list[Message], str]]:
    """Yield (prompt, answer) for every step, and choice questions between its action and another one."""
    if settings.thoughts and think is not None:
        yield from _thoughtful_rows(steps, template, settings, think)
        return
    rng = random.Random(settings.seed)
    questions_per_action = settings.choice_share / (1 - settings.choice_share)
    for step in steps:
        knows = rng.random() < settings.expert_share
        yield (
            template.action_messages(step.context),
            action_reply(step.action if knows else rng.choice(step.context.admissible_actions or (step.action,))),
        )
        stranger = rng.random() < settings.stranger_share
        actions = rng.choice(steps).context.admissible_actions if stranger else step.context.admissible_actions
        others = [action for action in actions if action != step.action]
        if others and rng.random() < questions_per_action:
            candidates = [step.action, rng.choice(others)]
            rng.shuffle(candidates)
            yield template.choice_messages(step.context, candidates), action_reply(rng.choice(candidates))


def _thoughtful_rows(
    steps: Sequence[Step], template: Template, settings: EmbeddedModelSettings, think: Thinker
) -> Iterator[tuple[list[Message], str]]:
    """The same with thoughts: before half of the choice answers, the thought is wrong and so is the answer."""
    rng = random.Random(settings.seed)
    questions_per_action = settings.choice_share / (1 - settings.choice_share)
    goals = sorted({step.context.goal for step in steps})
    for step in steps:
        right = think(step.context, step.context.goal, step.action)
        wrong = wrong_thought(think, step.context, rng.sample(goals, min(8, len(goals))), step.action)
        if right is None or right.action != step.action or wrong is None:
            continue
        chosen = right if rng.random() < settings.expert_share else wrong
        yield template.action_messages(step.context), action_reply(chosen.action, chosen.text)
        if rng.random() < questions_per_action:
            candidates = [right.action, wrong.action]
            rng.shuffle(candidates)
            chosen = rng.choice((right, wrong))
            yield template.choice_messages(step.context, candidates), action_reply(chosen.action, chosen.text)


def wrong_thought(think: Thinker, context: Context, goals: Sequence[str], right: str) -> Thought | None:
    """Return the first thought, over `goals`, whose action differs from the action `right`; None if there is none."""
    thoughts = (think(context, goal, None) for goal in goals)
    return next((thought for thought in thoughts if thought is not None and thought.action != right), None)


def train_tokenizer(rows: Sequence[tuple[list[Message], str]], vocabulary: int, dialect: Dialect) -> Any:
    """Train a byte-level BPE tokenizer with the dialect's names and phrases as single tokens.

    Single tokens make prompts a third as long, and copying an action takes only a few of them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    if dialect.lower_case:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for messages, answer in rows for text in ("user", messages[-1]["content"], answer))
    bpe.train_from_iterator(texts, trainer)
    texts_read = (messages[-1]["content"] for messages, _ in rows)
    names = Counter(
        name for text in texts_read for name in set(dialect.names.findall(text.lower() if dialect.lower_case else text))
    )
    words = sorted(name for name, prompts in names.items() if prompts >= RAREST_NAME)
    # Not special: decoding skips special tokens, and the parser needs the tags.
    bpe.add_tokens(
        [
            AddedToken(word, special=False, normalized=dialect.lower_case)
            for word in dict.fromkeys((*OWN_TAGS, *dialect.phrases, *words))
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def compose_embeddings(model: Any, tokenizer: Any) -> None:
    """Initialize every added token as the sum of its pieces, so that " mug 1" resembles " mug" from the first step.

    The embeddings of pieces are sampled from one distribution, so the sum is scaled to keep its variance.
    """
    import torch

    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["content"]: token["id"] for token in bpe["added_tokens"] if not token["special"]}
    bpe["added_tokens"] = []
    tokenizer_without_added = type(tokenizer.backend_tokenizer).from_str(json.dumps(bpe))
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for word, row in added.items():
            pieces = tokenizer_without_added.encode(word).ids
            weight[row] = weight[pieces].sum(0) / len(pieces) ** 0.5


def model_config(tokenizer: Any, settings: EmbeddedModelSettings) -> Any:
    """Return a Qwen3 configuration of the requested size, with the vocabulary padded to a multiple of 64."""
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
    """Return token ids and labels; only the answer (with its end of turn) is learned unless `whole_text`."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    reply = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return {"input_ids": prompt + reply, "labels": (prompt if whole_text else [IGNORED] * len(prompt)) + reply}


def examine(
    model: Any, tokenizer: Any, steps: Sequence[Step], template: Template, settings: EmbeddedModelSettings
) -> dict[str, float]:
    """Return shares of replies, sampled at temperature 1 in states that the model was not trained on.

    `named_a_candidate` and `chose_the_expert_action` refer to choice questions, `expert_action` and
    `admissible_action` to next actions.
    """
    rng = random.Random(settings.seed)
    choices: list[tuple[list[Message], list[str], Step]] = []
    for step in steps:
        others = [action for action in step.context.admissible_actions if action != step.action]
        if others:
            candidates = [step.action, rng.choice(others)]
            rng.shuffle(candidates)
            choices.append((template.choice_messages(step.context, candidates), candidates, step))
    replies = _sample(model, tokenizer, [messages for messages, _, _ in choices])
    chosen = [
        (parse_choice(reply, candidates).index, candidates.index(step.action))
        for reply, (_, candidates, step) in zip(replies, choices, strict=True)
    ]
    actions = [
        (parse_action(reply).action, step)
        for reply, step in zip(
            _sample(model, tokenizer, [template.action_messages(step.context) for step in steps]), steps, strict=True
        )
    ]
    return {
        "named_a_candidate": _share(index is not None for index, _ in chosen),
        "chose_the_expert_action": _share(index == right for index, right in chosen),
        "expert_action": _share(action == step.action for action, step in actions),
        "admissible_action": _share(action in step.context.admissible_actions for action, step in actions),
    }


def _share(results: Iterable[bool]) -> float:
    hits = list(results)
    return round(sum(hits) / len(hits), 4) if hits else 0.0


def _sample(model: Any, tokenizer: Any, prompts: Sequence[list[Message]]) -> list[str]:
    """Sample one reply per prompt at temperature 1."""
    import torch

    texts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts]
    replies = []
    model.eval()
    for start in range(0, len(texts), _REPLIES_AT_ONCE):
        batch = texts[start : start + _REPLIES_AT_ONCE]
        encoded = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.no_grad():
            ids = model.generate(**encoded, do_sample=True, top_k=0, max_new_tokens=LONGEST_REPLY, use_cache=True)
        replies += tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def _optimizer(model: Any, settings: EmbeddedModelSettings) -> Any:
    """Combine Muon, for the layers' matrices, and AdamW, for the rest, into one optimizer, as the Trainer needs."""
    from torch.optim import AdamW, Muon, Optimizer

    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    optimizers = [
        Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=0.01),
        AdamW(others, lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.95)),
    ]

    class Both(Optimizer):
        def __init__(self) -> None:
            # Shares the optimizers' groups, so that a learning rate set here applies to them.
            super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for optimizer in optimizers:
                optimizer.step()

    return Both()


def _in_batches(rows: Sequence[dict[str, list[int]]], settings: EmbeddedModelSettings) -> list[dict[str, list[int]]]:
    """Return the rows of all steps in order: a batch holds prompts of similar length, and batches are shuffled.

    The Trainer's own grouping by length goes repeatedly from long to short: its loss in ALFWorld after 1,400 steps was
    0.36, with this order it is 0.32.
    """
    rng = random.Random(settings.seed)
    size = settings.batch_size
    batches: list[list[dict[str, list[int]]]] = []
    while len(batches) < settings.steps:
        shuffled = rng.sample(rows, len(rows))
        pools = [shuffled[start : start + 50 * size] for start in range(0, len(shuffled), 50 * size)]
        ordered = [row for pool in pools for row in sorted(pool, key=lambda row: len(row["input_ids"]))]
        epoch = [ordered[start : start + size] for start in range(0, len(ordered) - size + 1, size)]
        rng.shuffle(epoch)
        batches += epoch
    return [row for batch in batches[: settings.steps] for row in batch]


def _warm_up(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[list[Message], str]],
    settings: EmbeddedModelSettings,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train the model in place and return the Trainer's log."""
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
        lr_scheduler_type="cosine",
        warmup_steps=50,
        train_sampling_strategy="sequential",
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
        train_dataset=Dataset.from_list(_in_batches(encoded, settings)),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        optimizers=(_optimizer(model, settings), None),
    )
    try:
        trainer.train()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
