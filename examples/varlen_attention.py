"""Crops of unequal budgets, packed into one row, through an attention layer without padding.

    python examples/varlen_attention.py

Each crop keeps as many tokens as its detail deserves. The kept tokens lie packed, and `cu_seqlens`
says where each crop begins, as FlashAttention's varlen functions take it. On a GPU with the extra
`flash` they run; elsewhere PyTorch's attention, with a mask that the same bounds make.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tokenprune import ops

CROPS, TOKENS, WIDTH, HEADS = 6, 576, 256, 8
BUDGET = 600  # tokens of all crops together


def quotas(features: Tensor) -> Tensor:
    """[B, N, D] -> [B] int64, by how far tokens lie from their crop's mean; BUDGET in all."""
    detail = (features - features.mean(1, keepdim=True)).norm(dim=-1).mean(1)
    kept = (BUDGET * detail / detail.sum()).long().clamp(1, features.shape[1])
    kept[kept.argmin()] += BUDGET - kept.sum()
    return kept


def attend_packed(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[T, H, d] each -> [T, H, d], every crop within its bounds."""
    if query.is_cuda and find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        longest = int(cu_seqlens.diff().max())
        return flash_attn_varlen_func(query, key, value, cu_seqlens, cu_seqlens, longest, longest)
    slots = torch.arange(len(query), device=query.device)
    crop = torch.bucketize(slots, cu_seqlens[1:], right=True)
    seen = crop[:, None] == crop
    heads = (part.transpose(0, 1)[None] for part in (query, key, value))
    return scaled_dot_product_attention(*heads, attn_mask=seen)[0].transpose(0, 1)


def attend_crop_by_crop(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
    lengths = cu_seqlens.diff().tolist()
    crops = zip(*(part.split(lengths) for part in (query, key, value)), strict=True)
    return torch.cat(
        [
            scaled_dot_product_attention(*(part.transpose(0, 1) for part in crop)).transpose(0, 1)
            for crop in crops
        ]
    )


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    detail = torch.linspace(0.2, 2.0, CROPS)[:, None, None]
    features = (torch.randn(CROPS, TOKENS, WIDTH) * detail).to(device, dtype)

    kept = ops.max_min_select(features, quotas(features.float()))
    assert kept.cu_seqlens is not None
    counts = kept.cu_seqlens.diff().tolist()
    print(f"tokens kept of {TOKENS}: {counts}, packed {list(kept.features.shape)}")

    projection = nn.Linear(WIDTH, 3 * WIDTH, device=device, dtype=dtype)
    parts = projection(kept.features).unflatten(1, (3, HEADS, -1)).unbind(1)
    packed = attend_packed(*parts, kept.cu_seqlens)
    alone = attend_crop_by_crop(*parts, kept.cu_seqlens)
    difference = float((packed - alone).abs().max())
    print(f"packed against crop by crop: largest difference {difference:.2g}")


if __name__ == "__main__":
    main()
