"""Kernels against references: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenprune.cases import anchor_of, assert_same, fields, head_of, make_inputs
from tokenprune import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = (torch.float32, torch.bfloat16, torch.float16)
SOME = settings(max_examples=12)  # a program takes the interpreter milliseconds


@pytest.fixture(autouse=True)
def poisoned():
    """Empty memory is NaN, or the largest integer: nothing may be read before it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.ones(1).new_empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def on_device(inputs):
    return {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


@st.composite
def arguments(draw, dtypes=NARROW, min_batch=0):
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return on_device(
        make_inputs(
            batch=draw(st.integers(min_batch, 4)),
            grid_size=(rows, cols),
            width=draw(st.sampled_from([1, 13, 16, 24, 37, 48, 80])),
            num_keep=draw(st.integers(1, rows * cols)),
            dtype=draw(st.sampled_from(dtypes)),
            seed=draw(st.integers(0, 2**20)),
            sharp=draw(st.sampled_from([0.1, 1.0, 10.0])),
        )
    )


def tolerance(dtype):
    """One unit in the last place: the interpreter cuts bfloat16 off where a GPU rounds."""
    return {"atol": 1e-5, "rtol": {torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)}


def check_equal(kernel, reference):
    for name, expected in fields(reference).items():
        got = fields(kernel)[name]
        assert got.dtype == expected.dtype, name
        if expected.is_floating_point():
            torch.testing.assert_close(got, expected, **tolerance(expected.dtype), msg=name)
        else:
            assert torch.equal(got, expected), name
    assert kernel.grid_size == reference.grid_size


@SOME
@given(arguments())
def test_background_score(inputs):
    got, expected = (
        ops.background_score(inputs["features"], inputs["grid_size"], *head_of(inputs), impl=impl)
        for impl in ("triton", "reference")
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@SOME
@given(arguments(), st.sampled_from(["official", "merge"]), st.integers(0, 12))
def test_background_merge(inputs, cycles, max_iters):
    logits = ops.background_score(
        inputs["features"], inputs["grid_size"], *head_of(inputs), impl="reference"
    )
    got, expected = (
        ops.background_merge(
            logits, inputs["grid_size"], max_iters=max_iters, cycles=cycles, impl=impl
        )
        for impl in ("triton", "reference")
    )
    assert torch.equal(got, expected)


@SOME
@given(arguments(), st.integers(0, 2**20))
def test_anchored_select(inputs, seed):
    batch, num_tokens, _ = inputs["features"].shape
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randint(0, num_tokens, (batch, num_tokens), generator=generator).to(DEVICE)
    got, expected = (
        ops.anchored_select(
            inputs["features"],
            inputs["cls"],
            roots,
            *anchor_of(inputs),
            inputs["num_keep"],
            impl=impl,
        )
        for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@SOME
@given(arguments(), st.sampled_from(["official", "merge"]))
def test_background_anchored(inputs, cycles):
    got, expected = (
        ops.background_anchored(**inputs, cycles=cycles, impl=impl)
        for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@SOME
@given(arguments(min_batch=1), st.data())
def test_a_quota_for_each_crop(inputs, data):
    batch, num_tokens, _ = inputs["features"].shape
    quotas = torch.tensor(
        data.draw(st.lists(st.integers(0, num_tokens), min_size=batch, max_size=batch))
    )
    ragged = inputs | {"num_keep": quotas}
    got, expected = (
        ops.background_anchored(**ragged, impl=impl) for impl in ("triton", "reference")
    )
    check_equal(got, expected)
    assert torch.equal(got.cu_seqlens, expected.cu_seqlens)
    assert got.cu_seqlens.dtype == torch.int32
    assert got.cu_seqlens.tolist() == [0, *quotas.cumsum(0).tolist()]
    assert torch.equal(got.counts, expected.counts)
    for crop, quota in enumerate(quotas.tolist()):
        if quota == 0:
            continue
        first, last = got.cu_seqlens[crop : crop + 2].tolist()
        alone = ops.background_anchored(
            **(
                inputs
                | {
                    "features": inputs["features"][crop : crop + 1],
                    "cls": inputs["cls"][crop : crop + 1],
                    "num_keep": quota,
                }
            )
        )
        assert torch.equal(alone.keep_indices[0], got.keep_indices[first:last])


@pytest.mark.parametrize("cycles", ["official", "merge"])
@pytest.mark.parametrize("grid_size", [(64, 64), (1, 3000)])
def test_large_grids(grid_size, cycles):
    """Rows wider than a block of tokens, and all that one program may hold."""
    inputs = on_device(make_inputs(1, grid_size, 16, 100, seed=3))
    got, expected = (
        ops.background_anchored(**inputs, cycles=cycles, impl=impl)
        for impl in ("triton", "reference")
    )
    check_equal(got, expected)


@pytest.mark.parametrize("layout", ["behind a class token", "dense", "transposed"])
def test_strided_features(layout):
    inputs = on_device(make_inputs(2, (5, 6), 32, 7))
    dense = inputs["features"].contiguous()
    if layout == "dense":
        inputs["features"] = dense
    if layout == "transposed":
        inputs["features"] = dense.mT.contiguous().mT
    got = ops.background_anchored(**inputs, impl="triton")
    expected = ops.background_anchored(**(inputs | {"features": dense}), impl="reference")
    assert_same(got, expected)


def test_nan_is_kept_where_it_shows():
    inputs = on_device(make_inputs(3, (4, 4), 16, 5))
    inputs["features"][1, 7, 2] = math.nan
    result = ops.background_anchored(**inputs, impl="triton")
    assert result.scores[1].isnan().any()
    assert result.features[[0, 2]].isfinite().all()
    with pytest.raises(ValueError, match=r"must be finite, .* in 1 of 3 crops"):
        ops.background_anchored(**inputs, impl="triton", strict=True)


def test_infinity_stays_with_its_token():
    """Products of a neighbor's infinity with the anchor's padding would be NaN."""
    inputs = on_device(make_inputs(1, (4, 4), 16, 5))
    inputs["features"][0, 7] = math.inf
    got, expected = (
        ops.background_anchored(**inputs, impl=impl) for impl in ("triton", "reference")
    )
    assert torch.equal(got.keep_indices, expected.keep_indices)
    assert torch.equal(got.scores.isnan(), expected.scores.isnan())


def test_ties_go_to_the_lowest_index():
    inputs = on_device(make_inputs(1, (3, 4), 16, 5))
    same = inputs["features"][:, :1].expand(-1, 12, -1)
    two = torch.tensor([[7] * 6 + [9] * 6], device=DEVICE)
    result = ops.anchored_select(same, inputs["cls"], two, *anchor_of(inputs), 4, impl="triton")
    assert result.keep_indices[0].tolist() == [0, 1, 7, 9]
    assert result.valid[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_of_the_selection(dtype, ragged):
    num_keep = torch.tensor([3, 0, 20]) if ragged else 6
    gradients = []
    for impl in ("triton", "reference"):
        inputs = on_device(make_inputs(3, (4, 5), 32, 6, dtype=dtype, seed=1))
        leaves = {
            name: value.clone().requires_grad_()
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        result = ops.background_anchored(**(inputs | leaves | {"num_keep": num_keep}), impl=impl)
        weights = torch.linspace(-1, 1, result.features.numel(), device=DEVICE)
        loss = (result.features.float().flatten() * weights).sum()
        loss = loss + (result.scores[result.valid] ** 2).sum()
        loss.backward()
        gradients.append({name: leaf.grad for name, leaf in leaves.items()})
    kernel, reference = gradients
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.03}
    for name in ("features", "cls", "q_weight", "q_bias", "k_weight", "k_bias"):
        torch.testing.assert_close(kernel[name], reference[name], **close, msg=name)


@pytest.mark.parametrize("dtype", NARROW)
def test_gradients_of_the_logits(dtype):
    gradients = []
    for impl in ("triton", "reference"):
        inputs = on_device(make_inputs(2, (4, 5), 32, 6, dtype=dtype, seed=1))
        leaves = [
            tensor.clone().requires_grad_() for tensor in (inputs["features"], *head_of(inputs))
        ]
        logits = ops.background_score(leaves[0], (4, 5), *leaves[1:], impl=impl)
        (
            logits * torch.linspace(-1, 1, logits.numel(), device=DEVICE).view_as(logits)
        ).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.03}
    for kernel, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(kernel, reference, **close)


@SOME
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 3),
    num_tokens=st.integers(1, 150),
    width=st.integers(1, 70),
    dtype=st.sampled_from(NARROW),
    sharp=st.sampled_from([0.1, 1.0, 8.0]),
)
def test_attention_scores_are_the_softmax_written_out(
    batch, heads, num_tokens, width, dtype, sharp
):
    generator = torch.Generator().manual_seed(num_tokens)
    packed = torch.randn(batch, num_tokens, 3, heads, width, generator=generator).to(DEVICE, dtype)
    q, k = (packed[:, :, index].transpose(1, 2) for index in (0, 1))  # as a fused projection lies
    q = q * sharp
    weights = (q.double() @ k.double().mT * width**-0.5).softmax(-1)
    for impl in ("triton", "reference"):
        row = ops.cls_attention(q, k, impl=impl)
        columns = ops.attention_received(q, k, impl=impl)
        assert row.dtype == columns.dtype == torch.float32
        torch.testing.assert_close(row.double(), weights[:, :, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(columns.double(), weights.sum(2), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_golden(ops_case):
    on = {name: tensor.to(DEVICE) for name, tensor in ops_case.weights.items()}
    result = ops.background_anchored(
        ops_case.tensors["tokens"].to(DEVICE)[:, 1:],
        ops_case.tensors["tokens"].to(DEVICE)[:, 0],
        ops_case.grid_size,
        **on,
        num_keep=ops_case.num_keep,
        max_iters=ops_case.max_iters,
        impl="triton",
    )
    recorded = ops_case.tensors
    assert torch.equal(result.assignment.cpu(), recorded["roots"])
    present = recorded["counts"].gather(1, recorded["index"]) > 0
    for crop in range(len(result.features)):
        valid, expected = result.valid[crop].cpu(), present[crop]
        assert torch.equal(
            result.keep_indices[crop].cpu()[valid], recorded["index"][crop][expected]
        )
        torch.testing.assert_close(
            result.features[crop].cpu()[valid],
            recorded["selected"][crop][expected],
            atol=1e-5,
            rtol=0,
        )
