"""One launch of every operator that has kernels, in the sizes that matter.

An entry takes a dtype and returns a `Launch`. What the kernels are, what they are given and how
they are launched is recorded from it (`record.py`), so that no other list needs to know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import (
    GREEDY,
    INPUTS,
    attention_inputs,
    background_anchored_inputs,
    max_min_inputs,
)
from tokenprune import ops

GRID, WIDTH, KEEP = (24, 24), 1024, 24  # a crop of CLIP-L at 336 pixels
# Arguments of kernels by what they hold; all others are scratch, results included.
ROLES = {
    **dict.fromkeys(("features", "q", "k", "queries", "keys"), "features"),
    **dict.fromkeys(("vectors", "anchors", "offsets", "bias"), "weights"),
}


class Launch(NamedTuple):
    """An operator's call.

    Attributes:
        run: returns the results.
        features: what the operator reduces.
        crops: in this call; for attention, heads of images.
    """

    run: Callable[[], Any]
    features: tuple[Tensor, ...]
    crops: int = 1


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Those that an operator returned, one by one or in a tuple or dataclass of results."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple):
        for part in result:
            yield from tensors_in(part)
    elif hasattr(result, "__dataclass_fields__"):
        yield from tensors_in(tuple(getattr(result, name) for name in result.__dataclass_fields__))


def _head(inputs: dict[str, Any]) -> ops.AffinityHead:
    return ops.AffinityHead(*(inputs[name] for name in ("dw_weight", "pw_weight", "pw_bias")))


def _anchor(inputs: dict[str, Any]) -> ops.Anchor:
    return ops.Anchor(*(inputs[n] for n in ("q_weight", "q_bias", "k_weight", "k_bias")))


def background_anchored(dtype: torch.dtype) -> Launch:
    inputs = background_anchored_inputs(1, GRID, WIDTH, KEEP, dtype)
    return Launch(lambda: ops.background_anchored(**inputs, impl="triton"), (inputs["features"],))


def background_anchored_quotas(dtype: torch.dtype) -> Launch:
    """Narrow, since only the code differs from the case above."""
    inputs = background_anchored_inputs(2, GRID, 64, KEEP, dtype) | {
        "num_keep": torch.tensor([9, 30])
    }
    return Launch(
        lambda: ops.background_anchored(**inputs, cycles="merge", impl="triton"),
        (inputs["features"],),
        crops=2,
    )


def background_anchored_large(dtype: torch.dtype) -> Launch:
    """The largest grid, narrow."""
    inputs = background_anchored_inputs(1, (64, 64), 64, KEEP, dtype)
    return Launch(lambda: ops.background_anchored(**inputs, impl="triton"), (inputs["features"],))


def background_score(dtype: torch.dtype) -> Launch:
    inputs = background_anchored_inputs(1, GRID, WIDTH, KEEP, dtype)
    features = inputs["features"].requires_grad_()

    def run() -> tuple[Tensor, ...]:
        logits = ops.background_score(features, GRID, _head(inputs), impl="triton")
        return (logits, *torch.autograd.grad(logits.sum(), features))

    return Launch(run, (features,))


def background_merge(cycles: str) -> Callable[[torch.dtype], Launch]:
    def launch(dtype: torch.dtype) -> Launch:
        logits = torch.randn(1, 576, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
        return Launch(
            lambda: ops.background_merge(logits, GRID, cycles=cycles, impl="triton"), (logits,)
        )

    return launch


def anchored_select(dtype: torch.dtype) -> Launch:
    inputs = background_anchored_inputs(1, GRID, WIDTH, KEEP, dtype)
    features, cls, roots = inputs["features"], inputs["cls"], _roots()
    return Launch(
        lambda: ops.anchored_select(features, cls, roots, _anchor(inputs), KEEP, impl="triton"),
        (features,),
    )


def cluster_mean(weighted: bool) -> Callable[[torch.dtype], Launch]:
    def launch(dtype: torch.dtype) -> Launch:
        features = background_anchored_inputs(1, GRID, WIDTH, KEEP, dtype)["features"]
        features.requires_grad_()
        roots = _roots()
        kept = roots.unique()[None, :KEEP]
        weights = torch.linspace(0.5, 1.5, 576)[None] if weighted else None

        def run() -> tuple[Tensor, ...]:
            means = ops.cluster_mean(features, roots, kept, weights, impl="triton")
            return (means, *torch.autograd.grad(means.sum(), features))

        return Launch(run, (features,))

    return launch


def _roots() -> Tensor:
    """[1, 576]: clusters of 3 x 3 tokens."""
    row, col = torch.arange(24)[:, None] // 3 * 3, torch.arange(24)[None] // 3 * 3
    return (row * 24 + col).reshape(1, 576)


def attention(operator: Callable[..., Tensor]) -> Callable[[torch.dtype], Launch]:
    def launch(dtype: torch.dtype) -> Launch:
        inputs = attention_inputs(1, 1, 577, 64, dtype)
        return Launch(lambda: operator(**inputs, impl="triton"), (inputs["q"], inputs["k"]))

    return launch


def greedy(
    name: str, num_tokens: int = 576, width: int = WIDTH, num_keep: int = KEEP
) -> Callable[[torch.dtype], Launch]:
    def launch(dtype: torch.dtype) -> Launch:
        inputs = INPUTS[name](1, num_tokens, width, num_keep, dtype)
        operator = getattr(ops, name)
        return Launch(lambda: operator(**inputs, impl="triton"), (inputs["features"],))

    return launch


def most_similar(dtype: torch.dtype) -> Launch:
    features = max_min_inputs(1, 576, WIDTH, KEEP, dtype)["features"]
    queries, keys = features[:, ::2], features[:, 1::2]
    return Launch(lambda: ops.most_similar(queries, keys, impl="triton"), (queries, keys))


LAUNCHES: dict[str, Callable[[torch.dtype], Launch]] = {
    "background_anchored": background_anchored,
    "background_anchored, merge, quotas": background_anchored_quotas,
    "background_anchored, 64 × 64": background_anchored_large,
    "background_score": background_score,
    "background_merge": background_merge("official"),
    "background_merge, merge": background_merge("merge"),
    "anchored_select": anchored_select,
    "cluster_mean": cluster_mean(weighted=False),
    "cluster_mean, weighted": cluster_mean(weighted=True),
    "cls_attention": attention(ops.cls_attention),
    "attention_received": attention(ops.attention_received),
    **{name: greedy(name) for name in GREEDY},
    # Programs for 4,096 tokens; so few more than half that the interpreter is done soon.
    **{f"{name}, 2,049 tokens": greedy(name, 2049, 64, 4) for name in GREEDY},
    "most_similar": most_similar,
}
