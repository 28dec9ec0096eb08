"""What is measured: operators, their implementations, and inputs in the sizes of real models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.baselines.attention_dense import attention_received_dense, cls_attention_dense
from benchmarks.baselines.background_anchored_dense import background_anchored_dense
from benchmarks.baselines.greedy_loops import (
    coverage_dense,
    dpp_loop,
    dpp_steps,
    max_min_loop,
    max_min_steps,
    mmr_loop,
)
from tokenprune import ops

BASELINE = "dense"


def background_anchored_inputs(
    crops: int,
    grid_size: tuple[int, int],
    width: int,
    num_keep: int,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    sharp: float = 1.0,
) -> dict[str, Any]:
    """Arguments of `background_anchored`; the features are a view behind a class token.

    `sharp` scales the logits, and with them how clusters form.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

    rows, cols = grid_size
    tokens = normal(crops, 1 + rows * cols, width)
    return {
        "features": tokens[:, 1:],
        "cls": tokens[:, 0],
        "grid_size": grid_size,
        "dw_weight": normal(width, 1, 3, 3, scale=sharp / 3),
        "pw_weight": normal(9, width, 1, 1, scale=width**-0.5),
        "pw_bias": normal(9, scale=0.1),
        "q_weight": normal(width, width, scale=width**-0.5),
        "q_bias": normal(width, scale=0.1),
        "k_weight": normal(width, width, scale=width**-0.5),
        "k_bias": normal(width, scale=0.1),
        "num_keep": num_keep,
    }


def attention_inputs(
    images: int, heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Queries and keys as views of one fused projection."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(images, num_tokens, 3, heads, head_dim, generator=generator).to(dtype)
    return {"q": packed[:, :, 0].transpose(1, 2), "k": packed[:, :, 1].transpose(1, 2)}


def max_min_inputs(
    crops: int, num_tokens: int, width: int, num_keep: int, dtype: torch.dtype
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(crops, num_tokens, width, generator=generator).to(dtype)
    return {"features": features, "num_keep": num_keep}


def weighed_inputs(
    crops: int, num_tokens: int, width: int, num_keep: int, dtype: torch.dtype, *, name: str
) -> dict[str, Any]:
    """As `max_min_inputs`, and under `name` a weight from 0.5 to 1.5 of each token."""
    inputs = max_min_inputs(crops, num_tokens, width, num_keep, dtype)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(crops, num_tokens, generator=generator) + 0.5
    return inputs | {name: weights.to(dtype)}


@dataclass(frozen=True)
class Case:
    """One operator at one size. `shape` holds the arguments of its inputs, dtype aside."""

    op: str
    shape: tuple[Any, ...]
    dtype: torch.dtype

    def inputs(self, device: str) -> dict[str, Any]:
        made = INPUTS[self.op](*self.shape, dtype=self.dtype)
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in made.items()}

    def bytes_at_least(self) -> int:
        """What any implementation must read and write: features or q and k once, results once."""
        size = self.dtype.itemsize
        if self.op in GREEDY:
            crops, tokens, width, num_keep = self.shape
            return crops * (size * width * (tokens + num_keep) + 8 * tokens)
        if self.op == "background_anchored":
            crops, (rows, cols), width, num_keep = self.shape
            tokens = rows * cols
            return crops * (size * width * (tokens + 1 + num_keep) + 8 * tokens)
        images, heads, tokens, head_dim = self.shape
        queries = 1 if self.op == "cls_attention" else tokens
        return images * heads * (size * head_dim * (tokens + queries) + 4 * tokens)


@functools.cache
def compile_dense() -> Callable[..., Any]:
    return torch.compile(background_anchored_dense)


def compiled_dense(**inputs: Any) -> Any:
    return compile_dense()(**inputs)


class Kept(NamedTuple):
    """What a baseline kept, as results name it."""

    keep_indices: Tensor


def product_alone(
    features: Tensor, dw_weight: Tensor, pw_weight: Tensor, cls: Tensor, **_: Any
) -> None:
    """Each token's product with 82 vectors, and nothing else: nine taps of nine outputs, an anchor.

    No implementation: what one dense product for all logits and scores costs by itself.
    """
    taps = (dw_weight.reshape(-1, 9).T[:, None] * pw_weight.reshape(9, -1)).flatten(0, 1)
    for block, anchors in zip(features.split(16), cls.split(16), strict=True):
        block @ torch.cat([taps.expand(len(block), -1, -1), anchors[:, None]], dim=1).mT


PARTS = ("product alone",)  # measured beside the implementations, with no result to compare
GREEDY = ("max_min_select", "dpp_select", "coverage_select", "mmr_select")
INPUTS: dict[str, Callable[..., dict[str, Any]]] = {
    "background_anchored": background_anchored_inputs,
    "cls_attention": attention_inputs,
    "attention_received": attention_inputs,
    "max_min_select": max_min_inputs,
    "dpp_select": functools.partial(weighed_inputs, name="quality"),
    "coverage_select": functools.partial(weighed_inputs, name="weights"),
    "mmr_select": functools.partial(weighed_inputs, name="relevance"),
}
IMPLEMENTATIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "background_anchored": {
        BASELINE: background_anchored_dense,
        "dense, compiled": compiled_dense,
        "product alone": product_alone,
        "reference": functools.partial(ops.background_anchored, impl="reference"),
        "triton": functools.partial(ops.background_anchored, impl="triton"),
    },
    "cls_attention": {
        BASELINE: cls_attention_dense,
        "reference": functools.partial(ops.cls_attention, impl="reference"),
        "triton": functools.partial(ops.cls_attention, impl="triton"),
    },
    "attention_received": {
        BASELINE: attention_received_dense,
        "reference": functools.partial(ops.attention_received, impl="reference"),
        "triton": functools.partial(ops.attention_received, impl="triton"),
    },
    "max_min_select": {
        BASELINE: max_min_loop,
        "dense, step by step": lambda **inputs: Kept(max_min_steps(**inputs)),
        "reference": functools.partial(ops.max_min_select, impl="reference"),
        "triton": functools.partial(ops.max_min_select, impl="triton"),
    },
    "dpp_select": {
        BASELINE: dpp_loop,
        "dense, step by step": lambda **inputs: Kept(dpp_steps(**inputs)),
        "reference": functools.partial(ops.dpp_select, impl="reference"),
        "triton": functools.partial(ops.dpp_select, impl="triton"),
    },
    "coverage_select": {
        BASELINE: coverage_dense,
        "reference": functools.partial(ops.coverage_select, impl="reference"),
        "triton": functools.partial(ops.coverage_select, impl="triton"),
    },
    "mmr_select": {
        BASELINE: mmr_loop,
        "reference": functools.partial(ops.mmr_select, impl="reference"),
        "triton": functools.partial(ops.mmr_select, impl="triton"),
    },
}

