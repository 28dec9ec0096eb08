"""What covers much of a scene is its background."""

from __future__ import annotations

import pytest
import torch

from geollava.evaluate.models.background import background_prototypes, similarity


def two_grounds_and_things(generator):
    """[T, D] tokens of two kinds of ground with noise, and 12 things unlike both and each other."""
    grounds = torch.randn(2, 32, generator=generator)
    tokens = grounds.repeat_interleave(100, 0) + 0.2 * torch.randn(200, 32, generator=generator)
    things = torch.randn(12, 32, generator=generator)
    return torch.cat([tokens, things])


def test_background_is_what_covers_much():
    tokens = two_grounds_and_things(torch.Generator().manual_seed(0))
    prototypes = background_prototypes(tokens)
    assert torch.allclose(prototypes.norm(dim=1), torch.ones(len(prototypes)))
    cosine = similarity(tokens, prototypes)
    assert cosine[:200].min() > 0.9
    assert cosine[200:].max() < 0.8
    assert torch.equal(background_prototypes(tokens), prototypes)
    one = torch.ones(5, 3)
    assert similarity(one, background_prototypes(one)).min() > 0.999
    with pytest.raises(ValueError, match="at least one token"):
        background_prototypes(torch.zeros(0, 3))
