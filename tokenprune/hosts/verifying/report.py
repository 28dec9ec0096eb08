"""What a verification has shown."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

OK, FAILED, NOT_CHECKED = "ok", "failed", "not checked"


@dataclass(frozen=True)
class Check:
    """One thing that was to be shown.

    Attributes:
        name: "features", "keep all", "prompt", "positions", "generation" or "undo".
        status: "ok", "failed" or "not checked".
        difference: the largest between two logits that should be equal; None where there is none.
        tolerance: of it; 0 where every bit must be equal.
        detail: what was compared, or what went wrong.
    """

    name: str
    status: str
    difference: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """What held, of one model, method and input.

    Attributes:
        model: class and `model_type`.
        method: its name.
        keep_ratio: share of the visual tokens that was kept.
        dtype, attention: of the language model.
        transformers: the version.
        tokens_before, tokens_after: visual tokens of all images.
        checks: in order.
    """

    model: str
    method: str
    keep_ratio: float
    dtype: str
    attention: str
    transformers: str
    tokens_before: int
    tokens_after: int
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Everything was checked and everything held."""
        return all(check.status == OK for check in self.checks)

    @property
    def largest_difference(self) -> float:
        """Between the logits of the reduced model and of the whole one with tokens hidden.

        NaN where neither prompt nor generation came to be compared.
        """
        found = [
            check.difference
            for check in self.checks
            if check.name in ("prompt", "generation") and check.difference is not None
        ]
        return max(found, default=float("nan"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite are None."""
        report: dict[str, Any] = {
            "ok": self.ok,
            "largest_difference": finite(self.largest_difference),
            **dataclasses.asdict(self),
        }
        for check in report["checks"]:
            check |= {name: finite(check[name]) for name in ("difference", "tolerance")}
        return report

    def __str__(self) -> str:
        lines = [
            f"{self.method}, {self.tokens_before:,} -> {self.tokens_after:,} visual tokens in "
            f"{self.model}, {self.dtype}, {self.attention}, transformers {self.transformers}",
            f"{'check':<12} {'':<12} {'difference':>11} {'tolerance':>11}",
        ]
        for check in self.checks:
            numbers = [
                "-" if value is None else f"{value:.2g}"
                for value in (check.difference, check.tolerance)
            ]
            lines.append(
                f"{check.name:<12} {check.status:<12} {numbers[0]:>11} {numbers[1]:>11}  "
                f"{check.detail}"
            )
        lines.append("verified" if self.ok else "NOT VERIFIED")
        return "\n".join(lines)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
