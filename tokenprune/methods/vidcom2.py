"""VidCom2: what is unlike the video and its frame, more of such frames (arXiv 2505.14454)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # variances of the Gaussians that are summed
TEMPERATURE = 0.01


@dataclass(kw_only=True)
class VidCom2(Method):
    r"""Keeps the tokens least like the means of the video and of their frame.

    Video Compression Commander (section 4). Frames that differ from the whole video keep a larger
    share. It works on videos alone; images in the same prompt stay whole.

    Attributes:
        ratio: the official retention ratio in (0, 1], by which each frame rounds its own number;
            the budget is then a limit, and slots lie packed. None takes the ratio of the budget,
            which is kept exactly.

    Raises:
        ValueError: `ratio` out of range.

    Formula:
        Of each token, the half of its channels with the lowest variance over the video, scaled to
        length one, is $u_{t,i}$, of F frames and P places. With
        $g(u, m) = \sum_a \exp(-\lVert u - m \rVert^2 / 2a)$, $a = 2^{-3}, \ldots, 2^1$,

        $$v_{t,i} = g\left(u_{t,i}, \frac{1}{F P} \sum u\right), \qquad
        f_{t,i} = g\left(u_{t,i}, \frac{1}{P} \sum_j u_{t,j}\right),$$

        $$p_t = \operatorname{softmax}_t\left(-\frac{1}{0.01 P} \sum_i v_{t,i}\right), \qquad
        \beta_t = \min\left(1,\; r\,(1 + p_t - \tfrac{1}{F})\right),$$

        and frame $t$ keeps the tokens of lowest $v + f$: round($\beta_t P$) of them with $r$ =
        `ratio`. Else $r = K / N$, and the K lowest $(k + \frac12) / \beta_t$ stay, $k$ counting a
        frame's tokens from the lowest: shares rounded so that they add up to K. `scores` holds
        $-(v + f)$.

    Cost:
        $5 N D$ for the similarities and sorts of N. Memory: $N D / 2$ for the unit vectors.

    Fails when:
        - what is asked for fills the video: what is like the mean goes first.
        - frames are unlike the video by noise alone, as in the dark: they get the larger share.
        - the informative channels are those that vary most: they are not looked at.

    Faithful:
        With `ratio` kept tokens and shares equal those recorded from the official code, in its form
        for Qwen2.5-VL, in two cases (`tests/tokenprune/test_replay.py`). Without it the numbers of
        tokens are rounded to the budget.
    """

    over_time: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2505.14454"
    faithful: ClassVar[str | None] = "faithful to xuyang-liu16/VidCom2@944a17d"
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return num_keep if self.ratio is None else None

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        to_video, to_frame = similarities(tokens)
        likeness = to_video + to_frame
        ratio = num_keep / tokens.features.shape[1] if self.ratio is None else self.ratio
        wanted = frame_shares(to_video, ratio)[:, :, None] * likeness.shape[2]  # [B, F, 1]
        order = likeness.argsort(dim=2, stable=True).argsort(dim=2)
        priority = (-(order + 0.5) / wanted).flatten(1)
        scores = -likeness.flatten(1)
        if self.ratio is None:
            return select_tokens(tokens, best(priority, num_keep), scores)
        counts = wanted.round().sum((1, 2)).clamp(max=num_keep).int().tolist() or [num_keep]
        one_by_one = [slice(number, number + 1) for number in range(len(counts))]
        return ReducedTokens.pack(
            [
                select_tokens(tokens.crop(crop.start), best(priority[crop], count), scores[crop])
                for crop, count in zip(one_by_one, counts, strict=True)
            ]
        )


def similarities(tokens: VisionTokens) -> tuple[Tensor, Tensor]:
    """[B, F, P] each: how like the mean of the video a token is, and how like its frame's."""
    features = tokens.features.detach().to(wide_dtype(tokens.features.dtype))
    variance = (features - features.mean(1, keepdim=True)).square().mean(1)
    steady = best(-variance, max(features.shape[2] // 2, 1))  # channels
    units = functional.normalize(rows(features.mT, steady).mT, dim=2)
    units = units.unflatten(1, (tokens.frames, -1))

    def likeness(mean: Tensor) -> Tensor:
        squares = (units - mean).square().sum(3)
        return torch.stack([(-squares / (2 * width)).exp() for width in WIDTHS]).sum(0)

    return likeness(units.mean((1, 2), keepdim=True)), likeness(units.mean(2, keepdim=True))


def frame_shares(to_video: Tensor, ratio: float) -> Tensor:
    """[B, F, P] likeness -> [B, F], the share of each frame's tokens that stays, at most 1."""
    weight = (-to_video.mean(2) / TEMPERATURE).softmax(1)
    return (ratio * (1 + weight - weight.mean(1, keepdim=True))).clamp(max=1)
