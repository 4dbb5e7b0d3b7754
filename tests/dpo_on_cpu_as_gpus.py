"""`python -m verl_act.dpo` on the CPU, in processes that take themselves for GPUs: accelerate shards on those alone."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args

from verl_act import dpo


def gpus_by_gloo(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def on_the_cpu(state: PartialState) -> None:
    state.device = torch.device("cpu")


if __name__ == "__main__":
    PartialState._prepare_backend = gpus_by_gloo
    PartialState.set_device = on_the_cpu
    training_args.is_torch_bf16_gpu_available = lambda: True
    dpo.on_cpu = lambda: False
    dpo.train(dpo.DpoSettings.parse(sys.argv[1:]))
