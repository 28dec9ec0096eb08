"""Weights as types of their own, beside the flat form of the contract."""

from __future__ import annotations

import inspect

import pytest
import torch

from tokenprune import ops

from .cases import anchor_of, fields, head_of, make_inputs

GRID, KEEP = (4, 5), 6


@pytest.fixture
def inputs():
    return make_inputs(3, GRID, 8, KEEP)


def equal(first, second):
    return all(torch.equal(value, fields(second)[name]) for name, value in fields(first).items())


def test_background_score(inputs):
    features, flat = inputs["features"], head_of(inputs)
    head = ops.AffinityHead(*flat)
    expected = ops.background_score(features, GRID, *flat)
    assert torch.equal(ops.background_score(features, GRID, head), expected)
    assert torch.equal(ops.background_score(features, GRID, head=head), expected)
    assert torch.equal(ops.background_score(features, grid_size=GRID, head=head), expected)
    named = dict(zip(("dw_weight", "pw_weight", "pw_bias"), flat, strict=True))
    assert torch.equal(ops.background_score(features, GRID, **named, impl="reference"), expected)


def test_anchored_select(inputs):
    features, cls = inputs["features"], inputs["cls"]
    anchor = ops.Anchor(*anchor_of(inputs))
    roots = torch.arange(20).repeat(3, 1) // 2
    expected = ops.anchored_select(features, cls, roots, *anchor_of(inputs), KEEP)
    assert equal(ops.anchored_select(features, cls, roots, anchor, KEEP), expected)
    assert equal(ops.anchored_select(features, cls, roots, anchor=anchor, num_keep=KEEP), expected)


@pytest.mark.parametrize("num_keep", [KEEP, torch.tensor([0, 3, 20])])
def test_background_anchored(inputs, num_keep):
    inputs["num_keep"] = num_keep
    features, cls = inputs["features"], inputs["cls"]
    head, anchor = ops.AffinityHead(*head_of(inputs)), ops.Anchor(*anchor_of(inputs))
    expected = ops.background_anchored(**inputs)
    flat = (*head_of(inputs), *anchor_of(inputs))
    for result in (
        ops.background_anchored(features, cls, GRID, *flat, num_keep),
        ops.background_anchored(features, cls, GRID, head, anchor, num_keep),
        ops.background_anchored(features, cls, GRID, *head, *anchor, num_keep),
        ops.background_anchored(features, cls, GRID, head, *anchor, num_keep, impl="reference"),
        ops.background_anchored(
            features, cls, GRID, num_keep=num_keep, anchor=anchor, head=head, cycles="official"
        ),
    ):
        assert equal(result, expected)


def test_the_flat_form_is_the_signature_that_is_shown():
    assert list(inspect.signature(ops.background_anchored).parameters) == [
        "features", "cls", "grid_size", "dw_weight", "pw_weight", "pw_bias",
        "q_weight", "q_bias", "k_weight", "k_bias", "num_keep",
        "max_iters", "cycles", "strict", "assignment", "temperature", "impl",
    ]  # fmt: skip


def test_errors_name_the_argument(inputs):
    head, anchor = ops.AffinityHead(*head_of(inputs)), ops.Anchor(*anchor_of(inputs))
    with pytest.raises(TypeError, match="head must be AffinityHead, got Anchor"):
        ops.background_score(inputs["features"], GRID, head=anchor)
    with pytest.raises(TypeError, match="unexpected keyword argument 'anchor'"):
        ops.background_score(inputs["features"], GRID, head, anchor=anchor)
    with pytest.raises(TypeError, match="multiple values for argument 'dw_weight'"):
        ops.background_score(inputs["features"], GRID, head, head=head)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'pw_bias'"):
        ops.background_score(inputs["features"], GRID, head=head, pw_bias=head.bias)
    with pytest.raises(ValueError, match=r"pw_bias must be \[9\] = \[9\], got \[8\]"):
        ops.background_score(inputs["features"], GRID, head._replace(bias=torch.zeros(8)))
    with pytest.raises(ValueError, match=r"k_weight must be \[D, D\] = \[8, 8\], got \[8, 4\]"):
        ops.background_anchored(
            inputs["features"], inputs["cls"], GRID, head, anchor._replace(k=torch.zeros(8, 4)), 2
        )
