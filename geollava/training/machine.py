"""What a run asks of the machine: processes, a GPU, libraries."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel

from geollava.common.extras import install
from geollava.training.config import TrainConfig

# As this transformers calls the recomputing of activations: the former from 5.22 or so on.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if hasattr(PreTrainedModel, f"{name}_enable")
)


def check_machine(config: TrainConfig, resume: bool) -> None:
    """Raises where the run cannot be done here: ValueError, NotImplementedError or ImportError."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if config.sharding == "fsdp2" and processes == 1:
        raise ValueError(
            "sharding: fsdp2 needs several processes: torchrun --nproc-per-node N -m geollava "
            "train config.yaml"
        )
    if isinstance(config.sharding, Path):
        if not config.sharding.is_file():
            raise ValueError(f"sharding: must be none, fsdp2 or a file, got {config.sharding}")
        require("deepspeed", "sharding", "pip install deepspeed")
    if config.lora is not None:
        require("peft", "lora", install("train"))
        if config.lora.quantize == "4bit":
            if not torch.cuda.is_available():
                raise ValueError("lora.quantize: 4bit needs a CUDA device, found none")
            require("bitsandbytes", "lora.quantize", install("qlora"))
    if config.liger:
        if not torch.cuda.is_available():
            raise ValueError("liger: its kernels need a CUDA device, found none")
        require("liger_kernel", "liger", "pip install liger-kernel")
    for name in config.report_to:
        require(name, "report_to", f"pip install {name}")
    if resume and config.sharding == "fsdp2" and not torch.cuda.is_available():
        raise NotImplementedError(
            "--resume of sharding: fsdp2 needs GPUs: accelerate waits forever when it loads on CPUs"
        )


def require(package: str, key: str, remedy: str) -> None:
    """Raises ImportError, which names the configuration's key and the remedy, without a package."""
    if find_spec(package) is None:
        raise ImportError(f"{key}: needs {package}: {remedy}")
