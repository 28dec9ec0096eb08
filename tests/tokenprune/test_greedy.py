"""Greedy selections against their formulas written out in float64, token by token."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch.nn import functional

from tokenprune import ops
from tokenprune.ops.common.cosine import cosine_matrix

# Between the best two ranks: less, and either may be chosen. Two tokens that are each other's
# nearest, or that cover each other alone, have one rank.
NO_TIE = {torch.float64: 1e-10, torch.float32: 1e-5}


def max_min_ranks(cosines, weights, kept, options):
    """The distance of each token to the nearest kept one, to any other at first."""
    tokens = range(len(cosines))
    return [
        min([1 - row[other] for other in (kept or tokens) if other != token], default=0.0)
        for token, row in enumerate(cosines)
    ]


def dpp_ranks(cosines, weights, kept, options):
    """What each token multiplies the determinant by."""
    kernel = torch.tensor(cosines, dtype=torch.float64) * torch.outer(weights, weights)

    def det(tokens):
        return float(torch.linalg.det(kernel[tokens][:, tokens])) if tokens else 1.0

    return [
        -math.inf if token in kept else det([*kept, token]) / det(kept)
        for token in range(len(cosines))
    ]


def coverage_ranks(cosines, weights, kept, options):
    """What each token adds to how far all are covered."""
    covered = [max([0.0, *(row[other] for other in kept)]) for row in cosines]
    return [
        weight
        * sum(max(0.0, row[token] - bound) for row, bound in zip(cosines, covered, strict=True))
        for token, weight in enumerate(weights.tolist())
    ]


def mmr_ranks(cosines, weights, kept, options):
    """Relevance against the likeness to the most similar kept token."""
    balance = options["mmr_lambda"]
    likeness = [max(row[other] for other in kept) if kept else 0.0 for row in cosines]
    return [
        balance * weight - (1 - balance) * like
        for weight, like in zip(weights.tolist(), likeness, strict=True)
    ]


MEMBERS = {
    "max_min_select": (max_min_ranks, None),
    "dpp_select": (dpp_ranks, "quality"),
    "coverage_select": (coverage_ranks, "weights"),
    "mmr_select": (mmr_ranks, "relevance"),
}


def plain(ranks_of, features, weights, num_keep, options):
    """({kept token: its rank}, the smallest gap between a chosen rank and the next)."""
    unit = functional.normalize(features.double(), dim=1)
    cosines = (unit @ unit.T).tolist()
    kept, gap, at_once = {}, math.inf, options.get("parallel_k", 1)
    while len(kept) < num_keep:
        ranks = ranks_of(cosines, weights.double(), list(kept), options)
        left = [token for token in range(len(features)) if token not in kept]
        left.sort(key=lambda token: -ranks[token])
        chosen = left[: min(at_once, num_keep - len(kept))]
        order = [ranks[token] for token in left[: len(chosen) + 1]]
        gap = min([gap, *(a - b for a, b in itertools.pairwise(order))])
        kept |= {token: ranks[token] for token in chosen}
    return kept, gap


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_hundred_cases_are_the_formula(name, dtype):
    ranks_of, weights_are = MEMBERS[name]
    compared, seeds = 0, itertools.count()
    while compared < 100:
        seed = next(seeds)
        generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
        num_tokens, width = draw.randint(2, 18), draw.randint(4, 40)
        features = torch.randn(num_tokens, width, generator=generator).to(dtype)
        weights = torch.rand(num_tokens, generator=generator).to(dtype) + 0.1
        num_keep = draw.randint(1, min(num_tokens, width))
        given = {} if weights_are is None else {weights_are: weights[None]}
        options = {}
        if name == "mmr_select":
            options = {"mmr_lambda": draw.choice([0.0, 0.3, 1.0]), "parallel_k": draw.randint(1, 4)}
        expected, gap = plain(ranks_of, features, weights, num_keep, options)
        if gap < NO_TIE[dtype]:
            continue
        compared += 1
        kept = ops.__dict__[name](features[None], num_keep, **given, **options, impl="reference")
        assert kept.keep_indices[0].tolist() == sorted(expected), seed
        ranks = torch.tensor([expected[token] for token in sorted(expected)])
        torch.testing.assert_close(kept.scores[0], ranks, atol=1e-4, rtol=1e-4)


def dense_coverage(features, weights, num_keep):
    """Every gain in every step, in the arithmetic of the reference."""
    similarity = cosine_matrix(features)
    crops = torch.arange(len(features))
    covered = torch.zeros_like(weights)
    taken = torch.zeros_like(weights, dtype=torch.bool)
    scores = torch.zeros_like(weights)
    for _ in range(num_keep):
        gains = (similarity - covered[:, None]).clamp(min=0).sum(2) * weights
        most, token = gains.masked_fill(taken, -1).max(1)
        covered = torch.maximum(covered, similarity[crops, token])
        taken[crops, token] = True
        scores[crops, token] = most
    return [
        (tokens.nonzero()[:, 0], score[tokens]) for tokens, score in zip(taken, scores, strict=True)
    ]


@pytest.mark.parametrize("case", ["spread", "even", "few directions", "zero weights", "pairs"])
def test_gains_that_are_not_computed_again_change_nothing(case):
    """To the bit: what is skipped could not have been chosen, among equals neither."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, 300, 32, generator=generator)
    weights = torch.rand(3, 300, generator=generator)
    if case in ("even", "few directions", "pairs"):
        weights = torch.ones_like(weights)
    if case == "few directions":
        features = features[:, torch.randint(20, (300,), generator=generator)]
    if case == "zero weights":
        weights *= weights > 0.9
    if case == "pairs":  # a kept token's twin adds nothing, its old gain is the best of all
        features = torch.eye(150).repeat_interleave(2, 0).expand(3, -1, -1)
    kept = ops.coverage_select(features, 90, weights, impl="reference")
    for crop, (tokens, scores) in enumerate(dense_coverage(features, weights, 90)):
        assert torch.equal(kept.keep_indices[crop], tokens)
        assert torch.equal(kept.scores[crop], scores)


def test_weights_below_zero_are_refused():
    features, weights = torch.randn(2, 9, 8), torch.full((2, 9), 0.5)
    weights[1, 3] = -0.25
    with pytest.raises(ValueError, match=r"weights must not be negative, got -0\.25"):
        ops.coverage_select(features, 4, weights)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mmr_lambda": 1.5}, ValueError, r"mmr_lambda must lie in \[0, 1\], got 1.5"),
        ({"parallel_k": 0}, ValueError, "parallel_k must be at least 1, got 0"),
        ({"relevance": None}, TypeError, "relevance must be a tensor, got NoneType"),
        ({"relevance": torch.ones(1, 8)}, ValueError, r"relevance must be \[B, N\] = \[1, 9\]"),
        ({"relevance": torch.ones(1, 9).long()}, TypeError, "relevance must be floating point"),
        (
            {"relevance": torch.full((1, 9), torch.nan), "strict": True},
            ValueError,
            "relevance must be finite",
        ),
    ],
)
def test_what_mmr_does_not_take(options, error, message):
    arguments = {"relevance": torch.ones(1, 9)} | options
    with pytest.raises(error, match=message):
        ops.mmr_select(torch.randn(1, 9, 8), 4, **arguments)
