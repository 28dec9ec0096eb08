"""FlashAttention on a CPU: its two functions in plain torch, beneath all of transformers' own code.

transformers chooses between them, unpads batches and looks for packed sequences as it does on a
GPU; what is called in the end computes what `flash_attn_func` and `flash_attn_varlen_func` do, and
gives no weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

NAME = "flash_in_torch"


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """[B, L, H, d], [B, M, G, d] twice -> [B, L, H, d]; causal from the last column back."""
    length, held = q.shape[1], k.shape[1]
    assert held >= length
    rows, columns = torch.arange(held - length, held)[:, None], torch.arange(held)
    seen = torch.ones(length, held, dtype=torch.bool)
    if causal:
        seen &= columns <= rows
    if window_size[0] >= 0:
        seen &= columns >= rows - window_size[0]
    if window_size[1] >= 0:
        seen &= columns <= rows + window_size[1]
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], 1) for one in (k, v))
    return functional.scaled_dot_product_attention(
        q, k, v, seen, dropout_p, scale=softmax_scale
    ).transpose(1, 2)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """[total, H, d]: sequence by sequence, each of what its bounds say and nothing else."""
    assert len(cu_seqlens_q) == len(cu_seqlens_k)
    assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
    assert int(cu_seqlens_k.diff().max()) <= max_seqlen_k
    out = torch.zeros_like(q)
    bounds = (one.unfold(0, 2, 1).tolist() for one in (cu_seqlens_q, cu_seqlens_k))
    for (first, last), (first_k, last_k) in zip(*bounds, strict=True):
        if last > first:
            out[first:last] = attend(
                q[None, first:last],
                k[None, first_k:last_k],
                v[None, first_k:last_k],
                dropout_p,
                softmax_scale,
                causal,
                window_size,
            )[0]
    return out


def install(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Makes `NAME` an attention implementation; returns its calls: layer, arguments by name."""
    from transformers import modeling_flash_attention_utils as utils
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def kernels(implementation: str | None, *_: Any, **__: Any) -> tuple[Any, ...]:
        assert implementation == NAME, f"FlashAttention was asked for as {implementation}"
        return attend, attend_packed, None, utils._pad_input, utils._unpad_input

    calls: list[tuple[Any, dict[str, Any]]] = []

    def noting(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((module, kwargs))
        return flash_attention_forward(module, *args, **kwargs)

    monkeypatch.setattr(utils, "_lazy_imports", kernels)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, noting)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, NAME, flash_attention_mask)
    return calls
