"""What only a GPU can show. Elsewhere these do not run, and nothing is claimed of them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines.background_anchored_dense import background_anchored_dense
from tests.tokenprune.cases import fields, head_of, make_inputs, widened
from tokenprune import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(inputs):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_size_against_float64(dtype):
    inputs = on_gpu(make_inputs(8, (24, 24), 1024, 24, dtype=dtype))
    truth = background_anchored_dense(**widened(inputs)).logits
    errors = {
        impl: (
            ops.background_score(inputs["features"], (24, 24), *head_of(inputs), impl=impl).double()
            - truth
        )
        .abs()
        .max()
        .item()
        for impl in ("reference", "triton")
    }
    assert errors["triton"] <= 2 * errors["reference"]


def test_captured_in_a_graph_and_the_same_every_time():
    inputs = on_gpu(make_inputs(64, (24, 24), 1024, 24, dtype=torch.bfloat16))
    expected = ops.background_anchored(**inputs, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.background_anchored(**inputs, impl="triton")
    for _ in range(10):
        graph.replay()
        torch.cuda.synchronize()
        for name, value in fields(captured).items():
            assert torch.equal(value, fields(expected)[name]), name


def test_offsets_beyond_32_bits():
    crops = 4096  # x 577 x 1024 passes 2^31 elements
    weights = on_gpu(make_inputs(1, (24, 24), 1024, 24, dtype=torch.bfloat16))
    tokens = torch.empty(crops, 577, 1024, dtype=torch.bfloat16, device="cuda").normal_()
    inputs = weights | {"features": tokens[:, 1:], "cls": tokens[:, 0]}
    whole = ops.background_anchored(**inputs, impl="triton")
    last = ops.background_anchored(
        **(weights | {"features": tokens[-2:, 1:], "cls": tokens[-2:, 0]}), impl="triton"
    )
    assert torch.equal(whole.keep_indices[-2:], last.keep_indices)
    assert torch.equal(whole.features[-2:], last.features)


def test_auto_takes_triton():
    inputs = on_gpu(make_inputs(4, (6, 6), 32, 5, dtype=torch.bfloat16))
    with torch.profiler.profile() as profile:
        ops.background_anchored(**inputs)
    names = {event.key for event in profile.key_averages()}
    assert any("tokenprune::background_anchored" in name for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("select", [ops.max_min_select, ops.dpp_select, ops.coverage_select])
def test_greedy_selection_at_full_size(select, dtype):
    features = torch.randn(16, 576, 1024, device="cuda", dtype=dtype)
    got, again, expected = (
        select(features, 64, impl=impl) for impl in ("triton", "triton", "reference")
    )
    assert torch.equal(got.keep_indices, again.keep_indices)
    # Two distances may differ by less than float32 tells, and then the choices after them.
    same = (got.keep_indices[:, :, None] == expected.keep_indices[:, None, :]).any(2)
    assert same.float().mean() > 0.95


def test_bipartite_merging_at_full_size():
    features = torch.randn(16, 576, 1024, device="cuda")
    got, expected = (ops.bipartite_merge(features, 64, impl=i) for i in ("triton", "reference"))
    assert (got.assignment == expected.assignment).float().mean() > 0.95
