"""Every method in the folder keeps the same promises."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tokenprune import Method, ReducedTokens, VisionTokens, get_method, list_methods

from .cases import assert_same, fields, make_inputs

NEEDS_WEIGHTS = {"background_anchored"}


def build(name, width):
    inputs = make_inputs(1, (1, 1), width, 1, seed=5)
    weights = ("dw_weight", "pw_weight", "pw_bias", "q_weight", "q_bias", "k_weight", "k_bias")
    options = {key: inputs[key] for key in weights} if name in NEEDS_WEIGHTS else {}
    return get_method(name, **options)


def tokens_of(batch=3, grid_size=(6, 5), width=8, seed=0):
    inputs = make_inputs(batch, grid_size, width, 1, seed=seed)
    attention = inputs["features"].square().mean(-1)
    return VisionTokens(inputs["features"], grid_size, cls=inputs["cls"], attention=attention)


def test_list():
    expected = ["background_anchored", "divprune", "fastervlm", "random", "spatial_pool"]
    assert list_methods() == expected
    assert all(isinstance(build(name, 8), Method) for name in list_methods())


@pytest.mark.parametrize("name", list_methods())
@pytest.mark.parametrize("num_keep", [1, 7, 30])
def test_contract(name, num_keep):
    tokens = tokens_of()
    method = build(name, 8)
    result = method.reduce(tokens, num_keep)
    assert isinstance(result, ReducedTokens)
    assert result.features.shape == (3, num_keep, 8)
    assert result.features.dtype == tokens.features.dtype
    for per_slot in (result.keep_indices, result.valid, result.scores):
        assert per_slot.shape == (3, num_keep)
    assert result.keep_indices.dtype == result.assignment.dtype == torch.int64
    assert result.valid.dtype == torch.bool
    assert ((result.assignment >= 0) & (result.assignment < 30)).all()
    assert (result.keep_indices.diff(dim=1) > 0).all()
    assert ((result.keep_indices >= 0) & (result.keep_indices < 30)).all()
    assert result.assignment.shape == (3, 30)
    assert result.scores.dtype == torch.float32
    assert result.grid_size == (6, 5)
    assert (result.counts[result.valid] >= 1).all()
    for name_, value in fields(method.reduce(tokens, num_keep)).items():
        assert torch.equal(value, fields(result)[name_])


@pytest.mark.parametrize("name", list_methods())
def test_bad_budgets_and_tokens(name):
    method = build(name, 8)
    for num_keep, error in ((0, ValueError), (31, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="num_keep must be"):
            method.reduce(tokens_of(), num_keep)
    with pytest.raises(TypeError, match="must be VisionTokens, got Tensor"):
        method.reduce(torch.zeros(1, 4, 8), 2)
    broken = tokens_of()
    broken.features[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in 1 of 3"):
        method.reduce(broken, 5)
    method.strict = False
    method.reduce(broken, 5)


@pytest.mark.parametrize("name", ["random", "spatial_pool"])
def test_whole_budget_is_the_identity(name):
    tokens = tokens_of()
    result = get_method(name).reduce(tokens, 30)
    assert torch.equal(result.features, tokens.features)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="fastervlm, random, spatial_pool, got 'best'"):
        get_method("best")
    with pytest.raises(ValueError, match="random takes the options strict, seed, got temperature"):
        get_method("random", temperature=1)


@pytest.mark.parametrize("name", [n for n in list_methods() if build(n, 8).needs])
def test_what_a_method_needs(name):
    tokens = VisionTokens(torch.zeros(1, 4, 8), (2, 2))
    method = build(name, 8)
    with pytest.raises(ValueError, match=rf"needs VisionTokens.{method.needs[0]}, got .* = None"):
        method.reduce(tokens, 2)


def test_fastervlm_keeps_what_is_looked_at():
    attention = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.3, 0.1, 0.2, 0.4]])
    features = torch.randn(2, 4, 3)
    result = get_method("fastervlm").reduce(VisionTokens(features, (2, 2), attention=attention), 2)
    assert result.keep_indices.tolist() == [[1, 2], [0, 3]]
    assert torch.equal(result.features[1], features[1, [0, 3]])


@pytest.mark.parametrize("seed", range(5))
def test_divprune_is_its_formula(seed):
    tokens = tokens_of(1, (4, 5), seed=seed)
    directions = functional.normalize(tokens.features[0].double(), dim=-1)
    distance = 1 - directions @ directions.T
    distance.fill_diagonal_(torch.inf)
    kept = [int(distance.amin(1).argmax())]
    while len(kept) < 7:
        rest = [token for token in range(20) if token not in kept]
        kept.append(max(rest, key=lambda token: float(distance[token, kept].min())))
    assert get_method("divprune").reduce(tokens, 7).keep_indices[0].tolist() == sorted(kept)


def test_a_method_from_another_package(tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text(
        "from tokenprune.methods.random import Random\n"
        "class FarAway(Random):\n"
        "    pass\n"
        "not_a_method = 3\n"
    )
    info = tmp_path / "far_away-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tokenprune.methods]\nfar_away = far_away:FarAway\nbroken = far_away:not_a_method\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "far_away" in list_methods()
    assert get_method("far_away").reduce(tokens_of(), 4).features.shape == (3, 4, 8)
    with pytest.raises(TypeError, match="must name a subclass of Method, got far_away:not_a_meth"):
        get_method("broken")


def test_random_depends_on_its_seed_alone():
    tokens = tokens_of()
    first = get_method("random", seed=1).reduce(tokens, 7)
    other = get_method("random", seed=2).reduce(tokens, 7)
    assert not torch.equal(first.keep_indices, other.keep_indices)
    assert torch.equal(
        first.features, tokens.features.gather(1, first.keep_indices[:, :, None].expand(-1, -1, 8))
    )
    state = torch.get_rng_state()
    get_method("random").reduce(tokens, 7)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are drawn


@pytest.mark.parametrize("grid_size", [(6, 5), (1, 7), (7, 1), (4, 4), (3, 8)])
def test_spatial_pool_partitions_the_grid_for_every_budget(grid_size):
    rows, cols = grid_size
    tokens = tokens_of(1, grid_size)
    for num_keep in range(1, rows * cols + 1):
        result = get_method("spatial_pool").reduce(tokens, num_keep)
        windows = result.assignment[0].view(rows, cols)
        assert len(windows.unique()) == num_keep
        for root in windows.unique().tolist():
            inside = (windows == root).nonzero()
            (top, left), (bottom, right) = inside.min(0).values, inside.max(0).values
            assert len(inside) == (bottom - top + 1) * (right - left + 1)  # a rectangle
            assert root == top * cols + left


@pytest.mark.parametrize(("num_keep", "window"), [(16, (6, 6)), (24, (6, 4)), (144, (2, 2))])
def test_spatial_pool_is_average_pooling_where_it_divides(num_keep, window):
    tokens = tokens_of(2, (24, 24), 8)
    result = get_method("spatial_pool").reduce(tokens, num_keep)
    grid = tokens.features.mT.unflatten(2, (24, 24))
    pooled = functional.avg_pool2d(grid, window).flatten(2).mT
    transposed = functional.avg_pool2d(grid, window[::-1]).flatten(2).mT
    assert any(
        torch.allclose(result.features, expected, atol=1e-6) for expected in (pooled, transposed)
    )


def test_cat_and_counts():
    tokens = tokens_of(5)
    method = build("background_anchored", 8)
    whole = method.reduce(tokens, 7)
    halves = [
        method.reduce(VisionTokens(tokens.features[part], (6, 5), tokens.cls[part]), 7)
        for part in (slice(0, 2), slice(2, 5))
    ]
    joined = ReducedTokens.cat(halves)
    assert_same(joined, whole)
    assert joined.grid_size == (6, 5)
    assert ReducedTokens.cat(halves[:1]) is halves[0]


def test_a_method_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "first_tokens.py").write_text(
        "from dataclasses import dataclass\n"
        "from tokenprune.method import Method\n"
        "from tokenprune.methods.random import Random\n"
        "@dataclass(kw_only=True)\n"
        "class FirstTokens(Method):\n"
        "    def _reduce(self, tokens, num_keep):\n"
        "        return Random(seed=num_keep)._reduce(tokens, num_keep)\n"
    )
    import tokenprune.methods

    monkeypatch.setattr(
        tokenprune.methods, "__path__", [*tokenprune.methods.__path__, str(tmp_path)]
    )
    assert "first_tokens" in list_methods()
    assert get_method("first_tokens").reduce(tokens_of(), 4).features.shape == (3, 4, 8)
