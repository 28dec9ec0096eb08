"""The board of features: what of labeled trees and buildings each method keeps of real tiles."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.leaderboard.controls import BLIND, SMALLER
from benchmarks.leaderboard.fetch import CACHE
from benchmarks.leaderboard.recorded import record, recorded, why_not
from benchmarks.leaderboard.rows import Row, new_row
from benchmarks.leaderboard.tiles import Tile, labeled_tiles
from benchmarks.leaderboard.tower import load_tower, pixels_of, weights_hash
from tokenprune import ReducedTokens, VisionTokens, get_method
from tokenprune.budget import Budget

SIDE = 16
POOLED = ("downsample", "spatial_pool")  # every token goes into a mean, none is kept as it is
HOST = f"the tower alone, {SIDE} x {SIDE} tokens a tile"


@dataclass
class FeaturesBoard:
    """Tiles, and what the tower makes of them.

    Attributes:
        folder: of recordings.
    """

    folder: Path = CACHE / "tiles"
    side: int = SIDE

    @cached_property
    def tiles(self) -> list[Tile]:
        return labeled_tiles()

    @cached_property
    def tokens(self) -> VisionTokens:
        """The tiles' tokens, recorded once."""
        return recorded(self.folder / f"{self.side}.safetensors", self.side, self._record)

    def _record(self) -> VisionTokens:
        pixels = pixels_of([tile.image for tile in self.tiles], self.side)
        return record(load_tower(self.side), pixels, self.side)

    @cached_property
    def objects(self) -> list[Tensor]:
        """Of each tile [objects, N] bool."""
        return [tile.objects(self.side) for tile in self.tiles]

    @cached_property
    def data(self) -> str:
        digest = hashlib.sha256()
        for tile in self.tiles:
            digest.update(tile.image.tobytes())
            digest.update(repr((tile.label, tile.boxes)).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def weights(self) -> str:
        return weights_hash(load_tower(self.side))

    def row(self, name: str, budget: float | None) -> Row:
        """Measures a method or a control at one budget; None gives the row of one that is refused.

        Raises:
            ValueError: a budget for a method that is refused, or none for one that is not.
        """
        reason = self.refusal(name)
        if (reason is None) != (budget is not None):
            raise ValueError(f"{name} must {'have a' if reason is None else 'not have a'} budget")
        about: dict[str, Any] = {
            "seed": None,
            "host": HOST,
            "data": self.data,
            "weights": self.weights,
            "refused": reason,
        }
        if budget is None:
            return new_row(name, None, **about)
        num_keep = Budget(None, budget, "image").kept_of(self.side**2)
        tiles, _ = self.tiles, self.tokens
        started = time.process_time()
        rows, kept = self.reduced(name, num_keep)
        seconds = (time.process_time() - started) / len(tiles)
        return new_row(
            name,
            budget,
            num_keep=rows[0].shape[0],
            per_image=self.per_image(rows, None if name in POOLED else kept),
            cpu_seconds=round(seconds, 5),
            **about,
        )

    def refusal(self, name: str) -> str | None:
        """Why a method cannot run on tiles alone, None where it can."""
        if name == BLIND:
            return None
        if name == SMALLER:
            return "gives features of another scale, no part of those that methods reduce"
        try:
            method = get_method(name)
        except ValueError as error:
            return str(error)
        if method.in_layers:
            return "ranks tokens in a language model's layers; here is none"
        if "text" in method.needs:
            return "ranks tokens by a question; here is none"
        return why_not(method)

    def reduced(self, name: str, num_keep: int) -> tuple[list[Tensor], list[Tensor]]:
        """Of each tile the rows [K, D] that remain, and the places [K'] of the kept tokens."""
        if name == BLIND:
            rows = list(self.tokens.features.mean(1, keepdim=True))
            return rows, [torch.zeros(0, dtype=torch.int64)] * len(rows)
        crops = get_method(name).reduce(self.tokens, num_keep).unpacked()
        return (
            [crop.rows[0][valid_rows(crop)] for crop in crops],
            [crop.keep_indices[0][crop.valid[0]] for crop in crops],
        )

    def per_image(
        self, rows: list[Tensor], kept: list[Tensor] | None
    ) -> dict[str, list[list[float]]]:
        """By score the pairs of each tile; no share of objects where `kept` is None."""
        scores: dict[str, list[list[float]]] = {}
        for number, tile in enumerate(self.tiles):
            features, objects = self.tokens.features[number], self.objects[number]
            if kept is not None:
                hit = objects[:, kept[number]].any(1)
                scores.setdefault(f"{tile.label}s", []).append([int(hit.sum()), len(hit)])
            distance = torch.cdist(features, rows[number]).square().amin(1)
            spread = (features - features.mean(0)).square().sum(1)
            labeled = objects.any(0)
            for score, of in (("error", slice(None)), ("labeled_error", labeled)):
                pair = [distance[of].sum().item(), spread[of].sum().item()]
                scores.setdefault(score, []).append([float(f"{value:.5g}") for value in pair])
        return scores


def valid_rows(result: ReducedTokens) -> Tensor:
    """[K + E] bool of the first crop: rows that hold something."""
    extra = 0 if result.extra is None else result.extra.shape[1]
    return torch.cat([result.valid[0], torch.ones(extra, dtype=torch.bool)])
