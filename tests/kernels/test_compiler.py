"""The operators as torch.compile and its checks see them."""

from __future__ import annotations

import pytest
import torch

from tests.tokenprune.cases import anchor_of, head_of, make_inputs
from tokenprune import ops
from tokenprune.ops.anchored_select import op as anchored_select
from tokenprune.ops.attention_received import op as attention_received
from tokenprune.ops.background_anchored import op as background_anchored
from tokenprune.ops.background_merge import op as background_merge
from tokenprune.ops.background_score import op as background_score
from tokenprune.ops.cls_attention import op as cls_attention
from tokenprune.ops.cluster_mean import op as cluster_mean
from tokenprune.ops.greedy_select import op as greedy_select
from tokenprune.ops.most_similar import op as most_similar

from .test_parity import DEVICE, on_device


def samples():
    torch.manual_seed(0)
    features = torch.randn(2, 13, 16, device=DEVICE)[:, 1:].requires_grad_()
    anchors = torch.randn(2, 16, device=DEVICE, requires_grad=True)
    offsets = torch.randn(2, device=DEVICE, requires_grad=True)
    taps = torch.randn(81, 16, device=DEVICE, requires_grad=True)
    bias = torch.randn(9, device=DEVICE, requires_grad=True)
    roots = torch.randint(0, 12, (2, 12), device=DEVICE)
    kept = torch.tensor([[1, 4, 11], [0, 2, 3]], device=DEVICE)
    cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32, device=DEVICE)
    heads = torch.randn(2, 3, 12, 16, device=DEVICE)
    weights = torch.rand(2, 12, device=DEVICE)
    return {
        "background_score": (background_score._background_score, (features, taps, bias, 3, 4)),
        "background_score_bwd": (
            background_score._background_score_bwd,
            (torch.randn(2, 12, 9, device=DEVICE), taps.detach(), 3, 4),
        ),
        "background_merge": (
            background_merge._background_merge,
            (torch.randn(2, 12, 9, device=DEVICE), 3, 4, 12, "official"),
        ),
        "anchored_select": (
            anchored_select._anchored_select,
            (features, anchors, offsets, roots, 5, None, 10),
        ),
        "anchored_select, ragged": (
            anchored_select._anchored_select,
            (features, anchors, offsets, roots, 0, cu_seqlens, 8),
        ),
        "cluster_mean": (cluster_mean._cluster_mean, (features, roots, kept, None)),
        "cluster_mean, weighted": (
            cluster_mean._cluster_mean,
            (features, roots, kept, roots.float()),
        ),
        "cluster_mean_bwd": (
            cluster_mean._cluster_mean_bwd,
            (roots, roots.clamp(max=7), torch.randn(8, 16, device=DEVICE), None, features.detach()),
        ),
        "background_anchored": (
            background_anchored._background_anchored,
            (features, anchors, offsets, taps, bias, 3, 4, 5, None, 10, 12, "merge"),
        ),
        "cls_attention": (cls_attention._cls_attention, (heads, heads, 0.25)),
        "attention_received": (attention_received._attention_received, (heads, heads, 0.25)),
        **{
            f"{operator._name}, {objective}": (
                operator,
                (
                    features.detach(),
                    given,
                    objective,
                    5,
                    0.5,
                    parallel_k,
                ),
            )
            for operator in (greedy_select._greedy_order, greedy_select._reference_order)
            for objective, given, parallel_k in (
                ("max_min", None, 1),
                ("dpp", weights, 1),
                ("coverage", weights, 1),
                ("mmr", weights, 2),
            )
        },
        "most_similar": (
            most_similar._most_similar,
            (features.detach()[:, ::2], features.detach()[:, 1::2]),
        ),
    }


@pytest.mark.parametrize("name", samples())
def test_opcheck(name):
    operator, arguments = samples()[name]
    torch.library.opcheck(operator, arguments)


def count_compilations(function):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend), graphs


def test_one_graph_for_every_batch():
    inputs = on_device(make_inputs(2, (3, 4), 16, 5))

    def run(features, cls):
        result = ops.background_anchored(
            **(inputs | {"features": features, "cls": cls}), impl="triton"
        )
        return result.features, result.keep_indices, result.scores

    compiled, graphs = count_compilations(run)
    for batch in (2, 3, 4, 6):
        tokens = torch.randn(batch, 13, 16, device=DEVICE)
        got = compiled(tokens[:, 1:], tokens[:, 0])
        for value, expected in zip(got, run(tokens[:, 1:], tokens[:, 0]), strict=True):
            torch.testing.assert_close(value, expected)
    assert len(graphs) <= 2  # one for the first batch, one for any


