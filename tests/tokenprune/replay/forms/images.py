"""Forms that keep tokens of an image as they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from tokenprune import VisionTokens, get_method

from .. import Compared, Form, Recorded


def divprune(case: Recorded) -> Iterator[Compared]:
    features = case.given("features")[None]
    tokens = VisionTokens(features, (1, features.shape[1]))
    # What one token more of budget adds is what was chosen next.
    sets = [
        get_method("divprune").reduce(tokens, number + 1).keep_indices[0]
        for number in range(case.options["num_keep"])
    ]
    order = [now[~torch.isin(now, before)] for before, now in pairwise([sets[0][:0], *sets])]
    yield "kept", sets[-1], case.official("kept")
    yield "order", torch.cat(order), case.official("order")


def fastervlm(case: Recorded) -> Iterator[Compared]:
    features = case.given("features")[None]
    attention = case.given("cls_attention").mean(0, keepdim=True)
    tokens = VisionTokens(features, (1, features.shape[1]), attention=attention)
    result = get_method("fastervlm").reduce(tokens, case.options["visual_token_num"])
    yield "kept", result.keep_indices[0], case.official("kept")


FORMS: dict[str, Form] = {"divprune": divprune, "fastervlm": fastervlm}
