"""The parts of the model: which learn, how fast, and the adapters that learn in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.training.config import TrainConfig

PARTS = {
    "lora": re.compile(r"lora_"),
    "affinity_head": re.compile(r"^reghead\."),
    "projector": re.compile(r"^model\.mm_projector\."),
    "vision_tower": re.compile(r"^model\.vision_tower\."),
    "language_model": re.compile(r""),
}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    return next(part for part, pattern in PARTS.items() if pattern.search(name))


def learning_rates(config: TrainConfig) -> dict[str, float | None]:
    """Of each part; None where it is frozen."""
    rates = {
        part: None if rate == "frozen" else float(rate)
        for part, rate in config.parts.model_dump().items()
    }
    return rates | {"lora": config.lora.learning_rate if config.lora is not None else None}


def parameters_of(
    config: TrainConfig, model: GeoLlavaForConditionalGeneration
) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """(name, parameter, whether it learns) of each parameter.

    Those of the tower's layers after the last that is read never learn.
    """
    rates = learning_rates(config)
    idle = set(model.model.vision_tower.idle_parameters())
    for name, parameter in model.named_parameters():
        yield name, parameter, rates[part_of(name)] is not None and parameter not in idle


def add_adapters(config: TrainConfig, model: GeoLlavaForConditionalGeneration) -> None:
    """Puts fresh adapters into the language model where the configuration has them."""
    if config.lora is None:
        return
    from peft import LoraConfig

    targets = "|".join(re.escape(name) for name in config.lora.targets)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model.add_adapter(
            LoraConfig(
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                lora_dropout=config.lora.dropout,
                target_modules=rf"model\.layers\.\d+\.(self_attn|mlp)\.({targets})",
            )
        )


def merge_adapters(model: GeoLlavaForConditionalGeneration) -> None:
    """Adds what adapters learned to the weights that they adapt, and takes them out."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config
