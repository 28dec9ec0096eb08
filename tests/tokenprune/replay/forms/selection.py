"""Forms that keep tokens of an image as they are, by attention, similarity and relevance."""

from __future__ import annotations

from collections.abc import Iterator

import torch

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


def tower_tokens(case: Recorded) -> VisionTokens:
    """Features that are the tower's, and the class token's attention, of several heads."""
    features = case.given("features")[None]
    return VisionTokens(
        features,
        (1, features.shape[1]),
        attention=case.given("cls_attention").mean(0, keepdim=True),
        hidden_states={-2: features},
    )


def vispruner(case: Recorded) -> Iterator[Compared]:
    method = get_method("vispruner", important_ratio=case.options["important_ratio"])
    result = method.reduce(tower_tokens(case), case.options["visual_token_num"])
    yield "kept", result.keep_indices[0], case.official("kept")


def cdpruner(case: Recorded) -> Iterator[Compared]:
    projected = case.given("projected")[None]
    tokens = VisionTokens(
        projected,
        (1, projected.shape[1]),
        image_embeds=case.given("image_embeds")[None],
        text_embeds=case.given("text_embeds")[None],
    )
    result = get_method("cdpruner", text="joint").reduce(tokens, case.options["visual_token_num"])
    yield "kept", result.keep_indices[0], case.official("kept")


def scope(case: Recorded) -> Iterator[Compared]:
    result = get_method("scope", alpha=case.options["ALPHA"]).reduce(
        tower_tokens(case), case.options["num_selected_token"]
    )
    yield "kept", result.keep_indices[0], case.official("kept")
    order = result.scores[0].argsort(descending=True, stable=True)  # gains never grow
    yield "order", result.keep_indices[0, order], case.official("order")


def idpruner(case: Recorded) -> Iterator[Compared]:
    features, options = case.given("features")[None], case.options
    num_tokens = features.shape[1]
    tokens = VisionTokens(features, (1, num_tokens), attention=case.given("scores")[None])
    method = get_method(
        "idpruner", mmr_lambda=options["mmr_lambda"], parallel_k=options["parallel_k"]
    )
    result = method.reduce(tokens, round(num_tokens * (1 - options["ratio"])))
    yield "kept", result.keep_indices[0], case.official("kept")


def received_tokens(case: Recorded, objects: int, deep: int) -> VisionTokens:
    """The attention that tokens receive in two layers; the features do not matter."""
    received = {objects: case.given("shallow")[None], deep: case.given("deep")[None]}
    return VisionTokens(received[deep][:, :, None], tuple(case.options["grid"]), received=received)


def hiprune(case: Recorded) -> Iterator[Compared]:
    layer = case.options["HIPRUNE_OBJECT_LAYER"] - 1
    method = get_method("hiprune", alpha=case.options["HIPRUNE_ALPHA"], object_layer=layer)
    tokens = received_tokens(case, layer, method.deep_layer)
    result = method.reduce(tokens, case.options["HIPRUNE_RETENTION"])
    yield "kept", result.keep_indices[0], case.official("kept")


def hipruneqwen(case: Recorded) -> Iterator[Compared]:
    alpha = case.options["HIPRUNE_ALPHA"]
    method = get_method("hiprune", alpha=alpha, object_layer=15, deep_layer=-1, official=True)
    tokens = received_tokens(case, method.object_layer, method.deep_layer)
    num_tokens = tokens.features.shape[1]
    result = method.reduce(tokens, round(num_tokens * case.options["HIPRUNE_QWEN_RETENTION"]))
    yield "kept", result.keep_indices, case.official("kept")


def globalcom2(case: Recorded) -> Iterator[Compared]:
    options, thumbnail = case.options, case.given("thumbnail_scores")[None]
    tokens = VisionTokens(
        case.given("features"),
        (options["side"], options["side"]),
        cls_logits=torch.cat([thumbnail, case.given("crop_scores")]),
    )
    method = get_method(
        "globalcom2",
        crop_grid=(options["num_patch_height"], options["num_patch_width"]),
        ratio=options["retention_ratio"],
    )
    kept = method.reduce(tokens, 1)  # `ratio` stands for the budget
    crops = kept.keep_indices.split(kept.cu_seqlens.diff().tolist())
    names = ["thumbnail_kept", *(f"crop{number}_kept" for number in range(len(crops) - 1))]
    for name, indices in zip(names, crops, strict=True):
        yield name, indices, case.official(name)
    yield "scales", method.shares(tokens, 1).float(), case.official("scales")


FORMS: dict[str, Form] = {
    "cdpruner": cdpruner,
    "holov": holov,
    "globalcom2": globalcom2,
    "hiprune": hiprune,
    "hipruneqwen": hipruneqwen,
    "idpruner": idpruner,
    "scope": scope,
    "vispruner": vispruner,
}
