"""The contract catches what breaks it, promise by promise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from tokenprune import LayerMethod, Method, ReducedTokens
from tokenprune.method import Cut
from tokenprune.selection import best, select_tokens
from tokenprune.testing import check_method
from tokenprune.tokens import cu_seqlens_of


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


class LooksAtColumns(First):
    def _reduce(self, tokens, num_keep):
        num_tokens = tokens.features.shape[1]
        scores = torch.arange(num_tokens).float() % tokens.grid_size[1]
        scores = scores.repeat(len(tokens.features), 1)
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


class WithAMean(First):
    """Adds the mean of all tokens."""

    def count(self, num_tokens, num_keep):
        return num_keep + 1

    def _reduce(self, tokens, num_keep):
        extra = tokens.features.mean(1, keepdim=True)
        return replace(super()._reduce(tokens, num_keep), extra=extra)


class ForgetsItsMean(WithAMean):
    def count(self, num_tokens, num_keep):
        return num_keep


class ExtraOfAnotherWidth(WithAMean):
    def _reduce(self, tokens, num_keep):
        result = super()._reduce(tokens, num_keep)
        return replace(result, extra=result.extra[..., :3])


class KeysOfNoLayer(First):
    needs = ("keys",)


class KeysOfTwoLayers(KeysOfNoLayer):
    tower_layers: ClassVar = {"keys": (-1, -2)}


class NeedsDepth(First):
    needs = ("depth",)


class ByDeeperLayers(First):
    needs = ("hidden_states",)
    tower_layers: ClassVar = {"hidden_states": (3, -1)}

    def _reduce(self, tokens, num_keep):
        scores = tokens.hidden_states[3].norm(dim=2).float() + tokens.hidden_states[-1][..., 0]
        return select_tokens(tokens, best(scores.float(), num_keep), scores)


class AsManyAsStandOut(First):
    """Keeps the tokens whose norm is above the mean: each crop has a number of its own."""

    def count(self, num_tokens, num_keep):
        return None

    def _reduce(self, tokens, num_keep):
        norms = tokens.features.norm(dim=2).float()
        crops, kept = (norms >= norms.mean(1, keepdim=True)).nonzero(as_tuple=True)
        per_crop = crops.bincount(minlength=len(norms))
        return ReducedTokens(
            features=tokens.features[crops, kept],
            keep_indices=kept,
            valid=torch.ones_like(kept, dtype=torch.bool),
            assignment=torch.arange(norms.shape[1]).repeat(len(norms), 1),
            scores=norms[crops, kept],
            grid_size=tokens.grid_size,
            cu_seqlens=cu_seqlens_of(per_crop),
        )


class UnknownCountNotPacked(First):
    def count(self, num_tokens, num_keep):
        return None


def test_a_sound_method_passes():
    check_method(WithAMean)
    check_method(ByDeeperLayers)
    check_method(AsManyAsStandOut)
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
        (LooksAtColumns, "grid as declared: .* or uses_grid declared"),
        (NotAlone, "one token: nothing to compare with"),
        (FewerWhereAllAreEqual, "constant features: keep_indices must be unique"),
        (TakesAnything, "not finite: nan in features is not refused"),
        (CutsInTheFirstLayer, "cuts ascend within the layers: the first layer must see all"),
        (CutsAfterTheLastLayer, "cuts ascend within the layers: the last of 4 layers"),
        (RanksTooLate, "cuts ascend within the layers: .* is ranked by a layer after it"),
        (Overspends, "counts never grow: grow"),
        (Halts, "counts never grow: do not end in the budget"),
        (MakesDo, "tokens alone are refused"),
        (ForgetsItsMean, "count is known beforehand: says 1 rows for 1 of 30, gives 2"),
        (ExtraOfAnotherWidth, "exact count: extra must be"),
        (KeysOfNoLayer, r"declarations: tower_layers must name \['keys'\], got \[\]"),
        (KeysOfTwoLayers, "declarations: keys must be of one tower layer"),
        (NeedsDepth, "declarations: needs must be of cls, .* got depth"),
        (UnknownCountNotPacked, "count is known beforehand: cu_seqlens must be given"),
    ],
)
def test_a_broken_method_is_named(method, promise):
    with pytest.raises(AssertionError, match=f"^{method.__name__}, {promise}"):
        check_method(method)
