"""A checkpoint -> the model of a run: frozen parts, adapters, and what the run has learned."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.training.config import TrainConfig
from geollava.training.parts import add_adapters, parameters_of

TRAINED = "trained.safetensors"  # what a checkpoint of a run holds of the model: no frozen tensor


def read_model_config(config: TrainConfig, folder: Path) -> GeoLlavaConfig:
    """The checkpoint's configuration with what the run changes in it."""
    model_config = GeoLlavaConfig.from_pretrained(folder)
    model_config.merge_assignment = config.assignment
    model_config.merge_temperature = config.temperature
    model_config.num_keep = config.num_keep or model_config.num_keep
    model_config.check()
    return model_config


def load_model(
    config: TrainConfig, folder: Path, model_config: GeoLlavaConfig
) -> GeoLlavaForConditionalGeneration:
    """The model with its parts frozen and its adapters in place, as the configuration says."""
    half = config.precision == "bfloat16"
    options: dict[str, Any] = {"dtype": torch.bfloat16 if half else torch.float32}
    if config.lora is not None and config.lora.quantize == "4bit":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["vision_tower", "mm_projector", "reghead", "lm_head"],
        )
    model = GeoLlavaForConditionalGeneration.from_pretrained(folder, config=model_config, **options)
    fuse_layers(config, model)
    add_adapters(config, model)
    for _, parameter, learns in parameters_of(config, model):
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()
    return model


def fuse_layers(config: TrainConfig, model: GeoLlavaForConditionalGeneration) -> None:
    """Liger's kernels in the language model's layers, where they are wanted and can run.

    The loss stays ours: logits are computed only where answers are, so there is nothing to fuse.
    """
    possible = torch.cuda.is_available() and find_spec("liger_kernel") is not None
    if config.liger is False or not possible:
        return
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2(fused_linear_cross_entropy=False, model=model.model)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Puts what a checkpoint of a run holds into the model that the run began with.

    Raises:
        ValueError: it is of another run.
    """
    trained = load_file(folder / TRAINED)
    _, unexpected = model.load_state_dict(trained, strict=False)
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if unexpected or expected != set(trained):
        wrong = sorted(set(unexpected) | (expected ^ set(trained)))
        raise ValueError(f"{folder / TRAINED} is not of this run: {', '.join(wrong[:4])}")
