"""ops.cls_attention: what the class token looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.cls_attention import reference
from tokenprune.ops.common.attention import attention_impl, check_queries_and_keys


def cls_attention(
    q: Tensor, k: Tensor, *, scale: float | None = None, impl: str = "auto"
) -> Tensor:
    r"""The class token's row of the attention, without the other N - 1 rows.

    For towers that run SDPA or FlashAttention, which return no weights: softmax(q_0 k^T * scale).

    Args:
        q, k: [B, H, N, d] after any rotary embedding, the class token first; float32, bfloat16,
            float16 or float64, strided as they come.
        scale: of the logits, 1 / sqrt(d) by default.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            has no backward.

    Returns:
        [B, H, N] float32 (float64 for float64), summing to 1 over N.

    Raises:
        ValueError: shapes, devices, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed, or a gradient is wanted of it.

    Formula:
        $a^h_i = \operatorname{softmax}_j(q^h_0 \cdot k^h_j \cdot \text{scale})_i$ for each head,
        the class token's own entry included.

    Cost:
        $N d$ products per head, against $N^2 d$ for the whole attention. Memory: a row per head.

    Backward:
        reference only

    Example:
        ```python
        import torch

        from tokenprune import ops

        q, k = torch.randn(2, 2, 4, 577, 16)
        row = ops.cls_attention(q, k)
        assert row.shape == (2, 4, 577)
        torch.testing.assert_close(row.sum(2), torch.ones(2, 4))
        ```
    """
    scale = check_queries_and_keys(q, k, scale)
    if attention_impl("cls_attention", impl, q, k) == "triton":
        return _cls_attention(q, k, scale)
    return reference.cls_attention(q, k, scale)


@torch.library.custom_op("tokenprune::cls_attention", mutates_args=())
def _cls_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    from tokenprune.ops.cls_attention import kernel

    return kernel.launch(q, k, scale)


@_cls_attention.register_fake
def _(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return k.new_empty(k.shape[:3], dtype=torch.float32)
