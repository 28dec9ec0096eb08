"""Selection and matching kernels against references, in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenprune import ops
from tokenprune.ops.common.launch import MAX_TOKENS

from .test_parity import DEVICE, NARROW, SOME, check_equal, poisoned, tolerance

__all__ = ["poisoned"]  # the fixture


@st.composite
def crops_of_tokens(draw, max_tokens=70):
    """(features [B, N, D] as views, a budget: one number or a quota for each crop)."""
    batch, num_tokens = draw(st.integers(0, 3)), draw(st.integers(1, max_tokens))
    width = draw(st.integers(9, 80))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    tokens = torch.randn(batch, 1 + num_tokens, width, generator=generator)
    features = tokens.to(DEVICE, draw(st.sampled_from(NARROW)))[:, 1:]
    # Within the rank: beyond it there is nothing left to choose by.
    most = min(num_tokens, width // 2, 12)
    if draw(st.booleans()):
        return features, draw(st.integers(1, most))
    quotas = st.lists(st.integers(0, most), min_size=batch, max_size=batch)
    return features, torch.tensor(draw(quotas), dtype=torch.int64)


def has_one_first_choice(features):
    """Not two tokens that are each other's nearest and far from all others: either is right."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    distance = 1 - unit @ unit.mT
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    nearest = distance.amin(-1).sort(descending=True).values
    return bool((nearest[:, :1] - nearest[:, 1:2] > 1e-6).all())


