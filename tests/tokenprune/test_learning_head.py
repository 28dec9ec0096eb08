"""Assignments with a gradient for the affinity head."""

from __future__ import annotations

import pytest
import torch

from tokenprune import ops

from .cases import fields, make_inputs

HEAD = ("dw_weight", "pw_weight", "pw_bias")


def inputs_for(grid_size=(5, 4), num_keep=4, sharp=3.0, seed=0, width=6):
    return make_inputs(2, grid_size, width, num_keep, torch.float64, seed=seed, sharp=sharp)


def learning(inputs, names=("features", *HEAD)):
    """The inputs with leaves among them: (inputs, leaves)."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    return inputs | leaves, list(leaves.values())


def dense(inputs, result, temperature, straight_through):
    """The definition, written out: an N x N chain whose limit is solved for, cell by cell."""
    rows, cols = inputs["grid_size"]
    logits = ops.background_score(
        inputs["features"], inputs["grid_size"], *(inputs[name] for name in HEAD)
    )
    outputs = []
    for crop, chances in enumerate((logits / temperature).softmax(-1)):
        step = [[chances.new_zeros(()) for _ in range(rows * cols)] for _ in range(rows * cols)]
        for cell in range(rows * cols):
            for slot in range(9):
                row = min(max(cell // cols + slot // 3 - 1, 0), rows - 1)
                col = min(max(cell % cols + slot % 3 - 1, 0), cols - 1)
                target = row * cols + col
                step[cell][target] = step[cell][target] + chances[cell, slot]
        matrix = torch.stack([torch.stack(row) for row in step])
        stop = matrix.diagonal()
        move = matrix - torch.diag(stop)
        roots = result.assignment[crop]
        for root in roots.unique().tolist():
            if matrix[root].argmax() != root:  # a root on a cycle
                keep = torch.arange(rows * cols) != root
                stop = torch.where(keep, stop, 1.0)
                move = move * keep[:, None]
        kept = result.keep_indices[crop]
        hard = (roots[:, None] == kept).double()
        slots = torch.diag(stop)[:, kept] * result.valid[crop]
        walk = hard
        for _ in range(rows + cols):
            walk = slots + move @ walk
        if straight_through:
            walk = hard + walk - walk.detach()
        outputs.append((walk.T @ inputs["features"][crop]) / walk.sum(0)[:, None].clamp(min=1e-9))
    return torch.stack(outputs)


@pytest.mark.parametrize("cycles", ["official", "merge"])
@pytest.mark.parametrize("assignment", ["soft", "straight_through"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_values_and_gradients_are_those_of_the_definition(cycles, assignment, temperature):
    inputs, leaves = learning(inputs_for())
    options = {"cycles": cycles, "assignment": assignment, "temperature": temperature}
    result = ops.background_anchored(**inputs, **options)
    expected = dense(inputs, result, temperature, assignment == "straight_through")
    torch.testing.assert_close(result.features, expected, atol=1e-12, rtol=1e-9)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    ours = torch.autograd.grad(result.features, leaves, upstream)
    theirs = torch.autograd.grad(expected, leaves, upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-8)
        assert one.abs().max() > 0


@pytest.mark.parametrize("grid_size", [(5, 4), (1, 7), (3, 3)])
def test_soft_gradients_by_finite_differences(grid_size):
    inputs, leaves = learning(inputs_for(grid_size, 2))

    def soft(features, *head):
        given = inputs | {"features": features} | dict(zip(HEAD, head, strict=True))
        return ops.background_anchored(**given, assignment="soft", temperature=0.7).features

    assert torch.autograd.gradcheck(soft, leaves, eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_keep", [3, 20])  # 20: every token, so that slots stay empty
def test_straight_through_has_the_hard_values_to_the_bit(dtype, num_keep):
    inputs = make_inputs(3, (5, 4), 16, num_keep, dtype)
    given, leaves = learning(inputs)
    hard = fields(ops.background_anchored(**given))
    through = fields(ops.background_anchored(**given, assignment="straight_through"))
    for name, value in hard.items():
        assert torch.equal(value, through[name]), name
    with torch.no_grad():
        again = fields(ops.background_anchored(**given, assignment="straight_through"))
    assert all(torch.equal(value, again[name]) for name, value in hard.items())
    grads = torch.autograd.grad(through["features"].float().sin().sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)


def test_hard_is_the_default_and_gives_the_head_nothing():
    inputs, (_, *head) = learning(inputs_for())
    result = ops.background_anchored(**inputs)
    assert result.features.requires_grad
    gradients = torch.autograd.grad(result.features.sum(), head, allow_unused=True)
    assert gradients == (None, None, None)


def test_soft_becomes_hard_as_the_temperature_falls():
    inputs = inputs_for(grid_size=(6, 6), num_keep=6, sharp=10.0)
    hard = ops.background_anchored(**inputs, cycles="merge")
    distances = [
        (
            ops.background_anchored(
                **inputs, cycles="merge", assignment="soft", temperature=t
            ).features
            - hard.features
        )
        .abs()
        .max()
        .item()
        for t in (10.0, 1.0, 1e-4)
    ]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-6


def test_a_step_along_the_gradient_lowers_the_loss():
    inputs, (_, *head) = learning(inputs_for(sharp=1.0))
    target = torch.randn(2, 4, 6, dtype=torch.float64)

    def loss():
        kept = ops.background_anchored(**inputs, assignment="soft")
        return (kept.features - target).square().sum()

    before = loss()
    gradients = torch.autograd.grad(before, head)
    with torch.no_grad():
        for weight, gradient in zip(head, gradients, strict=True):
            weight -= 1e-4 * gradient
        assert loss() < before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"assignment": "fuzzy"}, ValueError, "hard, straight_through, soft, got 'fuzzy'"),
        ({"assignment": "soft", "temperature": 0.0}, ValueError, "above 0 and finite, got 0.0"),
        ({"assignment": "soft", "temperature": float("nan")}, ValueError, "got nan"),
        ({"assignment": "soft", "impl": "triton"}, NotImplementedError, "impl='reference' only"),
        (
            {"assignment": "soft", "num_keep": torch.tensor([2, 3])},
            NotImplementedError,
            "got a quota for each",
        ),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        ops.background_anchored(**(inputs_for() | options))
