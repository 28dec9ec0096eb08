"""Forms that keep tokens of an image as they are, by attention, similarity and relevance."""

from __future__ import annotations

from collections.abc import Iterator

from tokenprune import VisionTokens, get_method

from .. import Compared, Form, Recorded


def holov(case: Recorded) -> Iterator[Compared]:
    features = case.given("features")[None]
    tokens = VisionTokens(features, (1, features.shape[1]), attention=case.given("attention")[None])
    method = get_method("holov", num_windows=case.options["num_patches"], official=True)
    result = method.reduce(tokens, case.options["new_image_token_num"])
    kept = result.keep_indices.masked_fill(~result.valid, -1)[0]  # as the official rows of zeros
    yield "kept", kept[kept >= 0], case.official("kept")
    yield "rows", kept.sort().values, case.official("order").sort().values


FORMS: dict[str, Form] = {"holov": holov}
