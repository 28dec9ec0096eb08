"""What the tiny models of the families share: towers, rope, and images as processors give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..hosts import IMAGE, Host

MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# Qwen's kind of tower.
MERGING: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 14,
}
DEEPSTACK = {
    **MERGING,
    "depth": 3,
    "patch_size": 16,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
# A window that is shorter than the prompts.
SLIDING: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
MOE = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}

Images = Callable[[list[int]], dict[str, Any]]


def alive(model: Any) -> Any:
    """In eval mode, without weights of (near) zero, which would make all images alike."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        dead = not weight.isfinite().all() or weight.abs().max() < 1e-6
        if dead and "bias" not in name.rsplit(".", 1)[-1]:
            nn.init.normal_(weight, std=0.1)
    return model.eval()


def family(model: Any, images: Images, **options: Any) -> Host:
    return Host(alive(model), images, lambda inputs: [], **options)


def counted(model: Any, images: Images, tokens: int, name: str = "pixel_values") -> Host:
    """As `family`, where so many tokens make an image, in more than one entry or under a name."""
    return Host(alive(model), images, lambda inputs: inputs[name], crop_tokens=tokens)


def square(side: int, name: str = "pixel_values") -> Images:
    return lambda counts: {name: torch.randn(sum(counts), 3, side, side)}


def grids(width: int, unflat: tuple[int, ...] = ()) -> Images:
    """Patches of all images in one list, and how many in each (frames, rows, cols)."""
    chosen = [(1, 8, 6), (1, 4, 8), (1, 4, 4), (1, 10, 6)]

    def images(counts: list[int]) -> dict[str, Any]:
        grid = torch.tensor([chosen[i % len(chosen)] for i in range(sum(counts))])
        pixels = torch.randn(int(grid.prod(1).sum()), width)
        return {
            "pixel_values": pixels.unflatten(1, unflat) if unflat else pixels,
            "image_grid_thw": grid,
        }

    return images


def sized(unit: int) -> Images:
    """Images padded to the largest, with their sizes in pixels (Pixtral)."""
    chosen = [(4, 6), (6, 8), (4, 4), (8, 4)]

    def images(counts: list[int]) -> dict[str, Any]:
        sizes = [chosen[i % len(chosen)] for i in range(sum(counts))]
        sizes = [(rows * unit, cols * unit) for rows, cols in sizes]
        pixels = torch.zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        for image, (height, width) in zip(pixels, sizes, strict=True):
            image[:, :height, :width] = torch.randn(3, height, width)
        return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}

    return images


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int()}


class Tower(nn.Module):
    """Stands in for a tower of timm, which asks for torchvision: a convolution over patches."""

    def __init__(self, in_rows: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 14, 14)
        self.cls = nn.Parameter(torch.randn(1, 1, 32)) if in_rows else None

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        states = self.patches(pixel_values)
        if self.cls is not None:
            states = states.flatten(2).transpose(1, 2)
            states = torch.cat([self.cls.expand(len(states), -1, -1), states], 1)
        return BaseModelOutputWithPooling(last_hidden_state=states)


@contextmanager
def instead_of_timm(module: Any, kind: str, in_rows: bool = False) -> Iterator[None]:
    made = module.AutoModel

    def from_config(config: Any) -> Any:
        return Tower(in_rows) if config.model_type == kind else made.from_config(config)

    with mock.patch.object(module, "AutoModel", SimpleNamespace(from_config=from_config)):
        yield
