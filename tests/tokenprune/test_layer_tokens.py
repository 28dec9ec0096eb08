"""What methods read of a layer of the language model: shapes, what is missing, what is refused."""

from __future__ import annotations

import pytest
import torch

from tokenprune import LayerTokens, get_method
from tokenprune.clustering import density_peaks, gaps


def layer(batch=2, length=20, start=4, number=9, **changed):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    of_heads = (batch, 2, length, 4)
    given = {
        "hidden_states": draw(batch, length, 8),
        "keys": draw(*of_heads),
        "plain_keys": draw(*of_heads),
        "plain_queries": draw(*of_heads),
        "attention": draw(batch, 2, 3, number).softmax(-1),
    }
    return LayerTokens(length, start, number, **(given | changed))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="length must be at least 13, got 12"):
        LayerTokens(12, 4, 9)
    with pytest.raises(ValueError, match=r"keys must have 4 dimensions, and 20 columns"):
        layer(keys=torch.zeros(2, 2, 19, 4))
    with pytest.raises(ValueError, match=r"attention must have 4 dimensions, and 9 columns"):
        layer(attention=torch.zeros(2, 9))


def test_what_is_missing_is_named():
    for name, field in (("fastv", "attention"), ("dart", "keys"), ("sparsevlm", "attention")):
        with pytest.raises(ValueError, match=f"LayerTokens.{field} is needed, got None"):
            get_method(name).reduce_in_layer(layer(**{field: None}), 5)
    with pytest.raises(ValueError, match="num_keep must be between 1 and the number of tokens"):
        get_method("fastv").reduce_in_layer(layer(), 10)
    with pytest.raises(NotImplementedError, match="DivPrune works on vision tokens"):
        get_method("divprune").reduce_in_layer(layer(), 5)
    with pytest.raises(NotImplementedError, match="PACT takes one prompt in a layer, got 2"):
        get_method("pact").reduce_in_layer(layer(), 9)
    with pytest.raises(ValueError, match=r"PACT found .* clusters, more than num_keep = 1"):
        get_method("pact", cutoff=0.01).reduce_in_layer(layer(batch=1), 1)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "dart", "sparsevlm"])
def test_rows_of_a_batch_are_independent(name):
    method, tokens = get_method(name), layer()
    for num_keep in (4, 5, 9):
        result = method.reduce_in_layer(tokens, num_keep)
        assert result.keep_indices.shape == (2, num_keep)
        assert (result.keep_indices.diff(dim=1) > 0).all()
        kept = result.keep_indices[:, :, None].expand(-1, -1, 8)
        assert torch.equal(result.features, tokens.hidden_states[:, 4:13].gather(1, kept))
        for row in range(2):
            names = ("hidden_states", "keys", "plain_keys", "plain_queries", "attention")
            alone = {field: getattr(tokens, field)[row : row + 1] for field in names}
            single = method.reduce_in_layer(layer(batch=1, **alone), num_keep)
            assert torch.equal(single.keep_indices[0], result.keep_indices[row])


def test_columns_and_positions_after_a_cut():
    tokens, kept = layer(), torch.tensor([[0, 2], [1, 8]])
    columns = tokens.columns_after(kept).tolist()
    assert columns == [[*range(4), 4, 6, *range(13, 20)], [*range(4), 5, 12, *range(13, 20)]]
    assert get_method("fastv").position_ids(tokens, kept).tolist() == columns
    official = get_method("pyramiddrop", official=True)
    assert official.position_ids(tokens, kept).tolist() == [[*range(13)]] * 2


def test_density_peaks():
    """Two groups on a line, one denser: the densest token of each is its center."""
    features = torch.tensor([0.0, 1, 2, 3, 4, 20, 21, 23])[None, :, None]
    centers, cluster = density_peaks(features, 2, 3)
    assert sorted(cluster[0, :5].unique().tolist() + cluster[0, 5:].unique().tolist()) == [0, 1]
    assert {*(centers[0] < 5).tolist()} == {True, False}
    between = (features - features.mT).abs()
    equal = torch.zeros(1, 8)  # the first counts as denser
    assert gaps(between, equal)[0].tolist() == [23, 1, 1, 1, 1, 16, 1, 2]
