"""Recorded cases of published methods, run through this library's methods.

    python -m tests.tokenprune.replay FILE...

A file holds what a method's official code was given (`in.*`) and what it made of it (`out.*`). Each
line says whether the library's method, by its public interface, makes the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-4  # relative, of merged features


@dataclass(frozen=True)
class Recorded:
    """A recorded case.

    Attributes:
        name: of the file.
        method: the form's name, as the recording calls it.
        options: of the official code.
        tensors: "in.*" and "out.*", one crop each.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @staticmethod
    def read(path: Path) -> Recorded:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = file.metadata()
        return Recorded(path.stem, about["method"], json.loads(about["options"]), tensors)

    def given(self, name: str) -> Tensor:
        return self.tensors[f"in.{name}"]

    def official(self, name: str) -> Tensor:
        return self.tensors[f"out.{name}"]


# (what is compared, what the library makes, what was recorded)
Compared = tuple[str, Tensor, Tensor]
Form = Callable[[Recorded], Iterator[Compared]]


def difference(ours: Tensor, theirs: Tensor) -> str | None:
    """How two tensors differ, or None: indices must be equal, numbers within `TOLERANCE`."""
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)} for {list(theirs.shape)}"
    if not theirs.numel():
        return None
    if not theirs.is_floating_point():
        same = int((ours == theirs).sum())
        if ours.ndim == 1:
            same = int(torch.isin(ours, theirs).sum())
        return None if torch.equal(ours, theirs.to(ours)) else f"{same} of {theirs.numel()}"
    scale = float(theirs.abs().max().clamp(min=1e-12))
    error = float((ours - theirs).abs().max()) / scale
    return None if error <= TOLERANCE else f"error {error:.2g}"


def verdict(recorded: Recorded, form: Form) -> str:
    """ "equal", or "differs, ..."."""
    found = [
        f"{what} {how}"
        for what, ours, theirs in form(recorded)
        if (how := difference(ours, theirs)) is not None
    ]
    return f"differs, {', '.join(found)}" if found else "equal"
