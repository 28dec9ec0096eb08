"""Samples of any depth -> 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERCENTILES = (2.0, 98.0)


@dataclass(frozen=True)
class Stretch:
    """A linear map per band: `low` and all below becomes 0, `high` and all above 255.

    Attributes:
        low, high: [bands] float64.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def between_percentiles(
        cls, samples: np.ndarray, valid: np.ndarray, percentiles: tuple[float, float]
    ) -> Stretch:
        """Fitted to a sample of an image.

        Args:
            samples: [bands, H, W] of any real dtype.
            valid: [H, W] bool; the rest, and what is not finite, does not count.
            percentiles: (low, high), 0 to 100.
        """
        first, last = percentiles
        if not 0 <= first < last <= 100:
            raise ValueError(f"percentiles must rise from 0 to 100 at most, got {first}, {last}")
        ranges = []
        for band, counts in zip(samples, valid & np.isfinite(samples), strict=True):
            values = band[counts].astype(np.float64)
            low, high = np.percentile(values, percentiles) if values.size else (0.0, 1.0)
            if low == high and values.size:  # nearly all the same: what stands out sets the range
                low, high = values.min(), values.max()
            ranges.append((low, high if high > low else low + 1))
        return cls(*np.array(ranges).T)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """[bands, H, W] of any real dtype -> uint8. What is not finite becomes 0."""
        # 32 bits hold the exact value of samples of up to 24.
        dtype = np.float32 if samples.dtype.itemsize <= 2 else np.float64
        values = samples.astype(dtype)
        values -= self.low[:, None, None].astype(dtype)
        values *= (255 / (self.high - self.low))[:, None, None].astype(dtype)
        np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)
        values += 0.5
        return np.clip(values, 0, 255, out=values).astype(np.uint8)
