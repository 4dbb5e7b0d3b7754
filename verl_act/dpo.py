"""Direct preference optimization on pairs with TRL's trainer, a control for the critic stage: `python -m verl_act.dpo`.

Takes `KEY=VALUE` arguments and writes checkpoints and metrics like verl's SFT trainer, so that a recipe's stage can be
either. Several accelerators share model, gradients, Adam's moments and reference (FSDP2); on CPUs, each process has all
of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_act.errors import ConfigError, OptionError
from verl_act.extras import needs_extra
from verl_act.options import Above0, Positive, Seed
from verl_act.settings.base import Settings, Text

_SHARDED: dict[str, Any] = {
    "fsdp": "full_shard auto_wrap",
    # The first process alone reads the weights, and sends the others their shards.
    "fsdp_config": {
        "version": 2,
        "cpu_ram_efficient_loading": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "activation_checkpointing": True,
    },
    # Otherwise each device would hold the gradients of the whole model from one micro-batch to the next.
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
}


class DataSettings(Settings):
    train_files: list[Text]
    """Files of `data sft --kind dpo`."""
    train_batch_size: Positive = 128
    """Pairs per step."""
    micro_batch_size_per_gpu: Positive = 8
    """Pairs that a device computes at once."""
    max_length: Positive = 4096
    """Most tokens of a prompt and its reply; longer ones are truncated."""
    seed: Seed = 0
    """Random seed of the order."""
    apply_chat_template_kwargs: dict[str, Any] = {}
    """Options of the chat template."""


class ModelPath(Settings):
    path: Text
    """The model to train, which is also the reference."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""


class OptimizerSettings(Settings):
    lr: Above0 = 1e-6
    """Learning rate."""
    lr_scheduler_type: Text = "cosine"
    """Schedule of the learning rate."""


class TrainerSettings(Settings):
    default_local_dir: Text
    """Folder of the checkpoints."""
    total_training_steps: Positive | None = None
    """Optimizer steps. Default: all epochs."""
    total_epochs: Positive = 1
    """Passes over the pairs."""
    save_freq: Positive = 20
    """Steps between checkpoints."""
    n_gpus_per_node: Positive = 1
    """Processes on this machine, those of torchrun; accelerators share the model."""
    nnodes: Positive = 1
    """Always 1."""
    logger: list[Text] = []
    """Ignored: metrics go to the file that $VERL_FILE_LOGGER_PATH names."""


