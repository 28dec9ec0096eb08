"""What a training step of the full-size model needs on one GPU, counted, not measured.

    python examples/train/memory.py

Weights, gradients and AdamW's two states are counted on the meta device, tensor by tensor, from the
model that `geollava train` would build. Activations are those of one 8K image of 13,824 visual
tokens and 200 of text under gradient checkpointing and FlashAttention, by the formulas below.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration
from geollava.modeling import CHUNK_SIZE
from geollava.train import add_adapters, learning_rates, part_of
from geollava.train_config import TrainConfig

GIB = 2**30
TOKENS = 13_824 + 200
NF4_BYTES = 0.5 + 0.016  # four bits, and block scales that are quantized themselves
FROZEN = {"vision_tower": "frozen", "language_model": "frozen", "projector": 1e-5}
LORA = {"parts": FROZEN | {"affinity_head": 1e-4}, "assignment": "straight_through"}
FORMS = {
    "full": {},
    "LoRA": LORA | {"lora": {}},
    "QLoRA": LORA | {"lora": {"quantize": "4bit"}},
}


def count(form: dict) -> dict[str, float]:
    """GiB of each kind."""
    config = TrainConfig(
        model="none", data={"files": ["none"]}, output=Path("none"), precision="bfloat16", **form
    )
    model_config = GeoLlavaConfig()
    with torch.device("meta"):
        model = GeoLlavaForConditionalGeneration(model_config)
        add_adapters(config, model)
    rates = learning_rates(config)
    idle = set(model.model.vision_tower.idle_parameters())
    quantized = config.lora is not None and config.lora.quantize == "4bit"
    need = dict.fromkeys(("frozen weights", "trained weights", "gradients", "AdamW"), 0.0)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if rates[part] is not None and parameter not in idle:
            need["trained weights"] += 4 * parameter.numel()
            need["gradients"] += 4 * parameter.numel()
            need["AdamW"] += 8 * parameter.numel()
        else:
            in_four_bits = quantized and ".base_layer.weight" in name
            need["frozen weights"] += parameter.numel() * (NF4_BYTES if in_four_bits else 2)
    need["activations"] = activations(model_config, tower_learns=rates["vision_tower"] is not None)
    return {name: value / GIB for name, value in need.items()}


def activations(config: GeoLlavaConfig, *, tower_learns: bool) -> float:
    """Bytes in bfloat16: what is kept of every layer, and the largest layer while it is redone."""
    text, vision = config.text_config, config.vision_config
    kept = 2 * TOKENS * text.hidden_size * (text.num_hidden_layers + 2)
    # gate, up, their product and its gradient, beside six of the layer's width
    redone = 2 * TOKENS * (4 * text.intermediate_size + 6 * text.hidden_size)
    crops = CHUNK_SIZE
    tokens = crops * (config.grid_size[0] * config.grid_size[1] + 1)
    layers = vision.num_hidden_layers if tower_learns else 1
    chunk = 2 * tokens * (layers * vision.hidden_size + 4 * vision.intermediate_size)
    # straight through: one float32 [rows + 2, cols + 2, K] for each of rows + cols steps
    rows, cols = config.grid_size
    walk = 4 * crops * (rows + cols) * (rows + 2) * (cols + 2) * config.num_keep
    pixels = 576 * 3 * vision.image_size**2
    return kept + pixels + max(redone, chunk + walk)


def main() -> None:
    table = Table("GiB", *FORMS, box=None)
    needs = [count(form) for form in FORMS.values()]
    for name in needs[0]:
        table.add_row(name, *(f"{need[name]:.1f}" for need in needs))
    table.add_row("together", *(f"{sum(need.values()):.1f}" for need in needs))
    Console().print(table)


if __name__ == "__main__":
    main()
