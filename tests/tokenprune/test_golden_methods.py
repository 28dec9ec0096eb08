"""Methods beside what their official code recorded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from tokenprune import VisionTokens, get_method

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def recorded(golden, name):
    with safe_open(golden / "methods" / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["options"])


@pytest.mark.parametrize("case", ["n64_d13_c3", "n144_d27_c5", "n576_d54_c10"])
def test_visionzip_as_published(golden, case):
    """The official order is class token, dominant tokens, contextual tokens."""
    tensors, options = recorded(golden, f"visionzip_{case}")
    hidden, keys = tensors["in.hidden"][None], tensors["in.keys"]
    side = int((hidden.shape[1] - 1) ** 0.5)
    tokens = VisionTokens(
        hidden[:, 1:],
        (side, side),
        cls=hidden[:, 0],
        attention=tensors["in.cls_attention"].mean(0, keepdim=True)[:, 1:],
        keys=keys[:, 1:].transpose(0, 1).flatten(1)[None],
        num_heads=len(keys),
    )
    num_contextual = options["contextual"]
    num_keep = options["dominant"] - 1 + num_contextual  # the class token is extra here
    method = get_method(
        "visionzip",
        contextual_ratio=num_contextual / num_keep,
        compared="keys",
        merging="sum",
        keep_cls=True,
    )
    result = method.reduce(tokens, num_keep)
    dominant, targets = tensors["out.dominant"], tensors["out.targets"]
    assert result.keep_indices[0].tolist() == sorted([*dominant.tolist(), *targets.tolist()])
    slots = {token: slot for slot, token in enumerate(result.keep_indices[0].tolist())}
    order = [slots[token] for token in (*dominant.tolist(), *targets.tolist())]
    official = torch.cat([result.extra[0], result.features[0, order]])
    torch.testing.assert_close(official, tensors["out.tokens"], **TOLERANCE)
    assert method.count(side * side, num_keep) == len(tensors["out.tokens"])


@pytest.mark.parametrize("case", ["n64_r16", "n144_r72"])
def test_tome_of_one_round(golden, case):
    """The keys come as their mean over heads, and the tokens in another order."""
    tensors, options = recorded(golden, f"tome_{case}")
    features, (merged,) = tensors["in.features"][None], options["r"]
    num_tokens = features.shape[1]
    tokens = VisionTokens(features, (1, num_tokens), keys=tensors["in.metric0"][None])
    result = get_method("tome", compared="keys").reduce(tokens, num_tokens - merged)
    slots = {token: slot for slot, token in enumerate(result.keep_indices[0].tolist())}
    ours = torch.tensor([slots[root] for root in result.assignment[0].tolist()])
    official = tensors["out.assignment0"]
    pairs = {*zip(ours.tolist(), official.tolist(), strict=True)}
    assert len(pairs) == num_tokens - merged  # one row of ours for each of theirs
    for slot, row in pairs:
        torch.testing.assert_close(
            result.features[0, slot], tensors["out.tokens0"][row], **TOLERANCE
        )
        assert result.counts[0, slot] == tensors["out.sizes0"].flatten()[row]


def test_departures_that_options_lift():
    assert get_method("tome", compared="keys").approximates == (
        "after the tower, not inside its layers"
    )
    with pytest.raises(ValueError, match=r"ToMe needs VisionTokens\.keys, got"):
        get_method("tome", compared="keys").reduce(VisionTokens(torch.zeros(1, 4, 8), (2, 2)), 2)
    with pytest.raises(ValueError, match="compared must be 'features' or 'keys', got 'values'"):
        get_method("tome", compared="values")


@pytest.mark.parametrize("case", ["n144_0.125", "n144_adaptive", "n576_adaptive"])
def test_prumerge_as_published(golden, case):
    """The official order is by attention, the row for the rest comes last."""
    tensors, _ = recorded(golden, f"prumerge_{case}")
    hidden, slots = tensors["in.hidden"][None], tensors["out.slots"].tolist()
    side = int((hidden.shape[1] - 1) ** 0.5)
    tokens = VisionTokens(
        hidden[:, 1:],
        (side, side),
        attention=tensors["out.cls_attention"][None],
        keys=tensors["in.keys"][None, 1:],
        num_heads=4,
    )
    method = get_method("prumerge", compared="keys", neighbors=32, keep_rest=True)
    result = method.reduce(tokens, len(slots))
    assert result.keep_indices[0].tolist() == sorted(slots)
    order = [result.keep_indices[0].tolist().index(token) for token in slots]
    official = torch.cat([result.features[0, order], result.extra[0]])
    torch.testing.assert_close(official, tensors["out.tokens"], **TOLERANCE)
    assert method.count(side * side, len(slots)) == len(tensors["out.tokens"])
    if case.endswith("adaptive"):
        method = get_method(
            "prumerge", compared="keys", neighbors=32, keep_rest=True, adaptive=True
        )
        found = method.reduce(tokens, side * side)
        assert found.cu_seqlens.tolist() == [0, len(slots)]
        assert torch.equal(found.keep_indices, result.keep_indices[0])
        assert torch.equal(found.features, result.features[0])
        assert torch.equal(found.extra, result.extra)
