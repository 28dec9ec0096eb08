"""Merging inside the vision tower's layers, between attention and MLP: ToMe (arXiv 2210.09461).

The tower runs on fewer tokens from the first layer on. After the layer whose output is the features
each patch carries the mean that it has become part of, so that the host goes on as it is. The
layers' `forward` is made anew of their own parts, on the instance, for as long as a reduction is
applied; it does so in the calling thread alone, and only while a method's own images are encoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune import ops
from tokenprune.hosts.compat import attention_implementation
from tokenprune.ops.common.precision import wide_dtype

# Layers that are normed, attend and are added, then the same with an MLP. Names of parts alone do
# not tell where a layer norms.
KNOWN_LAYERS = ("CLIPEncoderLayer", "SiglipEncoderLayer")
PARTS = {"layer_norm1", "self_attn", "layer_norm2", "mlp"}


class Merging:
    """One batch of crops on its way through the tower.

    Args:
        num_layers: that merge.
        num_keep: patches that are left of a crop in the end.
        num_prefix_tokens: 1 where a class token comes first, which never merges.

    Attributes:
        roots: [B, N] int64 in the end, the patch in whose place each has come to lie.
        keys: [B, n, D] of the layer that has attended last, see `note_keys`.
    """

    keys: Tensor

    def __init__(self, num_layers: int, num_keep: int, num_prefix_tokens: int) -> None:
        self.num_layers, self.num_keep = num_layers, num_keep
        self.num_prefix_tokens = num_prefix_tokens
        self.roots: Tensor | None = None
        self._sizes: Tensor | None = None  # [B, n]
        self._row_of: Tensor  # [B, prefix + N], the row in which each token is
        self._root_of: Tensor  # [B, n], the token in whose place each row lies

    def counts(self, num_patches: int) -> list[int]:
        """Tokens that merge in each layer: equal numbers, one more in the first where they must.

        Raises:
            ValueError: a layer would merge more than half of its tokens.
        """
        share, more = divmod(num_patches - self.num_keep, self.num_layers)
        counts = [share + (number < more) for number in range(self.num_layers)]
        left = num_patches
        for number, count in enumerate(counts):
            if count > left // 2:
                raise ValueError(
                    f"at most half of the tokens merge in a layer: {num_patches} cannot become "
                    f"{self.num_keep} in {self.num_layers} layers, layer {number} has {left} left "
                    f"and would merge {count}"
                )
            left -= count
        return counts

    def run(self, number: int, layer: Any, states: Tensor) -> Tensor:
        """Layer `number` on [B, n, D]; after the last that merges [B, prefix + N, D] again."""
        if number == 0:
            everyone = torch.arange(states.shape[1], device=states.device)
            self._row_of = self._root_of = everyone.repeat(len(states), 1)
            self._counts = self.counts(states.shape[1] - self.num_prefix_tokens)
        normed = layer.layer_norm1(states)
        bias = None
        if self._sizes is not None:  # a token of many weighs as much as they did
            bias = self._sizes.log()[:, None, None, :].to(states.dtype)
        attended, _ = layer.self_attn(hidden_states=normed, attention_mask=bias)
        states = states + attended
        if self._counts[number]:
            by_head = self.keys.detach().unflatten(2, (-1, layer.self_attn.head_dim))
            states = self._merge(states, by_head.mean(2), self._counts[number])
        states = states + layer.mlp(layer.layer_norm2(states))
        if number < self.num_layers - 1:
            return states
        prefix = self.num_prefix_tokens
        self.roots = self._root_of.gather(1, self._row_of)[:, prefix:] - prefix
        return states.gather(1, self._row_of[:, :, None].expand(-1, -1, states.shape[2]))

    def _merge(self, states: Tensor, metric: Tensor, count: int) -> Tensor:
        """[B, n, D] -> [B, n - count, D], in the official order.

        Those at even places find their best at odd ones; the `count` most similar merge. Unmerged
        ones come first, by similarity, or as they lie where a class token leads them; then targets.
        """
        batch, num_rows, width = states.shape
        if self._sizes is None:
            self._sizes = torch.ones(batch, num_rows, device=states.device)
        similarity, target = ops.most_similar(metric[:, ::2], metric[:, 1::2])
        if self.num_prefix_tokens:
            similarity = similarity.index_fill(
                1, torch.zeros(1, dtype=torch.int64, device=similarity.device), -torch.inf
            )
        ranking = similarity.argsort(dim=1, descending=True, stable=True)
        merged, left = ranking[:, :count], ranking[:, count:]
        if self.num_prefix_tokens:
            left = left.sort(dim=1).values
        num_left = left.shape[1]
        places = torch.arange(num_rows, device=states.device).repeat(batch, 1)
        new_row = num_left + places // 2  # of targets
        new_row = new_row.scatter(1, 2 * left, places[:, :num_left])
        new_row = new_row.scatter(1, 2 * merged, num_left + target.gather(1, merged))

        dtype = wide_dtype(states.dtype)
        sizes, into = self._sizes.to(dtype), new_row[:, :, None].expand(-1, -1, width)
        total = sizes.new_zeros(batch, num_rows - count).scatter_add(1, new_row, sizes)
        sums = sizes.new_zeros(batch, num_rows - count, width)
        sums = sums.scatter_add(1, into, states.to(dtype) * sizes[:, :, None])
        stays = torch.cat([2 * left, places[:, 1::2]], dim=1)
        self._root_of = self._root_of.gather(1, stays)
        self._row_of = new_row.gather(1, self._row_of)
        self._sizes = total
        return (sums / total[:, :, None]).to(states.dtype)


_merging: ContextVar[Merging | None] = ContextVar("merging", default=None)


@contextmanager
def merging_by(merging: Merging | None) -> Iterator[None]:
    """For as long as it lasts, the layers of this thread merge."""
    token = _merging.set(merging)
    try:
        yield
    finally:
        _merging.reset(token)


def note_keys(module: nn.Module, args: Any, output: Tensor) -> None:
    """The forward hook of the key projections of layers that merge."""
    merging = _merging.get()
    if merging is not None:
        merging.keys = output


def check_layers_that_merge(layers: list[nn.Module]) -> None:
    """
    Raises:
        NotImplementedError: layers whose parts are not as known, or that attend by FlashAttention.
    """
    for layer in layers:
        parts = {name for name, _ in layer.named_children()}
        if type(layer).__name__ not in KNOWN_LAYERS or parts != PARTS:
            raise NotImplementedError(
                f"{type(layer).__name__} is no layer that tokens can merge in: "
                f"{' and '.join(KNOWN_LAYERS)} of {', '.join(sorted(PARTS))} are known, got "
                f"{', '.join(sorted(parts))}"
            )
        if "forward" in vars(layer) and not hasattr(layer.forward, "merges"):
            raise NotImplementedError(
                f"{type(layer).__name__} has a forward of its own, as offloading gives it; tokens "
                "cannot merge in it"
            )
        attention = attention_implementation(layer.self_attn)
        if attention not in ("eager", "sdpa"):
            raise NotImplementedError(
                f"attention by {attention} takes no sizes of merged tokens; use sdpa or eager in "
                "the vision tower"
            )


def merging_forward(number: int, layer: Any) -> Callable[..., Any]:
    """What stands in for `layer.forward`: the same, but where this thread merges."""
    plain = type(layer).forward

    @functools.wraps(plain)
    def forward(hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        merging = _merging.get()
        if merging is None or number >= merging.num_layers:
            return plain(layer, hidden_states, attention_mask, **kwargs)
        if attention_mask is not None:
            raise NotImplementedError("tokens cannot merge in a tower that masks some of them")
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            raise NotImplementedError("tokens cannot merge in layers that are checkpointed")
        return merging.run(number, layer, hidden_states)

    forward.merges = True  # type: ignore[attr-defined]
    return forward
