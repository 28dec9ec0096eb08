"""Logits and modules side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def largest(one: Tensor | None, other: Tensor | None) -> float:
    """The largest difference; infinite where shapes differ or one is not a number."""
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    worst = 0.0
    # A few rows at a time: in float64 the logits of a long prompt would be gigabytes.
    parts = (side.flatten(0, -2).split(64) for side in (one, other.to(one.device)))
    for mine, theirs in zip(*parts, strict=True):
        if mine.numel():
            difference = float((mine.double() - theirs.double()).abs().max())
            worst = float("inf") if difference != difference else max(worst, difference)
    return worst


def farthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(largest(one, other) for one, other in zip(some, others, strict=True))


@contextmanager
def restored(owner: Any, names: Iterable[str]) -> Iterator[None]:
    """Attributes that the whole model's own forwards change are put back in the end."""
    former = {name: owner.__dict__[name] for name in names if name in owner.__dict__}
    try:
        yield
    finally:
        owner.__dict__.update(former)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """For as long as it lasts, an attribute of this one instance is another."""
    former = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if former is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = former


def attributes(model: Any, restored: Iterable[str] = ()) -> dict[str, Any]:
    """What must be the same in the end, by name: attributes of all modules, and the configuration.

    Of hooks their number; tensors are what the bits of the logits show.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            known = not isinstance(value, (dict, list, Tensor)) and key not in restored
            found[f"{name}.{key}".lstrip(".")] = (
                len(value) if key.endswith("_hooks") else Same(value) if known else None
            )
    for key in ("config", "generation_config"):
        if hasattr(getattr(model, key, None), "to_dict"):
            found[f"the {key}"] = getattr(model, key).to_dict()
    return found


@dataclass(frozen=True, eq=False)
class Same:
    """Equal to what holds the very same object, or an equal plain value."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return False
        plain = isinstance(self.value, (int, float, str, tuple, torch.dtype, torch.device))
        return self.value is other.value or (plain and bool(self.value == other.value))
