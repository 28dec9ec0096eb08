"""Random inputs for the operators."""

from __future__ import annotations

import torch

from benchmarks.cases import background_anchored_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def make_inputs(batch, grid_size, width, num_keep, dtype=torch.float32, seed=0, sharp=1.0):
    """Arguments of `background_anchored`, as the benchmarks make them."""
    return background_anchored_inputs(
        batch, grid_size, width, num_keep, dtype, seed=seed, sharp=sharp
    )


def head_of(inputs):
    return [inputs[name] for name in ("dw_weight", "pw_weight", "pw_bias")]


def anchor_of(inputs):
    return [inputs[name] for name in ("q_weight", "q_bias", "k_weight", "k_bias")]


def widened(inputs, dtype=torch.float64):
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def assert_same(first, second):
    """Equal in what was chosen; a batch of another form may round sums otherwise."""
    for name, value in fields(first).items():
        other = fields(second)[name]
        if value.is_floating_point():
            torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(value, other), name


def fields(result):
    return {
        name: getattr(result, name)
        for name in ("features", "keep_indices", "valid", "assignment", "scores")
    }
