"""What a run is going to do, said before it begins: rows -> packs -> steps, tokens, memory.

Memory is counted, not measured: weights, gradients and AdamW's two states tensor by tensor on the
meta device, activations by the formulas below, with FlashAttention or SDPA.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import CHUNK_SIZE, GeoLlavaForConditionalGeneration
from geollava.training.config import TrainConfig
from geollava.training.parts import add_adapters, parameters_of
from geollava.training.tokens import Size

GIB = 2**30
NF4_BYTES = 0.5 + 0.016  # four bits, and block scales that are quantized themselves


def steps_of(config: TrainConfig, packs: int, processes: int) -> int:
    """Optimizer steps of a run over so many packs."""
    per_epoch = math.ceil(math.ceil(packs / processes) / config.accumulate)
    return config.max_steps or math.ceil(config.epochs * per_epoch)


def plan_of(
    config: TrainConfig, model_config: GeoLlavaConfig, rows: int, packs: Sequence[Size]
) -> str:
    """Two lines for whoever starts the run.

    Args:
        rows: that are trained on.
        packs: the tokens of each.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    tokens = [pack.tokens for pack in packs]
    crops = max(pack.visual_tokens for pack in packs) // model_config.num_keep
    steps = steps_of(config, len(packs), processes)
    in_a_step = sum(tokens) / len(tokens) * min(config.accumulate * processes, len(tokens))
    need = memory(config, model_config, max(tokens), crops)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in need.items())
    return (
        f"data: {rows:,} rows -> {len(tokens):,} packs (data.pack_visual_tokens) -> "
        f"{steps:,} steps (accumulate, epochs, max_steps); about {in_a_step:,.0f} tokens a step, "
        f"at most {max(tokens):,} in a pack\n"
        f"memory: about {sum(need.values()):.1f} GiB on each device, counted without sharding: "
        f"{parts}"
    )


def memory(
    config: TrainConfig, model_config: GeoLlavaConfig, tokens: int, crops: int
) -> dict[str, float]:
    """GiB of each kind that a step on one pack needs on one device.

    Args:
        tokens: of the pack, visual and text. crops: of its images.
    """
    with torch.random.fork_rng(), torch.device("meta"):
        model = GeoLlavaForConditionalGeneration(model_config)
        add_adapters(config, model)
    quantized = config.lora is not None and config.lora.quantize == "4bit"
    frozen_bytes = 2 if config.precision == "bfloat16" else 4
    need = dict.fromkeys(("frozen weights", "trained weights", "gradients", "AdamW"), 0.0)
    for name, parameter, learns in parameters_of(config, model):
        if learns:
            need["trained weights"] += 4 * parameter.numel()
            need["gradients"] += 4 * parameter.numel()
            need["AdamW"] += 8 * parameter.numel()
        else:
            in_four_bits = quantized and ".base_layer.weight" in name
            need["frozen weights"] += parameter.numel() * (
                NF4_BYTES if in_four_bits else frozen_bytes
            )
    need["activations"] = activations(config, model_config, tokens, crops)
    return {name: value / GIB for name, value in need.items()}


def activations(
    config: TrainConfig, model_config: GeoLlavaConfig, tokens: int, crops: int
) -> float:
    """Bytes: what is kept of every layer, and the largest layer while it is redone."""
    text, vision = model_config.text_config, model_config.vision_config
    size = 2 if config.precision == "bfloat16" else 4
    # gate, up, their product and its gradient, beside six of the layer's width
    layer = size * tokens * (4 * text.intermediate_size + 6 * text.hidden_size)
    kept = size * tokens * text.hidden_size * (text.num_hidden_layers + 2)
    if not config.gradient_checkpointing:
        kept += layer * (text.num_hidden_layers - 1)
    pixels = crops * 3 * vision.image_size**2
    if config.data.encode_once:  # the tower is done with before the first step
        return kept + layer
    chunk_crops = min(CHUNK_SIZE, crops)
    rows, cols = model_config.grid_size
    layers = vision.num_hidden_layers if config.parts.vision_tower != "frozen" else 1
    width = layers * vision.hidden_size + 4 * vision.intermediate_size
    chunk = size * chunk_crops * (rows * cols + 1) * width
    # straight through: one float32 [rows + 2, cols + 2, K] for each of rows + cols steps
    walk = 4 * chunk_crops * (rows + cols) * (rows + 2) * (cols + 2) * model_config.num_keep
    return kept + pixels + max(layer, chunk + walk)
