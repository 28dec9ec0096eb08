"""Greedy selection and merging against their formulas, written out plainly in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from benchmarks.baselines.greedy_loops import (
    dpp_loop,
    dpp_steps,
    max_min_loop,
    max_min_steps,
)
from tokenprune import ops

from .cases import DTYPES, fields

CASES = range(100)


def random_features(seed, batch=2, dtype=torch.float64):
    """(features [B, N, D], K); every third case has repeated tokens in it."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, width = (int(n) for n in torch.randint(4, 40, (2,), generator=generator))
    features = torch.randn(batch, num_tokens, width, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        features[:, num_tokens // 2] = features[:, 1]
    num_keep = int(torch.randint(1, num_tokens + 1, (1,), generator=generator))
    return features.to(dtype), num_keep


def similarity_of(features):
    directions = functional.normalize(features, dim=-1)
    return directions @ directions.T


@pytest.mark.parametrize("seed", CASES)
def test_max_min_select_is_its_formula(seed):
    features, num_keep = random_features(seed)
    result = ops.max_min_select(features, num_keep)
    for crop in range(len(features)):
        # Distances between equal directions are zero; what rounding makes of them is not a choice.
        distance = (1 - similarity_of(features[crop])).round(decimals=12)
        distance.fill_diagonal_(torch.inf)
        kept = [int(distance.amin(1).argmax())]
        while len(kept) < num_keep:
            rest = [token for token in range(len(distance)) if token not in kept]
            kept.append(max(rest, key=lambda token: float(distance[token, kept].min())))
        assert result.keep_indices[crop].tolist() == sorted(kept)


@pytest.mark.parametrize("seed", CASES)
def test_dpp_select_is_its_formula(seed):
    features, num_keep = random_features(seed)
    num_tokens, width = features.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(2, num_tokens, generator=generator, dtype=torch.float64) + 0.1
    result = ops.dpp_select(features, num_keep, quality)
    for crop in range(len(features)):
        kernel = quality[crop, :, None] * similarity_of(features[crop]) * quality[crop]
        kept = []
        rank = min(num_tokens - (seed % 3 == 0), width)
        while len(kept) < min(num_keep, rank):
            # The determinant grows by the Schur complement of the token.
            block, cross = kernel[kept][:, kept], kernel[kept]
            grows = kernel.diagonal() - (cross * torch.linalg.solve(block, cross)).sum(0)
            grows[kept] = -torch.inf
            kept.append(int(grows.argmax()))
        rest = [token for token in range(num_tokens) if token not in kept]
        kept += rest[: num_keep - len(kept)]  # beyond the rank: the lowest index
        assert result.keep_indices[crop].tolist() == sorted(kept)


@pytest.mark.parametrize("seed", CASES)
def test_bipartite_merge_is_its_formula(seed):
    features, num_keep = random_features(seed)
    result = ops.bipartite_merge(features, num_keep)
    for crop, tokens in enumerate(features):
        members = {token: [token] for token in range(len(tokens))}
        while len(members) > num_keep:
            left = sorted(members)
            mean = {token: tokens[members[token]].mean(0) for token in left}
            edges = []
            for source in left[::2]:
                cosines = [
                    round(
                        float(functional.cosine_similarity(mean[source], mean[target], dim=0)), 12
                    )
                    for target in left[1::2]
                ]
                best = max(range(len(cosines)), key=lambda place: cosines[place])
                edges.append((-cosines[best], source, left[1::2][best]))
            for _, source, target in sorted(edges)[: min(len(left) - num_keep, len(left[1::2]))]:
                members[target] += members.pop(source)
        assert result.keep_indices[crop].tolist() == sorted(members)
        for slot, root in enumerate(sorted(members)):
            assert sorted(members[root]) == (
                (result.assignment[crop] == root).nonzero().flatten().tolist()
            )
            expected = tokens[members[root]].mean(0)
            torch.testing.assert_close(result.features[crop, slot], expected)
            size = torch.tensor(float(len(members[root])))
            torch.testing.assert_close(result.scores[crop, slot], size.log())


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_loops_agree(seed):
    features, _ = random_features(3 * seed + 1)
    num_keep = min(features.shape[1:]) - 1
    quality = features[..., 0].sigmoid()
    expected = ops.max_min_select(features, num_keep).keep_indices
    assert torch.equal(max_min_loop(features, num_keep), expected)
    assert torch.equal(max_min_steps(features, num_keep), expected)
    expected = ops.dpp_select(features, num_keep, quality).keep_indices
    assert torch.equal(dpp_loop(features, num_keep, quality), expected)
    assert torch.equal(dpp_steps(features, num_keep, quality), expected)


SELECTIONS = [
    ops.max_min_select,
    lambda features, num_keep: ops.dpp_select(features, num_keep, features[..., 0].sigmoid()),
]


@pytest.mark.parametrize("select", SELECTIONS)
@given(seed=st.integers(0, 2**20), data=st.data())
@settings(max_examples=25)
def test_a_quota_for_each_crop(select, seed, data):
    features, _ = random_features(seed, batch=3, dtype=data.draw(st.sampled_from(DTYPES)))
    num_tokens = features.shape[1]
    quotas = data.draw(st.lists(st.integers(0, num_tokens), min_size=3, max_size=3))
    packed = select(features, torch.tensor(quotas, dtype=torch.int32))
    assert packed.cu_seqlens.tolist() == [0, *torch.tensor(quotas).cumsum(0).tolist()]
    for crop, quota in enumerate(quotas):
        first, last = packed.cu_seqlens[crop : crop + 2].tolist()
        if quota:
            alone = select(features[crop : crop + 1], quota)
            for name in ("features", "keep_indices", "scores"):
                part = getattr(packed, name)[first:last]
                torch.testing.assert_close(part, getattr(alone, name)[0], atol=1e-6, rtol=1e-5)
    assert (packed.counts == 1).all()


@pytest.mark.parametrize("select", [*SELECTIONS, ops.bipartite_merge])
def test_a_large_batch_is_its_crops_one_by_one(select):
    features = torch.randn(18, 20, 16, generator=torch.Generator().manual_seed(0))
    whole = select(features, 7)  # more crops than are in work at a time
    for crop in range(18):
        alone = select(features[crop : crop + 1], 7)
        for name, value in fields(alone).items():
            torch.testing.assert_close(fields(whole)[name][crop], value[0])


@pytest.mark.parametrize("select", SELECTIONS)
def test_compiled_in_one_graph(select):
    features = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(select, fullgraph=True, backend="aot_eager")
    expected = select(features, 7)
    for name, value in fields(compiled(features, 7)).items():
        assert torch.equal(value, fields(expected)[name]), name
    torch.compiler.reset()


@pytest.mark.parametrize("select", SELECTIONS)
def test_tokens_that_were_not_expected(select):
    """Rows are computed for likely tokens first; in the end every token is taken all the same."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 90, 128, generator=generator, dtype=torch.float64)
    features[1, 45:] = features[1, :45].clone()
    result = select(features, 90)
    assert (result.keep_indices == torch.arange(90)).all()
    assert (result.scores[[0, 2]] > 0).all()
    # The first token that max-min takes lies at distance 0 from its double.
    assert int((result.scores[1] > 0).sum()) == 45 - (select is ops.max_min_select)


@pytest.mark.parametrize("select", [*SELECTIONS, ops.bipartite_merge])
def test_gradients_go_to_what_is_kept(select):
    features = torch.randn(2, 12, 6, dtype=torch.float64, requires_grad=True)
    result = select(features, 5)
    result.features.sum().backward()
    counts = torch.zeros(2, 12, dtype=torch.float64)
    counts.scatter_(1, result.keep_indices, result.counts.double())
    share = counts.gather(1, result.assignment)
    expected = torch.where(share > 0, 1 / share.clamp(min=1), 0)
    torch.testing.assert_close(features.grad, expected[:, :, None].expand(-1, -1, 6))


def test_weighted_means():
    features = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, 3.0, 0.0, 2.0]], dtype=torch.float64)
    roots, keep = torch.tensor([[0, 0, 2, 3]]), torch.tensor([[0, 2]])
    means = ops.cluster_mean(features, roots, keep, weights)
    torch.testing.assert_close(means[0, 0], (features[0, 0] + 3 * features[0, 1]) / 4)
    assert (means[0, 1] == 0).all()  # a cluster without weight
    assert torch.autograd.gradcheck(
        lambda *leaves: ops.cluster_mean(leaves[0], roots, keep[:, :1], leaves[1]),
        (features, weights.requires_grad_()),
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: ops.max_min_select(f, 0), ValueError, "num_keep must be at least 1, got 0"),
        (lambda f: ops.dpp_select(f, 9), ValueError, "between 1 and .* N = 8, got 9"),
        (lambda f: ops.bipartite_merge(f, 2.0), TypeError, "num_keep must be an int, got float"),
        (lambda f: ops.max_min_select(f[0], 2), ValueError, r"\[B, N, D\], got shape \[8, 4\]"),
        (
            lambda f: ops.max_min_select(f, torch.tensor([1, 9])),
            ValueError,
            "between 0 and .* N = 8 for each crop, got 1 to 9",
        ),
        (
            lambda f: ops.dpp_select(f, 2, torch.ones(2, 7)),
            ValueError,
            r"quality must be \[B, N\] = \[2, 8\], got \[2, 7\]",
        ),
        (lambda f: ops.dpp_select(f, 2, impl="fast"), ValueError, "impl must be .* got 'fast'"),
        (
            lambda f: ops.most_similar(f, f[:, :, :3]),
            ValueError,
            r"got \[2, 8, 4\] and \[2, 8, 3\]",
        ),
        (lambda f: ops.most_similar(f, f.double()), TypeError, "float32 and torch.float64"),
        (lambda f: ops.most_similar(f, f.to("meta")), ValueError, "must be on meta .* got cpu"),
        (
            lambda f: ops.cluster_mean(f, torch.full((2, 8), 8), torch.zeros(2, 1).long()),
            ValueError,
            r"roots must lie in \[0, 8\)",
        ),
        (
            lambda f: ops.cluster_mean(f, torch.zeros(2, 8).long(), torch.zeros(2).long()),
            ValueError,
            r"keep_indices must be \[B, K\], got shape \[2\]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(2, 8, 4))
