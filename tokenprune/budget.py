"""How many tokens an image keeps, known from its size alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokenprune.ops.common.checks import check_int

PER = ("image", "frame")


@dataclass(frozen=True)
class Budget:
    """Exactly one of the two is set.

    Attributes:
        num_keep: tokens per image; an image of fewer keeps them all.
        keep_ratio: share of an image's tokens in (0, 1], rounded half up, at least one token.
        per: of videos, what it counts for: "image", the whole video, or "frame".
    """

    num_keep: int | None = None
    keep_ratio: float | None = None
    per: str = "image"

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ValueError(f"per must be 'image' or 'frame', got {self.per!r}")
        if (self.num_keep is None) == (self.keep_ratio is None):
            raise ValueError(
                "exactly one of num_keep and keep_ratio must be given, "
                f"got num_keep={self.num_keep}, keep_ratio={self.keep_ratio}"
            )
        if self.num_keep is not None:
            check_int("num_keep", self.num_keep, low=1)
            return
        ratio = self.keep_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            raise TypeError(f"keep_ratio must be a number, got {type(ratio).__name__}")
        if not 0 < ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {ratio}")

    @staticmethod
    def given(num_keep: int | None, keep_ratio: float | None) -> str:
        """What was given, for a message: "keep_ratio=0.25", or nothing."""
        both = {"num_keep": num_keep, "keep_ratio": keep_ratio}
        return ", ".join(f"{name}={value}" for name, value in both.items() if value is not None)

    def kept_of(self, num_tokens: int) -> int:
        """Tokens that an image of `num_tokens` keeps."""
        if self.num_keep is not None:
            return min(self.num_keep, num_tokens)
        assert self.keep_ratio is not None
        return min(num_tokens, max(1, math.floor(self.keep_ratio * num_tokens + 0.5)))


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Splits `total` in proportion to `sizes`, no part above its size (largest remainders)."""
    if total >= sum(sizes):
        return list(sizes)
    exact = [total * size / sum(sizes) for size in sizes]
    parts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