class DpoSettings(Settings):
    data: DataSettings
    """The rows."""
    model: ModelPath
    """The model."""
    trainer: TrainerSettings
    """Steps and checkpoints."""
    optim: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    beta: Above0 = 0.1
    """How strongly the model is kept near the reference."""
    checkpoint: dict[str, list[str]] = {}
    """As for verl's trainers; only the Hugging Face export is written."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> DpoSettings:
        """The settings of `KEY=VALUE` arguments. Raises `ConfigError`."""
        try:
            values = OmegaConf.to_container(OmegaConf.from_dotlist([word.lstrip("+") for word in words]))
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{' '.join(words)}: is not KEY=VALUE: {error}") from error
        assert isinstance(values, dict)
        return cls(**{str(key): value for key, value in values.items()})

    def check(self) -> None:
        if self.trainer.nnodes > 1:
            raise OptionError("trainer.nnodes", f"is {self.trainer.nnodes}; this trainer is run on one machine: set 1.")
        batch, processes = self.data.train_batch_size, self.trainer.n_gpus_per_node
        if batch % processes or (batch // processes) % self.micro_batch_size:
            raise OptionError(
                "data.train_batch_size",
                f"is {batch}, which {processes} processes with micro-batches of {self.micro_batch_size} "
                "(data.micro_batch_size_per_gpu) do not divide.",
            )

    @property
    def micro_batch_size(self) -> int:
        """Pairs that a process computes at once."""
        of_process = self.data.train_batch_size // self.trainer.n_gpus_per_node
        return max(1, min(self.data.micro_batch_size_per_gpu, of_process))


def on_cpu() -> bool:
    """Whether torch has no accelerator to train on."""
    import torch

    return not torch.accelerator.is_available()


def train(settings: DpoSettings) -> None:
    """Train, and export the model to `global_step_<steps>/huggingface` in the folder of checkpoints.

    A run that was stopped resumes from TRL's last checkpoint. Raises `ConfigError` if TRL is not installed.
    """
    from verl_act.upstream_gaps import trl_optional_packages, trl_sharded_reference  # noqa: F401

    with needs_extra("dpo"):
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]  # trl imports lazily
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from transformers import AutoModelForCausalLM, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    class MetricsFile(TrainerCallback):
        """Writes the metrics of each step as verl's file logger does."""

        def on_log(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            path, logs = os.environ.get("VERL_FILE_LOGGER_PATH"), context["logs"]
            if path and state.is_world_process_zero and "loss" in logs:
                data = {f"train/{name.replace('rewards/', '')}": value for name, value in logs.items()}
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, "data": data}) + "\n")

    folder = Path(settings.trainer.default_local_dir)
    tokenizer, rows = _rows(settings)
    sharded = settings.trainer.n_gpus_per_node > 1 and not on_cpu()
    states = str(folder / "trl")
    arguments = DPOConfig(
        output_dir=states,
        beta=settings.beta,
        max_length=settings.data.max_length,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.data.train_batch_size
        // (settings.micro_batch_size * settings.trainer.n_gpus_per_node),
        max_steps=settings.trainer.total_training_steps or -1,
        num_train_epochs=settings.trainer.total_epochs,
        learning_rate=settings.optim.lr,
        lr_scheduler_type=settings.optim.lr_scheduler_type,
        save_steps=settings.trainer.save_freq,
        save_total_limit=1,
        logging_steps=1,
        seed=settings.data.seed,
        use_cpu=on_cpu(),
        bf16=not on_cpu(),
        gradient_checkpointing=not (on_cpu() or sharded),
        report_to=[],
        disable_tqdm=True,
        **(_SHARDED if sharded else {}),
    )
    if sharded:
        os.environ["ACCELERATE_USE_FSDP"] = "true"  # accelerate sets it after the model is loaded
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy

    def load() -> Any:
        options = {"trust_remote_code": settings.model.trust_remote_code, "dtype": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(settings.model.path, **options)
        if sharded:  # accelerate does it for others
            model.register_forward_hook(_logits_in_32_bits)
        return model

    model, reference = load(), load().requires_grad_(False)
    model.warnings_issued = {}  # TRL writes to it; transformers 5 has it no more
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[MetricsFile()],
    )
    last = get_last_checkpoint(states) if Path(states).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    step = trainer.state.global_step
    export = folder / f"global_step_{step}" / "huggingface"
    weights = trainer.accelerator.get_state_dict(trainer.model)  # whole, in the first process
    if trainer.is_world_process_zero():
        once = {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}
        model.save_pretrained(export, state_dict=once)
        tokenizer.save_pretrained(export)
        (folder / "latest_checkpointed_iteration.txt").write_text(str(step), encoding="utf-8")


def _logits_in_32_bits(_module: Any, _inputs: Any, output: Any) -> Any:
    """A forward hook: log-probabilities are summed over a reply, for which 16 bits are too coarse."""
    output.logits = output.logits.float()
    return output


def _rows(settings: DpoSettings) -> tuple[Any, Any]:
    """The tokenizer, and the rows as text: TRL tokenizes prompt and reply apart, as the engine has them."""
    from datasets import Dataset

    from verl_act.data_prep.sft.make_sft import prompt_and_reply
    from verl_act.engine import load_tokenizer
    from verl_act.schema import DPO, read_table

    tokenizer = load_tokenizer(settings.model.path, settings.model.trust_remote_code)
    kwargs = settings.data.apply_chat_template_kwargs
    rows = []
    for path in settings.data.train_files:
        for row in read_table(path, DPO).to_pylist():
            prompt, chosen = prompt_and_reply([*row["prompt"], *row["chosen"]], tokenizer, kwargs)
            _, rejected = prompt_and_reply([*row["prompt"], *row["rejected"]], tokenizer, kwargs)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return tokenizer, Dataset.from_list(rows)


if __name__ == "__main__":
    train(DpoSettings.parse(sys.argv[1:]))
