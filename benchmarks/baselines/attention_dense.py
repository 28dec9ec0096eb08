"""Attention scores from the softmax written out: N x N weights for one row, or for sums."""

from __future__ import annotations

from torch import Tensor


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, N, d] queries and keys -> [B, H, N, N]."""
    return (q.float() @ k.float().mT * q.shape[3] ** -0.5).softmax(-1)


def cls_attention_dense(q: Tensor, k: Tensor) -> Tensor:
    return attention_weights(q, k)[:, :, 0]


def attention_received_dense(q: Tensor, k: Tensor) -> Tensor:
    return attention_weights(q, k).sum(2)
