"""What methods read of the tower, recorded once through `tokenprune.apply` and replayed after.

A recording is made by a method that needs everything; so what is recorded is what a host hands
over, read by the host's own hooks and not by code of this benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Model

import tokenprune
from benchmarks.leaderboard.host import IMAGE, build_host
from tokenprune import Method, ReducedTokens, VisionTokens, get_method

NEEDS = ("cls", "attention", "cls_logits", "received", "hidden_states")
RECEIVED, STATES = (8, -2), tuple(range(-9, 0))  # the tower layers that methods name by default
BATCH = 16


@dataclass(kw_only=True)
class Recording(Method):
    """Keeps what it is handed, and the first tokens."""

    needs: ClassVar[tuple[str, ...]] = NEEDS
    tower_layers: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "received": RECEIVED,
        "hidden_states": STATES,
    }

    def __post_init__(self) -> None:
        self.seen: list[VisionTokens] = []

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        self.seen.append(tokens)
        return get_method("uniform").reduce(tokens, num_keep)


def record(tower: Dinov2Model, pixels: Tensor, side: int) -> VisionTokens:
    """What the tower makes of [B, 3, H, W]: features and class tokens as they leave it, no
    projector between.
    """
    host = build_host(side, seed=0, hidden=tower.config.hidden_size, layers=1)
    host.model.vision_tower = tower
    host.model.multi_modal_projector = nn.Identity()
    method = Recording()
    input_ids = torch.full((1, side * side), IMAGE)
    with tokenprune.apply(host, method, num_keep=1), torch.inference_mode():
        for part in pixels.split(BATCH):
            batch = input_ids.expand(len(part), -1)
            host(input_ids=batch, attention_mask=torch.ones_like(batch), pixel_values=part)
    parts = [one.tensors() for one in method.seen]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return method.seen[0].with_tensors(joined)


def recorded(path: Path, side: int, make: Callable[[], VisionTokens]) -> VisionTokens:
    """What lies at `path`, made where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        tensors = make().tensors()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(path)
    return from_tensors(load_file(path), side)


def from_tensors(tensors: Mapping[str, Tensor], side: int) -> VisionTokens:
    """Those of `VisionTokens.tensors`."""
    fields: dict[str, Any] = {}
    for name, tensor in tensors.items():
        field, _, layer = name.rstrip("]").partition("[")
        if layer:
            fields.setdefault(field, {})[int(layer)] = tensor
        else:
            fields[field] = tensor
    return VisionTokens(grid_size=(side, side), **fields)


def chosen(tokens: VisionTokens, numbers: Tensor) -> VisionTokens:
    """The crops of these numbers."""
    return tokens.with_tensors({name: value[numbers] for name, value in tokens.tensors().items()})


def why_not(method: Method) -> str | None:
    """Why a recording does not serve a method that works on vision tokens, None where it does."""
    if method.over_time:
        return "compares the frames of videos; here are pictures"
    if method.by_crop:
        return "shares a budget over the crops of an image; here an image is one crop"
    if missing := [name for name in method.needs if name not in (*NEEDS, "text", "layers")]:
        return f"needs {', '.join(missing)}, which is not recorded"
    for name, layers in (("received", RECEIVED), ("hidden_states", STATES)):
        if name in method.needs and not set(method.tower_layers.get(name, ())) <= set(layers):
            named = list(method.tower_layers[name])
            return f"needs {name} of the tower's layers {named}, {list(layers)} are recorded"
    return None


@dataclass(kw_only=True)
class Replayed(Method):
    """A method that is handed recorded values of the tower beside what a host hands it.

    Attributes:
        inner: the method.
        tokens: of all pictures.
        shown: gives the numbers [B] of the pictures that the host shows.
        project: [B, D'] -> [B, D], the host's projector, for class tokens.
    """

    inner: Method
    tokens: VisionTokens
    shown: Callable[[], Tensor]
    project: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        inner = self.inner
        if (reason := why_not(inner)) is not None:
            raise NotImplementedError(f"{type(inner).__name__} {reason}")
        self.declare(
            needs=tuple(name for name in inner.needs if name == "text"),
            query_agnostic=inner.query_agnostic,
            merges=inner.merges,
            uses_grid=inner.uses_grid,
            renumbers=inner.renumbers,
        )

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return self.inner.count(num_tokens, num_keep)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        numbers = self.shown()
        if len(numbers) != len(tokens.features):
            raise RuntimeError(
                f"{len(numbers)} pictures were shown, features of {len(tokens.features)} came"
            )
        names = [name for name in self.inner.needs if name != "text"]
        given = {name: getattr(chosen(self.tokens, numbers), name) for name in names}
        if "cls" in given:
            given["cls"] = self.project(given["cls"])
        return self.inner.reduce(replace(tokens, **given), num_keep)
