"""The contract catches what breaks it, promise by promise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from tokenprune import LayerMethod, Method
from tokenprune.method import Cut
from tokenprune.selection import best, select_tokens
from tokenprune.testing import check_method


@dataclass(kw_only=True)
class First(Method):
    """Keeps the first tokens."""

    def _reduce(self, tokens, num_keep):
        scores = torch.zeros(tokens.features.shape[:2])
        return select_tokens(tokens, best(scores, num_keep), scores)


class TooFew(First):
    def _reduce(self, tokens, num_keep):
        return super()._reduce(tokens, max(num_keep - 1, 1))


class Descending(First):
    def _reduce(self, tokens, num_keep):
        result = super()._reduce(tokens, num_keep)
        return replace(
            result,
            keep_indices=result.keep_indices.flip(1),
            features=result.features.flip(1),
        )


class ByPlaceInTheBatch(First):
    def _reduce(self, tokens, num_keep):
        num_tokens = tokens.features.shape[1]
        scores = torch.zeros(tokens.features.shape[:2])
        for crop in range(len(scores)):
            scores[crop, crop % num_tokens :] = 1
        return select_tokens(tokens, best(scores, num_keep), scores)


class DrawnAnew(First):
    def _reduce(self, tokens, num_keep):
        scores = torch.rand(tokens.features.shape[1]).repeat(len(tokens.features), 1)
        return select_tokens(tokens, best(scores, num_keep), scores)


class OnlyFloat32(First):
    def _reduce(self, tokens, num_keep):
        result = super()._reduce(tokens, num_keep)
        return replace(result, features=result.features.float())


class Detached(First):
    def _reduce(self, tokens, num_keep):
        result = super()._reduce(tokens, num_keep)
        return replace(result, features=result.features.detach())


class Scaled(First):
    def _reduce(self, tokens, num_keep):
        result = super()._reduce(tokens, num_keep)
        return replace(result, features=2 * result.features)


class NotAlone(First):
    def _reduce(self, tokens, num_keep):
        if tokens.features.shape[1] == 1:
            raise IndexError("nothing to compare with")
        return super()._reduce(tokens, num_keep)


class FewerWhereAllAreEqual(First):
    def _reduce(self, tokens, num_keep):
        result = super()._reduce(tokens, num_keep)
        if num_keep > 1 and tokens.features.unique(dim=1).shape[1] == 1:
            return replace(result, keep_indices=torch.zeros_like(result.keep_indices))
        return result


class TakesAnything(First):
    def reduce(self, tokens, num_keep):
        return self._reduce(tokens, num_keep)


@dataclass(kw_only=True)
class Halves(LayerMethod):
    """Halves the tokens, and then takes the budget."""

    def cuts(self, num_layers):
        return [Cut(1, 0), Cut(2, 2)]

    def counts(self, num_tokens, num_keep, num_cuts):
        return [max(num_tokens // 2, num_keep), num_keep]


class CutsInTheFirstLayer(Halves):
    def cuts(self, num_layers):
        return [Cut(0, 0), Cut(2, 2)]


class CutsAfterTheLastLayer(Halves):
    def cuts(self, num_layers):
        return [Cut(1, 0), Cut(num_layers, 2)]


class RanksTooLate(Halves):
    def cuts(self, num_layers):
        return [Cut(1, 0), Cut(2, 3)]


class Overspends(Halves):
    def counts(self, num_tokens, num_keep, num_cuts):
        return [num_tokens // 2, num_keep]


class Halts(Halves):
    def counts(self, num_tokens, num_keep, num_cuts):
        return [max(num_tokens // 2, num_keep)] * 2


class MakesDo(Halves):
    def reduce(self, tokens, num_keep):
        return First().reduce(tokens, num_keep)


def test_a_sound_method_passes():
    check_method(First)
    check_method(First(strict=False), width=8)
    check_method(Halves)


@pytest.mark.parametrize(
    ("method", "promise"),
    [
        (TooFew, "exact count: features must be"),
        (Descending, "exact count: keep_indices must be unique and ascending"),
        (ByPlaceInTheBatch, "permutation of the batch: keeps other tokens"),
        (DrawnAnew, "permutation of the batch"),
        (OnlyFloat32, "every dtype: features must be"),
        (Detached, "gradients"),
        (Scaled, "a budget of N is the identity"),
        (NotAlone, "one token: nothing to compare with"),
        (FewerWhereAllAreEqual, "constant features: keep_indices must be unique"),
        (TakesAnything, "not finite: nan in features is not refused"),
        (CutsInTheFirstLayer, "cuts ascend within the layers: the first layer must see all"),
        (CutsAfterTheLastLayer, "cuts ascend within the layers: the last of 4 layers"),
        (RanksTooLate, "cuts ascend within the layers: .* is ranked by a layer after it"),
        (Overspends, "counts never grow: grow"),
        (Halts, "counts never grow: do not end in the budget"),
        (MakesDo, "tokens alone are refused"),
    ],
)
def test_a_broken_method_is_named(method, promise):
    with pytest.raises(AssertionError, match=f"^{method.__name__}, {promise}"):
        check_method(method)
