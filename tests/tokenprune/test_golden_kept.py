"""Methods that only keep tokens, beside what their official code kept."""

from __future__ import annotations

import pytest
import torch

from tokenprune import VisionTokens, get_method

from .test_golden_methods import recorded


@pytest.mark.parametrize("case", ["n64_r0.1", "n144_r0.25", "n576_r0.098"])
def test_divprune_as_published(golden, case):
    tensors, options = recorded(golden, f"divprune_{case}")
    features = tensors["in.features"][None]
    tokens = VisionTokens(features, (1, features.shape[1]))
    result = get_method("divprune").reduce(tokens, options["num_keep"])
    assert torch.equal(result.keep_indices[0], tensors["out.kept"])


@pytest.mark.parametrize("case", ["n64_k16", "n576_k64"])
def test_fastervlm_as_published(golden, case):
    tensors, options = recorded(golden, f"fastervlm_{case}")
    features, attention = tensors["in.features"][None], tensors["in.cls_attention"]
    tokens = VisionTokens(
        features, (1, features.shape[1]), attention=attention.mean(0, keepdim=True)
    )
    result = get_method("fastervlm").reduce(tokens, options["visual_token_num"])
    assert torch.equal(result.keep_indices[0], tensors["out.kept"])


@pytest.mark.parametrize("case", ["n64_m1_k8", "n144_m3_k40"])
def test_the_official_relevance_of_cdpruner_is_what_is_unlike_the_text(golden, case):
    from tokenprune.methods.cdpruner import stretched, text_likeness

    tensors, _ = recorded(golden, f"cdpruner_{case}")
    alike = text_likeness(tensors["in.image_embeds"][None], tensors["in.text_embeds"][None])
    expected = tensors["out.relevance"]
    torch.testing.assert_close(stretched(-alike)[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(1 - stretched(alike)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["f3_t64_q0.9", "f4_t64_q0.5", "f8_t48_q0.8"])
def test_evs_as_published(golden, case):
    tensors, options = recorded(golden, f"evs_{case}")
    frames, height, width = options["video_size_thw"]
    merge = options["spatial_merge_size"]
    grid_size = (height // merge, width // merge)
    tokens = VisionTokens(tensors["in.features"][None], grid_size, frames=frames)
    a_frame, total = grid_size[0] * grid_size[1], tensors["in.features"].shape[0]
    num_keep = max(a_frame, int(total * (1 - options["q"])))
    assert num_keep == len(tensors["out.kept"])
    result = get_method("evs").reduce(tokens, num_keep)
    assert torch.equal(result.keep_indices[0], tensors["out.kept"])
    if num_keep > a_frame:  # else the first frame is all there is
        backwards = VisionTokens(tensors["in.features"].flip(0)[None], grid_size, frames=frames)
        other = get_method("evs").reduce(backwards, num_keep).keep_indices[0]
        assert not torch.equal(other, tensors["out.kept"])
