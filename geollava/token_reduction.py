"""Vision tokens -> kept tokens. The only file that knows how tokens are reduced."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from geollava.configuration import GeoLlavaConfig
from geollava.sharding import whole
from tokenprune import ReducedTokens, VisionTokens, get_method

__all__ = ["AffinityHead", "ReducedTokens", "reduce_tokens"]


class AffinityHead(nn.Module):
    """The two convolutions that say which neighbor a token leans towards; see `reduce_tokens`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pw = nn.Conv2d(width, 9, 1)


def reduce_tokens(
    hidden_states: Tensor, head: AffinityHead, anchor: Any, config: GeoLlavaConfig
) -> ReducedTokens:
    """Background Token Pruning, then Anchored Token Selection (arXiv 2505.21375, section 3.2).

    Args:
        hidden_states: [B, 1 + N, D], the class token first.
        head: the affinity head.
        anchor: an attention module with `q_proj` and `v_proj`; as in the released model the keys
            are projected by `v_proj`.
        config: `num_keep`, `strict` and what begins with `merge_` count here.
    """
    method = get_method(
        "background_anchored",
        dw_weight=head.dw.weight,
        pw_weight=head.pw.weight,
        pw_bias=head.pw.bias,
        q_weight=whole(anchor.q_proj.weight),
        q_bias=whole(anchor.q_proj.bias),
        k_weight=whole(anchor.v_proj.weight),
        k_bias=whole(anchor.v_proj.bias),
        max_iters=config.merge_max_iters,
        cycles=config.merge_cycles,
        assignment=config.merge_assignment,
        temperature=config.merge_temperature,
        strict=config.strict,
    )
    tokens = VisionTokens(hidden_states[:, 1:], config.grid_size, cls=hidden_states[:, 0])
    return method.reduce(tokens, config.num_keep)
