"""What a training step of the full-size model needs on one GPU: a step on fake tensors.

    python examples/train/memory.py

One 8K image of 13,824 visual tokens and 200 of text, under gradient checkpointing; see
`geollava.training.fake_step`, by which `geollava train` says what its own run will take.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from geollava import GeoLlavaConfig
from geollava.training.config import TrainConfig
from geollava.training.fake_step import memory

TOKENS, CROPS = 13_824 + 200, 576
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
    return memory(config, GeoLlavaConfig(), TOKENS, CROPS)


def main() -> None:
    table = Table("GiB", *FORMS, box=None)
    needs = [count(form) for form in FORMS.values()]
    for name in needs[0]:
        table.add_row(name, *(f"{need[name]:.1f}" for need in needs))
    table.add_row("together", *(f"{sum(need.values()):.1f}" for need in needs))
    Console().print(table)


if __name__ == "__main__":
    main()
