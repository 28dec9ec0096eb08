"""EVS: what of a video has changed since the frame before (arXiv 2510.14624)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class EVS(Method):
    r"""Keeps the first frame, and the tokens that differ most from their place one frame earlier.

    Efficient Video Sampling (section 3). It works on videos alone; images in the same prompt stay
    whole.

    Formula:
        With $x_{t,i}$ the token at place $i$ of frame $t$,

        $$s_{t,i} = 1 - \cos(x_{t,i},\, x_{t-1,i}), \qquad s_{1,i} = \infty,$$

        the $K$ tokens of highest $s$ stay, the lowest index among equals. `scores` holds $s$.

    Cost:
        $N D$ products and a sort of $N$ numbers. Memory: $N D$ for the unit vectors.

    Fails when:
        - the camera moves: every place changes, so what is kept is everywhere and nothing.
        - something appears slowly: each step is small, and its place is dropped in every frame.
        - the budget is below one frame: then only the top of the first frame stays.
        - one frame matters among many that flicker: noise counts as change.

    Faithful:
        The official code keeps at least the whole first frame, and floors the count; the budget
        given here is kept exactly. At the official count the kept tokens equal those recorded in
        three cases (`tests/tokenprune/test_golden_kept.py::test_evs_as_published`), which were
        written down from a reading of the code.
    """

    over_time: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2510.14624"
    faithful: ClassVar[str | None] = "faithful to vllm-project/vllm@094f117"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        features = tokens.features.to(wide_dtype(tokens.features.dtype))
        units = functional.normalize(features, dim=2).unflatten(1, (tokens.frames, -1))
        change = 1 - (units[:, 1:] * units[:, :-1]).sum(3)  # [B, frames - 1, places]
        first = torch.full_like(units[:, :1, :, 0], torch.inf)
        scores = torch.cat([first, change], 1).flatten(1)
        return select_tokens(tokens, best(scores, num_keep), scores)
