"""Forms that keep tokens of a video."""

from __future__ import annotations

from collections.abc import Iterator

from tokenprune import VisionTokens, get_method

from .. import Compared, Form, Recorded


def evs(case: Recorded) -> Iterator[Compared]:
    frames, height, width = case.options["video_size_thw"]
    rows, cols = (side // case.options["spatial_merge_size"] for side in (height, width))
    tokens = VisionTokens(case.given("features")[None], (rows, cols), frames=frames)
    total = frames * rows * cols
    num_keep = max(rows * cols, int(total * (1 - case.options["q"])))
    result = get_method("evs").reduce(tokens, num_keep)
    yield "kept", result.keep_indices[0], case.official("kept")


FORMS: dict[str, Form] = {"evs": evs}
