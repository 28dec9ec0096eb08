"""Forms that keep tokens of an image as they are."""

from __future__ import annotations

from collections.abc import Iterator

from tokenprune import VisionTokens, get_method

from .. import Compared, Form, Recorded


def divprune(case: Recorded) -> Iterator[Compared]:
    features = case.given("features")[None]
    tokens = VisionTokens(features, (1, features.shape[1]))
    result = get_method("divprune").reduce(tokens, case.options["num_keep"])
    yield "kept", result.keep_indices[0], case.official("kept")


def fastervlm(case: Recorded) -> Iterator[Compared]:
    features = case.given("features")[None]
    attention = case.given("cls_attention").mean(0, keepdim=True)
    tokens = VisionTokens(features, (1, features.shape[1]), attention=attention)
    result = get_method("fastervlm").reduce(tokens, case.options["visual_token_num"])
    yield "kept", result.keep_indices[0], case.official("kept")


FORMS: dict[str, Form] = {"divprune": divprune, "fastervlm": fastervlm}
