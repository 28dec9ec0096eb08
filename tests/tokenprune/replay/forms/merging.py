"""Forms that merge tokens of an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokenprune import ReducedTokens, VisionTokens, get_method, ops
from tokenprune.methods.prumerge import num_outliers

from .. import Compared, Form, Recorded


def slots_of(kept: Tensor, official: Tensor) -> Tensor:
    """Where each official token lies among ours, which ascend; somewhere if it is not there."""
    return torch.searchsorted(kept, official).clamp(0, len(kept) - 1)


def visionzip(case: Recorded) -> Iterator[Compared]:
    """The official order is class token, dominant tokens, contextual tokens."""
    hidden, keys = case.given("hidden")[None], case.given("keys")
    dominant, contextual = case.options["dominant"] - 1, case.options["contextual"]
    tokens = VisionTokens(
        hidden[:, 1:],
        (1, hidden.shape[1] - 1),
        cls=hidden[:, 0],
        attention=case.given("cls_attention").mean(0, keepdim=True)[:, 1:],
        keys=keys[:, 1:].transpose(0, 1).flatten(1)[None],
        num_heads=len(keys),
    )
    method = get_method(
        "visionzip",
        contextual_ratio=contextual / (dominant + contextual),
        official=True,
    )
    result = method.reduce(tokens, dominant + contextual)
    assert result.extra is not None  # the class token
    official = torch.cat([case.official("dominant"), case.official("targets")])
    yield "kept", result.keep_indices[0], official.sort().values
    yield "tokens", result.rows[0, result.order], case.official("tokens")


def tome(case: Recorded) -> Iterator[Compared]:
    """Round by round, each on the rows of the one before in the official order."""
    protected = int(case.options["class_token"])
    method = get_method("tome", compared="keys", class_token=bool(protected))
    features = case.given("features")
    sizes = torch.ones(len(features))
    row_of = torch.arange(len(features))  # of each original token
    for turn, merged in enumerate(case.options["r"]):
        num_tokens = len(features) - protected
        tokens = VisionTokens(
            features[None, protected:],
            (1, num_tokens),
            keys=case.given(f"metric{turn}")[None, protected:],
            sizes=sizes[None, protected:],
        )
        result = method.reduce(tokens, num_tokens - min(merged, num_tokens // 2))
        root = torch.cat([torch.arange(protected), result.assignment[0] + protected])
        ours = torch.cat([torch.arange(protected), result.keep_indices[0] + protected])
        # Rows have no number of their own here: a slot is where the official code put its root.
        official = case.official(f"assignment{turn}")
        place = torch.zeros_like(root).index_copy(0, row_of, official)
        row_of = place[root][row_of]
        yield f"assignment{turn}", row_of, official
        row_of, rows = (given.clamp(0, len(ours) - 1) for given in (row_of, place[ours]))
        features = torch.cat([features[:protected], result.features[0]])
        features = torch.zeros_like(features).index_copy(0, rows, features)
        sizes = torch.cat([sizes[:protected], result.scores[0].exp()])
        sizes = torch.zeros_like(sizes).index_copy(0, rows, sizes)
        yield f"tokens{turn}", features, case.official(f"tokens{turn}")
        yield f"sizes{turn}", sizes, case.official(f"sizes{turn}").flatten()


def prumerge(case: Recorded) -> Iterator[Compared]:
    """The official order is by attention, the row for the rest comes last."""
    hidden = case.given("hidden")[None]
    num_tokens = hidden.shape[1] - 1
    queries, keys = (case.given(name)[None, None] for name in ("queries", "keys"))  # one head
    attention = ops.cls_attention(queries, keys)[0, :, 1:]
    yield "attention", attention[0], case.official("cls_attention")
    tokens = VisionTokens(
        hidden[:, 1:],
        (1, num_tokens),
        attention=attention,
        single_head_attention=attention,
        keys=keys[0, :, 1:],
    )
    adaptive, ratio = case.options["if_adaptive"], case.options["reduction_ratio"]
    official = {"official": True}
    if not adaptive:
        official = {"compared": "keys", "neighbors": 32, "keep_rest": True}
    num_keep = num_tokens if adaptive else int(num_tokens * ratio)
    if case.method == "prumergeplus" and not adaptive:
        official["ratio"], num_keep = ratio, num_tokens
    result = get_method(case.method, **official).reduce(tokens, num_keep)
    if adaptive:
        ratio = int(num_outliers(attention)) / num_tokens
    yield "ratio", torch.tensor([ratio]), case.official("ratio")
    if adaptive:
        yield "kept", result.keep_indices, case.official("slots").sort().values
        rows = torch.cat([result.features, result.extra[0]])
        yield "tokens", rows[result.order], case.official("tokens")
    else:
        yield from rows_and_rest(result, case)


def rows_and_rest(result: ReducedTokens, case: Recorded) -> Iterator[Compared]:
    assert result.extra is not None
    kept = result.keep_indices.flatten()
    yield "kept", kept, case.official("slots").sort().values
    rows = result.features.flatten(0, -2)[slots_of(kept, case.official("slots"))]
    yield "tokens", torch.cat([rows, result.extra[0]]), case.official("tokens")


FORMS: dict[str, Form] = {
    "visionzip": visionzip,
    "tome": tome,
    "prumerge": prumerge,
    "prumergeplus": prumerge,
}