CPU_CASES = (
    Case("background_anchored", (144, (24, 24), 1024, 24), torch.float32),
    Case("attention_received", (4, 16, 1024, 64), torch.float32),
    Case("cls_attention", (4, 16, 1024, 64), torch.float32),
    Case("max_min_select", (1, 576, 1024, 64), torch.float32),
    Case("max_min_select", (64, 576, 1024, 64), torch.float32),
    Case("max_min_select", (64, 576, 128, 64), torch.float32),
    Case("dpp_select", (1, 576, 1024, 64), torch.float32),
    Case("dpp_select", (64, 576, 1024, 64), torch.float32),
    Case("dpp_select", (64, 576, 128, 64), torch.float32),
    Case("coverage_select", (1, 576, 1024, 64), torch.float32),
    Case("coverage_select", (64, 576, 1024, 64), torch.float32),
    Case("mmr_select", (1, 576, 1024, 64), torch.float32),
    Case("mmr_select", (64, 576, 1024, 64), torch.float32),
)
GPU_CASES = (
    Case("background_anchored", (576, (24, 24), 1024, 24), torch.bfloat16),
    Case("background_anchored", (144, (24, 24), 1024, 24), torch.bfloat16),
    Case("background_anchored", (144, (24, 24), 1024, 24), torch.float32),
    Case("background_anchored", (144, (24, 24), 1024, 144), torch.bfloat16),
    Case("background_anchored", (144, (32, 32), 1152, 64), torch.bfloat16),
    Case("background_anchored", (1, (24, 24), 1024, 24), torch.bfloat16),
    Case("attention_received", (1, 16, 4096, 64), torch.bfloat16),
    Case("attention_received", (16, 16, 1024, 64), torch.bfloat16),
    Case("cls_attention", (144, 16, 577, 64), torch.bfloat16),
    Case("max_min_select", (64, 576, 1024, 64), torch.float32),
    Case("max_min_select", (1, 576, 1024, 64), torch.float32),
    Case("dpp_select", (64, 576, 1024, 64), torch.float32),
    Case("dpp_select", (1, 576, 1024, 64), torch.float32),
    Case("coverage_select", (64, 576, 1024, 64), torch.float32),
    Case("coverage_select", (1, 576, 1024, 64), torch.float32),
    Case("mmr_select", (64, 576, 1024, 64), torch.float32),
    Case("mmr_select", (1, 576, 1024, 64), torch.float32),
)


def differences(case: Case, result: Any, dense: Any) -> list[str]:
    """What of a result is not equal to the baseline's, as far as their dtype can tell."""
    if case.op in GREEDY:
        # Among 576 distances two may differ by less than float32 tells, and the choices after them.
        same = (result.keep_indices[:, :, None] == dense[:, None, :]).any(2).float().mean() >= 0.95
        return [] if same else ["kept indices"]
    if case.op != "background_anchored":
        same = torch.allclose(result, dense, atol=1e-4, rtol=1e-3)
        return [] if same else ["weights"]
    found = []
    # In a narrow dtype the dense form rounds at every step, and near ties fall either way.
    exact = case.dtype == torch.float32
    enough = 1.0 if exact else 0.9
    if (result.assignment == dense.roots).float().mean() < enough:
        found.append("roots")
    same = (result.keep_indices[:, :, None] == dense.keep_indices[:, None, :]).any(2)
    if same.float().mean() < enough:
        found.append("kept indices")
    elif exact and not torch.allclose(result.features, dense.features, atol=1e-5, rtol=0):
        found.append("features")
    return found