def test_the_single_operators_compile_whole():
    inputs = on_device(make_inputs(2, (3, 4), 16, 5))

    def run(features):
        head, anchor = ops.AffinityHead(*head_of(inputs)), ops.Anchor(*anchor_of(inputs))
        logits = ops.background_score(features, (3, 4), head, impl="triton")
        roots = ops.background_merge(logits, (3, 4), impl="triton")
        result = ops.anchored_select(
            features, inputs["cls"], roots, anchor=anchor, num_keep=5, impl="triton"
        )
        heads = features[:, None]
        return (
            result.features,
            ops.cluster_mean(features, roots, roots[:, :0], impl="triton"),
            ops.max_min_select(features, 5, impl="triton").features,
            *(ops.dpp_select(features, 5, impl=impl).features for impl in ("triton", "reference")),
            ops.coverage_select(features, 5, impl="triton").features,
            ops.mmr_select(features, 5, features[..., 0], impl="triton").features,
            *ops.most_similar(features, inputs["cls"][:, None], impl="triton"),
            ops.cls_attention(heads, heads, impl="triton"),
            ops.attention_received(heads, heads, impl="triton"),
        )

    compiled, graphs = count_compilations(run)
    for value, expected in zip(compiled(inputs["features"]), run(inputs["features"]), strict=True):
        torch.testing.assert_close(value, expected)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(1, 4097, 16)}, ValueError, "at most 4096 tokens, got 4097"),
        ({"features": torch.zeros(1, 4, 16).double()}, TypeError, "got torch.float64"),
    ],
)
def test_what_triton_does_not_take(change, error, message):
    features = change["features"].to(DEVICE)
    _, num_tokens, width = features.shape
    inputs = on_device(make_inputs(1, (1, num_tokens), width, 1)) | {
        "features": features,
        "cls": torch.zeros(1, width, device=DEVICE),
    }
    with pytest.raises(error, match=message):
        ops.background_anchored(**inputs, impl="triton")
    ops.background_anchored(**inputs, impl="auto")  # takes the reference


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    inputs = make_inputs(1, (2, 2), 16, 2)
    heads = torch.zeros(1, 1, 4, 16)
    for call in (
        lambda: ops.background_anchored(**inputs, impl="triton"),
        lambda: ops.background_score(inputs["features"], (2, 2), *head_of(inputs), impl="triton"),
        lambda: ops.background_merge(torch.zeros(1, 4, 9), (2, 2), impl="triton"),
        lambda: ops.anchored_select(
            inputs["features"],
            inputs["cls"],
            torch.zeros(1, 4).long(),
            *anchor_of(inputs),
            2,
            impl="triton",
        ),
        lambda: ops.cls_attention(heads, heads, impl="triton"),
        lambda: ops.attention_received(heads, heads, impl="triton"),
        lambda: ops.max_min_select(inputs["features"], 2, impl="triton"),
        lambda: ops.dpp_select(inputs["features"], 2, impl="triton"),
        lambda: ops.coverage_select(inputs["features"], 2, impl="triton"),
        lambda: ops.mmr_select(inputs["features"], 2, inputs["features"][..., 0], impl="triton"),
        lambda: ops.most_similar(inputs["features"], inputs["features"], impl="triton"),
        lambda: ops.bipartite_merge(inputs["features"], 2, impl="triton"),
        lambda: ops.cluster_mean(
            inputs["features"], torch.zeros(1, 4).long(), torch.zeros(1, 1).long(), impl="triton"
        ),
    ):
        with pytest.raises(ValueError, match="expects tensors on a CUDA device, got cpu"):
            call()


@pytest.mark.parametrize("operator", [ops.cls_attention, ops.attention_received])
def test_bad_queries_and_keys(operator):
    q = torch.zeros(1, 2, 4, 16)
    for k, error, message in (
        (torch.zeros(1, 2, 5, 16), ValueError, "same shape"),
        (torch.zeros(2, 4, 16), ValueError, r"k must be \[B, H, N, d\]"),
        (torch.zeros(1, 2, 4, 16).long(), TypeError, "k must be floating point"),
        (torch.zeros(1, 2, 4, 16).half(), TypeError, "same dtype"),
        (torch.zeros(1, 2, 4, 16, device="meta"), ValueError, "k must be on cpu"),
    ):
        with pytest.raises(error, match=message):
            operator(q, k)
    wanted = q.to(DEVICE).requires_grad_()
    with pytest.raises(NotImplementedError, match="has no backward"):
        operator(wanted, wanted, impl="triton")
    operator(wanted, wanted, impl="reference").sum().backward()
    with torch.no_grad():
        operator(wanted, wanted, impl="triton")
