"""Two passes that never hold N x N: each query's softmax sum, then each key's column of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.common.launch import interpreting, launch_config, unit_stride


@triton.jit
def load_rows(base, token, channel, stride, num_tokens, width):
    """[M, d] rows of a [N, d] matrix."""
    return tl.load(
        base + token[:, None].to(tl.int64) * stride + channel[None, :],
        mask=(token < num_tokens)[:, None] & (channel < width)[None, :],
        other=0.0,
    )


@triton.jit
def _attention_stats_kernel(
    q,  # [B, H, N, d], strided
    k,  # [B, H, N, d], strided
    normalizers,  # [B, H, N] float32: log of the sum of exponentials of each query's row
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    heads,
    num_tokens,
    width,
    scale,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PADDED_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    channel = tl.arange(0, PADDED_D)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    q += batch * stride_qb + head * stride_qh
    k += batch * stride_kb + head * stride_kh
    queries = load_rows(q, row, channel, stride_qn, num_tokens, width)
    if UPCAST:
        queries = queries.to(tl.float32)
    largest = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, num_tokens, BLOCK_M):
        column = start + tl.arange(0, BLOCK_M)
        keys = load_rows(k, column, channel, stride_kn, num_tokens, width)
        if UPCAST:
            keys = keys.to(tl.float32)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        logits = tl.where((column < num_tokens)[None, :], logits, -float("inf"))
        new = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(logits - new[:, None]), 1)
        largest = new
    line = normalizers + tl.program_id(0).to(tl.int64) * num_tokens
    tl.store(line + row, largest + tl.log(total), mask=row < num_tokens)


@triton.jit
def _attention_received_fwd_kernel(
    q,  # [B, H, N, d], strided
    k,  # [B, H, N, d], strided
    normalizers,  # [B, H, N] float32
    received,  # [B, H, N] float32
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    heads,
    num_tokens,
    width,
    scale,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PADDED_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    channel = tl.arange(0, PADDED_D)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    q += batch * stride_qb + head * stride_qh
    k += batch * stride_kb + head * stride_kh
    line = tl.program_id(0).to(tl.int64) * num_tokens
    keys = load_rows(k, column, channel, stride_kn, num_tokens, width)
    if UPCAST:
        keys = keys.to(tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, num_tokens, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        queries = load_rows(q, row, channel, stride_qn, num_tokens, width)
        if UPCAST:
            queries = queries.to(tl.float32)
        logits = tl.dot(keys, tl.trans(queries), input_precision="ieee") * scale
        # Rows beyond the last weigh nothing.
        normalizer = tl.load(normalizers + line + row, mask=row < num_tokens, other=float("inf"))
        total += tl.sum(tl.exp(logits - normalizer[None, :]), 1)
    tl.store(received + line + column, total, mask=column < num_tokens)


def launch(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B, H, N, d] queries and keys -> [B, H, N] column sums of the softmax."""
    q, k = unit_stride(q), unit_stride(k)
    batch, heads, num_tokens, width = k.shape
    normalizers = k.new_empty(batch, heads, num_tokens, dtype=torch.float32)
    received = torch.empty_like(normalizers)
    config = launch_config("attention_stats", k)
    grid = (batch * heads, triton.cdiv(num_tokens, config["BLOCK_N"]))
    shared = (*q.stride()[:3], *k.stride()[:3], heads, num_tokens, width, scale)
    config |= {"PADDED_D": max(16, triton.next_power_of_2(width)), "UPCAST": interpreting()}
    if batch * heads:
        _attention_stats_kernel[grid](q, k, normalizers, *shared, **config)
        _attention_received_fwd_kernel[grid](q, k, normalizers, received, *shared, **config)
    return received
