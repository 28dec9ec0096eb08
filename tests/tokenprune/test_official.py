"""Official forms that take what the tower computes, in models: as their papers have it.

What a plain run of the tower gives, by its eager attention, goes through a plain writing of the
paper; what a method keeps in a model must be that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.attention import AttentionReader

from .families.proof import BATCH, ONE, second_turn
from .hosts import HOSTS, IMAGE, Host
from .plain_tower import in_crops, queries_and_keys, received
from .test_apply import logits_of

OBJECTS, DEEP = {"llava": 0, "llava_next": 0, "qwen2_5_vl": -1}, {"qwen2_5_vl": -2}
HIPRUNE = ("llava", "llava_next", "qwen2_5_vl")


@functools.cache
def build(name: str) -> Host:
    torch.manual_seed(0)
    return HOSTS[name]()


def packed(
    host: Host, inputs: dict[str, Any], image: int, of_crops: Tensor, newline: int
) -> Tensor:
    """[crops, N] -> one number for each token of an image, `newline` for newline tokens."""
    if host.model_type != "llava_next":
        return of_crops[0]
    pack = host.model.model.pack_image_features
    size = [inputs["image_sizes"][image].tolist()]
    crops = of_crops[:, :, None].float()
    return pack([crops], size, "default", torch.tensor([float(newline)]))[0][0][:, 0]


def grid_of(host: Host, inputs: dict[str, Any], image: int) -> tuple[int, int]:
    """(rows, cols) of a crop's tokens."""
    if host.model_type != "qwen2_5_vl":
        return 4, 4
    _, rows, cols = inputs["image_grid_thw"][image].tolist()
    return rows // 2, cols // 2


def kept_in(host: Host, inputs: dict[str, Any], method: Any, budget: int) -> list[list[int]]:
    """For each image the tokens that remain in the model."""
    with tokenprune.apply(host.model, method, num_keep=budget) as handle:
        logits_of(host, inputs)
        kept = [int(token) for token in handle.kept_positions[0]]
        counts = handle.report()
    marks = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    images = []
    for number, length in enumerate(counts.tokens_before):
        places = {place: token for token, place in enumerate(marks[:length])}
        images.append([places[place] for place in kept if place in places])
        assert len(images[-1]) == counts.tokens_after[number]
        marks = marks[length:]
    return images


# -- the papers, plainly ------------------------------------------------------------------------


def hiprune(objects: Tensor, deep: Tensor, cols: int, alpha: float, num_keep: int) -> set[int]:
    """The official selection, of [N] each; sums over queries do not exclude what is taken."""
    anchors = objects.topk(round(num_keep * alpha / 5)).indices.tolist()
    around = {a + step for a in anchors for step in (0, -1, 1, -cols, cols)}
    first = {min(max(place, 0), len(objects) - 1) for place in around}
    deep = deep.clone()
    deep[sorted(first)] -= 1
    return first | set(deep.topk(max(num_keep - len(first), 0)).indices.tolist())


def hiprune_of(host: Host, inputs: dict[str, Any], method: Any, budget: int) -> list[list[int]]:
    read = queries_and_keys(host, inputs)
    objects, deep = (
        in_crops(host, inputs, received(read[layer]))
        for layer in (method.object_layer, method.deep_layer)
    )
    images = []
    for image, (by_object, by_depth) in enumerate(zip(objects, deep, strict=True)):
        share = budget // len(by_object)
        cols = grid_of(host, inputs, image)[1]
        marks = torch.zeros_like(by_object)
        for crop in range(len(marks)):
            kept = hiprune(by_object[crop], by_depth[crop], cols, method.alpha, share)
            marks[crop, sorted(kept)] = 1
        images.append(packed(host, inputs, image, marks, newline=1).nonzero()[:, 0].tolist())
    return images


