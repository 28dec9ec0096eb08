"""Random inputs for the operators."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def make_inputs(batch, grid_size, width, num_keep, dtype=torch.float32, seed=0, sharp=1.0):
    """Arguments of `background_anchored`; `sharp` scales the logits, and with them the clusters."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    rows, cols = grid_size
    tokens = normal(batch, 1 + rows * cols, width)
    return {
        "features": tokens[:, 1:],
        "cls": tokens[:, 0],
        "grid_size": grid_size,
        "dw_weight": normal(width, 1, 3, 3, scale=sharp / 3),
        "pw_weight": normal(9, width, 1, 1, scale=width**-0.5),
        "pw_bias": normal(9, scale=0.1),
        "q_weight": normal(width, width, scale=width**-0.5),
        "q_bias": normal(width, scale=0.1),
        "k_weight": normal(width, width, scale=width**-0.5),
        "k_bias": normal(width, scale=0.1),
        "num_keep": num_keep,
    }


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
