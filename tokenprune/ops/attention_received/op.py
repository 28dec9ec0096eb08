"""ops.attention_received: how much all tokens look at each."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.attention_received import reference
from tokenprune.ops.common.attention import attention_impl, check_queries_and_keys


def attention_received(
    q: Tensor, k: Tensor, *, scale: float | None = None, impl: str = "auto"
) -> Tensor:
    r"""Column sums of the attention, in O(N) memory.

    The counterpart of `cls_attention` for towers without a class token (SigLIP, Qwen-VL): the sum
    over queries of softmax(q k^T * scale).

    Args:
        q, k: [B, H, N, d] after any rotary embedding; float32, bfloat16, float16 or float64,
            strided as they come.
        scale: of the logits, 1 / sqrt(d) by default.
        impl: "auto" (Triton on CUDA), "reference" or "triton"; a named one runs or raises. Triton
            has no backward.

    Returns:
        [B, H, N] float32 (float64 for float64), summing to N over N.

    Raises:
        ValueError: shapes, devices, or an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed, or a gradient is wanted of it.

    Formula:
        $a^h_i = \sum_{n=1}^{N} \operatorname{softmax}_j(q^h_n \cdot k^h_j \cdot \text{scale})_i$
        for each head.

    Cost:
        $N^2 d$ products per head, as the attention itself; memory for two numbers per token instead
        of $N^2$ weights: first each query's maximum and sum are found, then the columns are added.

    Backward:
        reference only

    Example:
        ```python
        import torch

        from tokenprune import ops

        q, k = torch.randn(2, 2, 4, 576, 16)
        received = ops.attention_received(q, k)
        assert received.shape == (2, 4, 576)
        torch.testing.assert_close(received.sum(2), torch.full((2, 4), 576.0))
        ```
    """
    scale = check_queries_and_keys(q, k, scale)
    if attention_impl("attention_received", impl, q, k) == "triton":
        return _attention_received(q, k, scale)
    return reference.attention_received(q, k, scale)


@torch.library.custom_op("tokenprune::attention_received", mutates_args=())
def _attention_received(q: Tensor, k: Tensor, scale: float) -> Tensor:
    from tokenprune.ops.attention_received import kernel

    return kernel.launch(q, k, scale)


@_attention_received.register_fake
def _(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return k.new_empty(k.shape[:3], dtype=torch.float32)
