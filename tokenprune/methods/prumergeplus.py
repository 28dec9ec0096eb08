"""PruMerge+: attended tokens, others at equal steps, and what resembles them (arXiv 2403.15388)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.methods.prumerge import PruMerge
from tokenprune.selection import others

ATTENDED = 1 / 4  # of the budget: the official steps bring three tokens for each attended one


@dataclass(kw_only=True)
class PruMergePlus(PruMerge):
    r"""Keeps tokens of high attention and tokens at equal steps, and merges the others into them.

    As `prumerge`, with tokens spread over the image beside the attended ones (section 3.4). The
    official code decides the number by the data: `PruMergePlus(official=True)`. By default the
    budget holds, a quarter of it for attended tokens.

    Attributes:
        compared, neighbors, keep_rest, official: as of `prumerge`.
        ratio: the official share of attended tokens where it is fixed; else None. Steps follow as
            under `adaptive`.
        adaptive: tokens of outlying attention, and others at the official steps, as long as they
            are no more than the budget. Slots then lie packed.

    Formula:
        With $T = \operatorname{top}_{K_a}(a)$ by attention, $K_a = \max(1, \lfloor K / 4 \rfloor)$,
        and $\rho_0 < \rho_1 < \ldots$ the other tokens in raster order,

        $$S = T \cup \left\{\rho_{\lfloor k (N - K_a) / (K - K_a) \rfloor} : 0 \le k < K - K_a
        \right\}.$$

        Under `adaptive` $T$ holds the outliers, a share $r$ of all tokens, or $r$ = `ratio`, and
        $S$ adds $\{0, s, 2s, \ldots\}$ below $N - 1$ with
        $s = \max(1, \lfloor \lfloor 1 / r \rfloor / 3 \rfloor)$. Merging is that of `prumerge`.

    Cost:
        As `prumerge` with the same number of tokens.

    Fails when:
        - attention sinks: a quarter of the budget goes where `fastervlm` spends all.
        - things are smaller than a step and not attended to: they are averaged into what is kept.
        - `adaptive` finds many outliers: steps get short, and most tokens stay.

    Faithful:
        With `official=True` kept tokens equal the recorded ones and merged rows agree to 1e-4 in
        one case (`tests/tokenprune/test_replay.py`); LLaVA as for `prumerge`
        (`tests/tokenprune/test_before_projector.py`). The official code is written for 576 tokens;
        here the steps end at $N - 1$ for any N.
    """

    ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")
        if not self.adaptive and self.ratio is None:
            self.declare(faithful="variant")

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return super().count(num_tokens, num_keep) if self.ratio is None else None

    def _shares(self, attention: Tensor) -> list[float]:
        return super()._shares(attention) if self.ratio is None else [self.ratio] * len(attention)

    def _kept(self, attention: Tensor, num_keep: int) -> Tensor:
        attended = super()._kept(attention, max(1, int(num_keep * ATTENDED)))
        left = num_keep - attended.shape[1]
        if not left:
            return attended
        rest = others(attended, attention.shape[1])
        places = torch.arange(left, device=attention.device) * rest.shape[1] // left
        return torch.cat([attended, rest[:, places]], 1)

    def _kept_by_share(self, attention: Tensor, share: float, num_keep: int) -> Tensor:
        num_tokens = attention.shape[1]
        attended = super()._kept_by_share(attention, share, num_tokens)
        step = max(1, int(1 / share) // 3) if share else num_tokens
        spread = torch.arange(0, max(num_tokens - 1, 1), step, device=attention.device)
        added = spread[~torch.isin(spread, attended)]
        kept = torch.cat([attended, added[None]], 1)
        return kept if kept.shape[1] <= num_keep else self._kept(attention, num_keep)