@SOME
@given(crops_of_tokens())
def test_max_min_select(drawn):
    features, num_keep = drawn
    assume(has_one_first_choice(features))
    got, expected = (
        ops.max_min_select(features, num_keep, impl=impl) for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@SOME
@given(crops_of_tokens(), st.booleans())
def test_dpp_select(drawn, weighted):
    features, num_keep = drawn
    quality = features[..., 0].float().sigmoid() if weighted else None
    got, expected = (
        ops.dpp_select(features, num_keep, quality, impl=impl) for impl in ("triton", "reference")
    )
    check_equal(got, expected)


def has_clear_choices(features, weights, num_keep):
    """Not two tokens that cover each other, and nothing else: without weights either is right."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    similarity = unit @ unit.mT
    covered = similarity.new_zeros(similarity.shape[:2])
    taken = torch.zeros_like(covered, dtype=torch.bool)
    for _ in range(int(torch.as_tensor(num_keep).max())):
        gains = (similarity - covered[:, None]).clamp(min=0).sum(2) * weights
        largest, tokens = gains.masked_fill(taken, -1).sort(descending=True)
        if not (largest[:, :1] - largest[:, 1:2] > 1e-5).all():
            return False
        taken.scatter_(1, tokens[:, :1], True)
        crops = torch.arange(len(features), device=DEVICE)
        covered = covered.maximum(similarity[crops, tokens[:, 0]])
    return True


@SOME
@given(crops_of_tokens(), st.booleans())
def test_coverage_select(drawn, weighted):
    features, num_keep = drawn
    weights = features[..., 0].float().sigmoid() if weighted else None
    assume(not len(features) or has_clear_choices(features, weights if weighted else 1, num_keep))
    got, expected = (
        ops.coverage_select(features, num_keep, weights, impl=impl)
        for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@SOME
@given(crops_of_tokens(), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 5))
def test_mmr_select(drawn, mmr_lambda, parallel_k):
    features, num_keep = drawn
    relevance = features[..., 0].float()
    got, expected = (
        ops.mmr_select(
            features,
            num_keep,
            relevance,
            mmr_lambda=mmr_lambda,
            parallel_k=parallel_k,
            impl=impl,
        )
        for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_more_crops_than_programs(impl):
    """Pairs of tokens are stored for as many crops as programs run at a time, and written over."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 20, 16, generator=generator).to(DEVICE)
    weights = torch.rand(5, 20, generator=generator).to(DEVICE)
    together = ops.coverage_select(features, 6, weights, impl=impl)
    for crop in range(5):
        one = slice(crop, crop + 1)
        alone = ops.coverage_select(features[one], 6, weights[one], impl="reference")
        assert torch.equal(together.keep_indices[one], alone.keep_indices)


@SOME
@given(crops_of_tokens(max_tokens=150))
def test_most_similar(drawn):
    features, _ = drawn
    queries, keys = features, features[:, : 1 + features.shape[1] // 2].flip(1)
    (got, index), (expected, expected_index) = (
        ops.most_similar(queries, keys, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(index, expected_index)


@SOME
@given(crops_of_tokens(), st.data())
def test_bipartite_merge(drawn, data):
    features, _ = drawn
    num_keep = data.draw(st.integers(1, features.shape[1]))
    got, expected = (
        ops.bipartite_merge(features.float(), num_keep, impl=impl)
        for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@SOME
@given(crops_of_tokens(), st.booleans(), st.data())
def test_cluster_mean(drawn, weighted, data):
    features, _ = drawn
    batch, num_tokens, _ = features.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    roots = torch.randint(0, num_tokens, (batch, num_tokens), generator=generator).to(DEVICE)
    num_keep = data.draw(st.integers(0, num_tokens))
    keep = torch.rand(batch, num_tokens, generator=generator).argsort(1)[:, :num_keep].to(DEVICE)
    weights = torch.rand(batch, num_tokens, generator=generator).to(DEVICE) if weighted else None
    means, gradients = [], []
    for impl in ("triton", "reference"):
        leaf = features.detach().requires_grad_()
        mean = ops.cluster_mean(leaf, roots, keep, weights, impl=impl)
        means.append(mean.detach())
        if batch:
            slopes = torch.linspace(-1, 1, mean.numel(), device=DEVICE).view_as(mean)
            (mean.float() * slopes).sum().backward()
            gradients.append(leaf.grad)
    assert means[0].dtype == features.dtype
    close = tolerance(features.dtype)
    torch.testing.assert_close(*means, **close)
    if batch:
        torch.testing.assert_close(*gradients, **close)


def test_the_kernel_has_no_gradient_of_the_weights():
    features, roots = torch.randn(1, 4, 16, device=DEVICE), torch.zeros(1, 4, device=DEVICE).long()
    weights = torch.ones(1, 4, device=DEVICE, requires_grad=True)
    with pytest.raises(NotImplementedError, match="has no gradient of the weights"):
        ops.cluster_mean(features, roots, roots[:, :1], weights, impl="triton")
    ops.cluster_mean(features, roots, roots[:, :1], weights).sum().backward()
    with torch.no_grad():
        ops.cluster_mean(features, roots, roots[:, :1], weights, impl="triton")


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_equal_tokens_are_taken_in_order(impl):
    same = torch.randn(1, 1, 24, device=DEVICE).expand(2, 40, 24)
    for result in (
        ops.max_min_select(same, 5, impl=impl),
        ops.dpp_select(same, 5, impl=impl),
        ops.dpp_select(torch.zeros_like(same), 5, impl=impl),
        ops.coverage_select(same, 5, impl=impl),
        ops.coverage_select(torch.zeros_like(same), 5, impl=impl),
        ops.mmr_select(same, 5, torch.ones_like(same[..., 0]), impl=impl),
        ops.mmr_select(same, 5, torch.ones_like(same[..., 0]), parallel_k=5, impl=impl),
    ):
        assert result.keep_indices.tolist() == [[0, 1, 2, 3, 4]] * 2
        assert (result.scores[:, 1:] == result.scores[:, 1:2]).all()
    index = ops.most_similar(same, same, impl=impl)[1]
    assert (index == 0).all()
    # Every second token goes into the first target, so does what is left of the targets.
    assert ops.bipartite_merge(same, 20, impl=impl).keep_indices[0].tolist() == [*range(1, 40, 2)]


SELECT = {
    "max_min": ops.max_min_select,
    "dpp": ops.dpp_select,
    "coverage": ops.coverage_select,
    "mmr": lambda features, num_keep, **options: ops.mmr_select(
        features, num_keep, features[..., 0].float(), **options
    ),
}


@pytest.mark.parametrize("num_tokens", [1025, pytest.param(MAX_TOKENS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SELECT)
def test_large_grids(name, num_tokens):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, num_tokens, 19, generator=generator).to(DEVICE)
    got, expected = (SELECT[name](features, 4, impl=impl) for impl in ("triton", "reference"))
    check_equal(got, expected)


@pytest.mark.parametrize("cycles", ["official", "merge"])
def test_clusters_of_the_largest_grid(cycles):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, MAX_TOKENS, 9, generator=generator).to(DEVICE)
    got, expected = (
        ops.background_merge(logits, (32, MAX_TOKENS // 32), cycles=cycles, impl=impl)
        for impl in ("triton", "reference")
    )
    assert torch.equal(got, expected)


def test_larger_grids_are_refused():
    features = torch.randn(1, MAX_TOKENS + 1, 8, device=DEVICE)
    for select in SELECT.values():
        with pytest.raises(ValueError, match="at most 4096 tokens, got 4097"):
            select(features, 2, impl="triton")


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_nan_does_not_break_the_budget(impl):
    features = torch.randn(2, 20, 16, device=DEVICE)
    features[0, 7, 3] = float("nan")
    for select in SELECT.values():
        result = select(features, 6, impl=impl)
        assert (result.keep_indices.diff(dim=1) > 0).all()
        assert ((result.keep_indices >= 0) & (result.keep_indices < 20)).all()
        assert result.features[1].isfinite().all()
        with pytest.raises(ValueError, match="features must be finite"):
            select(features, 6, strict=True, impl=impl)
