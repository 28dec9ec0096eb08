"""Forms that keep tokens of a video."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenprune import VisionTokens, get_method
from tokenprune.methods.flashvid import FlashVID
from tokenprune.methods.vidcom2 import frame_shares, similarities

from .. import Compared, Form, Recorded


def evs(case: Recorded) -> Iterator[Compared]:
    frames, height, width = case.options["video_size_thw"]
    rows, cols = (side // case.options["spatial_merge_size"] for side in (height, width))
    tokens = VisionTokens(case.given("features")[None], (rows, cols), frames=frames)
    total = frames * rows * cols
    num_keep = max(rows * cols, int(total * (1 - case.options["q"])))
    result = get_method("evs").reduce(tokens, num_keep)
    yield "kept", result.keep_indices[0], case.official("kept")


def vidcom2(case: Recorded) -> Iterator[Compared]:
    features, frames = case.given("features")[None], case.options["frames"]
    ratio = case.options["base_scale"]
    tokens = VisionTokens(features, (1, case.options["frame_token_len"]), frames=frames)
    result = get_method("vidcom2", ratio=ratio).reduce(tokens, features.shape[1])
    to_video, to_frame = similarities(tokens)
    yield "score", (to_video + to_frame).flatten(), case.official("score")
    yield "scales", frame_shares(to_video, ratio)[0], case.official("scales")
    yield "kept", result.keep_indices, case.official("kept")


def flashvid(case: Recorded) -> Iterator[Compared]:
    """An index that the official code gives twice has an extra row here."""
    features, options = case.given("features"), case.options
    frames, places, _ = features.shape
    tokens = VisionTokens(
        features.flatten(0, 1)[None],
        (1, places),
        attention=case.given("cls_attention").flatten()[None],
        frames=frames,
    )
    method = FlashVID(ratio=options["retention_ratio"], min_segments=options["min_segment_num"])
    lengths = torch.tensor(method.segments(features))
    yield "segment_lengths", lengths, case.official("segment_lengths")
    result = method.reduce(tokens, frames * places)
    kept, official = result.keep_indices, case.official("indices")
    yield "kept", kept, official.unique()
    theirs = case.official("tokens")
    first = torch.searchsorted(official, kept).clamp(max=len(theirs) - 1)
    last = (torch.searchsorted(official, kept, right=True) - 1).clamp(min=0)
    far_first, far_last = ((theirs[end] - result.features).abs().amax(1) for end in (first, last))
    slots = torch.where(far_first <= far_last, first, last)
    left = torch.ones(len(theirs), dtype=torch.bool).index_fill(0, slots, False)
    yield "tokens", result.features, theirs[slots]
    extra = result.features[:0] if result.extra is None else result.extra[0]
    yield "repeated", extra, theirs[left]


FORMS: dict[str, Form] = {"evs": evs, "vidcom2": vidcom2, "flashvid": flashvid}
