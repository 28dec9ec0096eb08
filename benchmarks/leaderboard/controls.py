"""What no method is in: a smaller picture, no picture, and the answer that is most common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.leaderboard.composite import Question
from tokenprune import Method, ReducedTokens, VisionTokens

# Of the library's methods those that look at nothing but places.
PLAIN = ("downsample", "random", "spatial_pool", "uniform")
SMALLER, BLIND, WHOLE, MAJORITY = "smaller image", "blind", "all tokens", "majority answer"


def smaller_side(num_keep: int) -> int:
    """The side of the largest square of tokens within a budget."""
    return isqrt(num_keep)


def places_of(side: int, smaller: int) -> Tensor:
    """[smaller * smaller] int64, ascending: the token of a grid in which each smaller one's center
    lies.
    """
    line = ((torch.arange(smaller) + 0.5) * side / smaller).long()
    return (line[:, None] * side + line).flatten()


@dataclass(kw_only=True)
class SmallerImage(Method):
    """The picture goes through the tower at fewer pixels; its tokens stand where they look.

    Attributes:
        features: [pictures, smaller * smaller, D'], of the tower.
        shown, project: as of `recorded.Replayed`.
    """

    features: Tensor
    shown: Callable[[], Tensor]
    project: Callable[[Tensor], Tensor]
    uses_grid: ClassVar[bool] = True
    faithful: ClassVar[str | None] = "control"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        smaller = smaller_side(num_keep)
        if smaller * smaller != self.features.shape[1]:
            raise ValueError(f"num_keep must be {self.features.shape[1]}, got {num_keep}")
        places = places_of(tokens.grid_size[0], smaller)
        keep_indices = places.repeat(len(tokens.features), 1)
        return ReducedTokens(
            features=self.project(self.features[self.shown()]).to(tokens.features),
            keep_indices=keep_indices,
            valid=torch.ones_like(keep_indices, dtype=torch.bool),
            assignment=torch.arange(tokens.features.shape[1]).repeat(len(keep_indices), 1),
            scores=torch.zeros(keep_indices.shape),
            grid_size=tokens.grid_size,
        )


def majority(questions: Sequence[Question]) -> Callable[[str], str]:
    """What answers a question by the most common answer to its very words, else to its kind."""
    by_text: dict[str, Counter[str]] = {}
    by_start: dict[str, Counter[str]] = {}
    for question in questions:
        by_text.setdefault(question.text, Counter())[question.answer] += 1
        by_start.setdefault(start_of(question.text), Counter())[question.answer] += 1

    def answer(text: str) -> str:
        return by_text.get(text, by_start[start_of(text)]).most_common(1)[0][0]

    return answer


def start_of(text: str) -> str:
    return " ".join(text.split()[:2])
