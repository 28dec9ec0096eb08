"""Forms that keep tokens of a video."""

from __future__ import annotations

from collections.abc import Iterator

from tokenprune import VisionTokens, get_method
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


FORMS: dict[str, Form] = {"evs": evs, "vidcom2": vidcom2}
