"""Bootstrap intervals by image, and what they allow to be claimed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95

# Of each image what was reached, and of how much: [right, asked], [kept, labeled].
PerImage = Sequence[Sequence[float]]


@cache
def resampled(images: int) -> Any:
    """[RESAMPLES, images] int64: how often each image is drawn; the same for all rows."""
    random = np.random.default_rng(SEED)
    drawn = random.integers(images, size=(RESAMPLES, images))
    counts = np.zeros((RESAMPLES, images), dtype=np.int64)
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1)
    return counts


def score_of(per_image: PerImage) -> dict[str, Any]:
    """The share reached of all images together, and its percentile interval.

    Returns:
        `value` and `interval` [low, high], shares rounded to 1e-4.

    Raises:
        ValueError: no image, or nothing that could be reached.
    """
    pairs = np.asarray(per_image, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not pairs[:, 1].sum() > 0:
        raise ValueError(f"per_image must be pairs with a positive sum, got {pairs.shape}")
    reached, possible = (resampled(len(pairs)) @ pairs).T
    shares = reached[possible > 0] / possible[possible > 0]
    low, high = np.quantile(shares, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    value = pairs[:, 0].sum() / pairs[:, 1].sum()
    return {
        "value": round(float(value), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def pooled(of_seeds: Sequence[PerImage]) -> list[list[float]]:
    """One pair for each image, summed over seeds: images are drawn, seeds stay together."""
    return np.asarray(of_seeds, dtype=np.float64).sum(0).tolist()


def beats(one: dict[str, Any], other: dict[str, Any], *, less: bool = False) -> bool:
    """Whether one interval lies wholly above the other, or below it where `less` is better."""
    if less:
        return bool(one["interval"][1] < other["interval"][0])
    return bool(one["interval"][0] > other["interval"][1])