def globalcom2_of(host: Host, inputs: dict[str, Any], method: Any, budget: int) -> list[list[int]]:
    calls = queries_and_keys(host, inputs)[-1]
    logits = torch.cat([(query[:, :, :1] @ key.mT)[:, :, 0].mean(1) for query, key in calls])
    images = []
    for image, scores in enumerate(in_crops(host, inputs, logits)):
        ratio = (budget // len(scores)) / 16
        marks = torch.zeros_like(scores)
        marks[0, scores[0].topk(int(16 * ratio)).indices] = 1
        tokens = packed(host, inputs, image, torch.arange(scores.numel()).view_as(scores), -1)
        shown = torch.zeros(scores.numel(), dtype=torch.bool)
        shown[tokens[tokens >= 0].long()] = True
        shown = shown.view(-1, 4, 4)[1:]
        rows, cols = {2: (1, 2), 4: (2, 2)}[len(shown)]
        if inputs["image_sizes"][image][0] > inputs["image_sizes"][image][1] and len(shown) == 2:
            rows, cols = cols, rows
        boxes = [tile.nonzero() for tile in shown]
        high = [len({int(y) for y, _ in box}) for box in boxes]
        wide = [len({int(x) for _, x in box}) for box in boxes]
        thumbnail = scores[0].view(1, 1, 4, 4)
        size = sum(high[::cols]), sum(wide[:cols])
        enlarged = functional.interpolate(thumbnail, size, mode="bilinear")[0, 0]
        weights = torch.stack(
            [
                thumbnail[0, 0, 4 // rows * r : 4 // rows * (r + 1)][
                    :, 4 // cols * c : 4 // cols * (c + 1)
                ].sum()
                for r in range(rows)
                for c in range(cols)
            ]
        )
        shares = (weights.double() / 10).softmax(0)
        shares = (ratio * (1 + shares - shares.mean())).clamp(max=1)
        for tile in range(len(shown)):
            row, col = divmod(tile, cols)
            top, left = sum(high[: row * cols : cols]), sum(wide[:col])
            part = enlarged[top : top + high[tile], left : left + wide[tile]].flatten()
            own = scores[1 + tile][shown[tile].flatten()]
            both = functional.normalize(own, dim=0) + functional.normalize(part, dim=0)
            best = both.topk(int(len(own) * float(shares[tile]))).indices
            marks[1 + tile, shown[tile].flatten().nonzero()[:, 0][best]] = 1
        images.append(packed(host, inputs, image, marks, newline=1).nonzero()[:, 0].tolist())
    return images


# -- what is kept ---------------------------------------------------------------------------------


def hiprune_for(name: str, **options: Any) -> Any:
    layers = {"object_layer": OBJECTS[name], "deep_layer": DEEP.get(name, -2)}
    return get_method("hiprune", **layers, alpha=0.5, **options)


CASES: dict[str, tuple[str, Callable[[], Any], Any, int]] = {
    **{
        f"hiprune of {name}": (
            name,
            functools.partial(hiprune_for, name, official=True),
            hiprune_of,
            30 if name == "llava_next" else 8,
        )
        for name in HIPRUNE
    },
    "globalcom2 of llava_next": ("llava_next", lambda: get_method("globalcom2"), globalcom2_of, 32),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_keeps_what_the_paper_says(case):
    name, build_method, paper, budget = CASES[case]
    host, method = build(name), build_method()
    prompt = [[3, 0, 4, 0, 5] + [0] * (name != "qwen2_5_vl")]  # whose third image is too small
    for seed in range(3):
        inputs = host.inputs(prompt, seed=seed)
        kept = kept_in(host, inputs, method, budget)
        assert kept == paper(host, inputs, method, budget)
        assert all(kept)


@pytest.mark.parametrize("case", CASES)
def test_reading_something_else_is_noticed(case, monkeypatch):
    """A planted fault: the attention of the last query, for the sum over all, or for logits."""
    name, build_method, paper, budget = CASES[case]
    host, method = build(name), build_method()
    inputs = host.inputs(ONE)
    monkeypatch.setattr(
        AttentionReader,
        "_by_head",
        lambda self, name, query, key, scale: (query[:, :, -1:] @ key.mT).softmax(-1)[:, :, 0],
    )
    assert kept_in(host, inputs, method, budget) != paper(host, inputs, method, budget)


@pytest.mark.parametrize("name", HIPRUNE)
def test_hiprune_keeps_its_budget_where_it_is_not_official(name):
    host, method = build(name), hiprune_for(name)
    inputs = host.inputs(ONE)
    with tokenprune.apply(host.model, method, num_keep=7) as handle:
        logits_of(host, inputs)
        assert handle.report().tokens_after == [7, 7]
        assert handle.retained_count(host.sizes(inputs)) == [7, 7]


# -- it is the whole model with the others masked -------------------------------------------------


@pytest.mark.parametrize("rows", [ONE, BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_masked_model(case, rows):
    name, build_method, _, _ = CASES[case]
    host = build(name)
    inputs = host.inputs(rows)
    report = tokenprune.verify(host.model, inputs, method=build_method(), keep_ratio=0.5)
    assert report.ok, report
    assert report.tokens_after < report.tokens_before


@pytest.mark.parametrize("case", CASES)
def test_a_second_turn_is_the_masked_model(case):
    name, build_method, _, _ = CASES[case]
    second_turn(build(name), BATCH, build_method)


# -- said and refused -----------------------------------------------------------------------------


def test_a_number_that_depends_on_the_image_is_not_foretold():
    for name in ("hiprune", "globalcom2"):
        options = {"object_layer": 0, "official": True} if name == "hiprune" else {}
        method = get_method(name, **options)
        with (
            tokenprune.apply(build("llava_next").model, method, keep_ratio=0.5) as handle,
            pytest.raises(NotImplementedError, match="keeps depends on the image"),
        ):
            handle.retained_count([(100, 90)])


@pytest.mark.parametrize("name", ["internvl", "llava_onevision", "idefics3"])
def test_hosts_that_do_not_say_which_crops_are_one_images_refuse(name):
    method = get_method("hiprune", object_layer=0, official=True)
    with pytest.raises(NotImplementedError, match="HiPrune shares an image's budget over"):
        tokenprune.apply(build(name).model, method, keep_ratio=0.5)


@pytest.mark.parametrize("name", ["paligemma", "qwen2_5_vl"])
def test_towers_without_a_class_token_have_no_logits_of_one(name):
    with pytest.raises(NotImplementedError, match="GlobalCom2 needs cls_logits"):
        tokenprune.apply(build(name).model, "globalcom2", keep_ratio=0.5)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="HiPrune needs received of layer 8, CLIPVision"):
        tokenprune.apply(build("llava").model, "hiprune", keep_ratio=0.5)
