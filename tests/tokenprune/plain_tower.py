"""A plain run of a host's tower, by its eager attention: what papers take from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.tower_of_host import self_attention_of, tower_layers

from .hosts import Host

OF_PROMPT = ("input_ids", "attention_mask", "mm_token_type_ids")


def queries_and_keys(host: Host, inputs: dict[str, Any]) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Of each layer, [crops, H, N, d] scaled queries, and keys, call by call."""
    adapter = find_adapter(host.model)
    attentions = [self_attention_of(layer) for layer in tower_layers(adapter.vision_tower)]
    module = sys.modules[type(attentions[0]).__module__]
    eager = module.eager_attention_forward
    read: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def reading(layer: Any, query: Tensor, key: Tensor, *args: Any, scaling: float, **more: Any):
        number = next(n for n, one in enumerate(attentions) if one is layer)
        read.setdefault(number, []).append((query * scaling, key))
        return eager(layer, query, key, *args, scaling=scaling, **more)

    images = {name: value for name, value in inputs.items() if name not in OF_PROMPT}
    with in_eager(host), mock.patch.object(module, "eager_attention_forward", reading):
        host.model.base_model.get_image_features(**images, return_dict=True)
    return {n - layers: read[n] for layers in (0, len(attentions)) for n in read}


@contextmanager
def in_eager(host: Host) -> Iterator[None]:
    former = host.model.config._attn_implementation
    host.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            yield
    finally:
        host.model.set_attn_implementation(former)


def received(calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    """[crops, N], or [1, all patches]: sum over queries, mean over heads."""
    parts = [(query @ key.mT).softmax(-1).sum(2).mean(1) for query, key in calls]
    return torch.cat(parts, 0 if len(parts[0]) > 1 else 1)


def num_crops(host: Host, inputs: dict[str, Any]) -> list[int]:
    """Of each image."""
    if host.model_type != "llava_next":
        return [1] * len(host.sizes(inputs))
    return [int(pixels.flatten(1).any(1).sum()) for pixels in inputs["pixel_values"]]


def in_crops(host: Host, inputs: dict[str, Any], of_patches: Tensor) -> list[Tensor]:
    """For each image [crops, N], without class tokens, tokens in raster order."""
    if host.model_type != "qwen2_5_vl":
        return list(of_patches[:, 1:].split(num_crops(host, inputs)))
    adapter = find_adapter(host.model)
    sizes = host.sizes(inputs)
    order = adapter.window_order(sizes, torch.device("cpu"))
    in_raster = of_patches[0].unflatten(0, (-1, 4)).mean(1)[order.argsort()]
    return [one[None] for one in in_raster.split([rows * cols // 4 for _, rows, cols in sizes])]
