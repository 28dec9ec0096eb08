"""Official forms that take what the tower computes, in models: as their papers have it.

What a plain run of the tower gives, by its eager attention, goes through a plain writing of the
paper; what a method keeps in a model must be that.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.attention import AttentionReader
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.tower_of_host import TowerOfHost, self_attention_of, tower_layers
from tokenprune.ops import cls_attention

from .families.proof import ASKED, BATCH, NEW, ONE, second_turn, two_turns, words_of_two_turns
from .hosts import HOSTS, IMAGE, TEXT, TOWER, Host, fixed
from .test_apply import logits_of

OF_PROMPT = ("input_ids", "attention_mask", "mm_token_type_ids")
OBJECTS, DEEP = {"llava": 0, "llava_next": 0, "qwen2_5_vl": -1}, {"qwen2_5_vl": -2}
HIPRUNE = ("llava", "llava_next", "qwen2_5_vl")


@functools.cache
def build(name: str) -> Host:
    torch.manual_seed(0)
    return HOSTS[name]()


# -- a plain run of the tower -------------------------------------------------------------------


def queries_and_keys(host: Host, inputs: dict[str, Any]) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Of each layer, [crops, H, N, d] scaled queries, and keys, call by call."""
    adapter = find_adapter(host.model)
    attentions = [self_attention_of(layer) for layer in tower_layers(adapter.vision_tower)]
    module = sys.modules[type(attentions[0]).__module__]
    eager = module.eager_attention_forward
    read: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def reading(layer: Any, query: Tensor, key: Tensor, *args: Any, scaling: float, **more: Any):
        number = next(n for n, one in enumerate(attentions) if one is layer)
        read.setdefault(number, []).append((query * scaling, key))
        return eager(layer, query, key, *args, scaling=scaling, **more)

    images = {name: value for name, value in inputs.items() if name not in OF_PROMPT}
    with in_eager(host), mock.patch.object(module, "eager_attention_forward", reading):
        host.model.base_model.get_image_features(**images, return_dict=True)
    return {n - layers: read[n] for layers in (0, len(attentions)) for n in read}


@contextmanager
def in_eager(host: Host) -> Iterator[None]:
    former = host.model.config._attn_implementation
    host.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            yield
    finally:
        host.model.set_attn_implementation(former)


def received(calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    """[crops, N], or [1, all patches]: sum over queries, mean over heads."""
    parts = [(query @ key.mT).softmax(-1).sum(2).mean(1) for query, key in calls]
    return torch.cat(parts, 0 if len(parts[0]) > 1 else 1)


def num_crops(host: Host, inputs: dict[str, Any]) -> list[int]:
    """Of each image."""
    if host.model_type != "llava_next":
        return [1] * len(host.sizes(inputs))
    return [int(pixels.flatten(1).any(1).sum()) for pixels in inputs["pixel_values"]]


def in_crops(host: Host, inputs: dict[str, Any], of_patches: Tensor) -> list[Tensor]:
    """For each image [crops, N], without class tokens, tokens in raster order."""
    if host.model_type != "qwen2_5_vl":
        return list(of_patches[:, 1:].split(num_crops(host, inputs)))
    adapter = find_adapter(host.model)
    sizes = host.sizes(inputs)
    order = adapter.window_order(sizes, torch.device("cpu"))
    in_raster = of_patches[0].unflatten(0, (-1, 4)).mean(1)[order.argsort()]
    return [one[None] for one in in_raster.split([rows * cols // 4 for _, rows, cols in sizes])]


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


# -- before the projector: the papers' rows -------------------------------------------------------


@dataclass
class Plain:
    """A plain run of the tower on one image.

    Attributes:
        states: [crops, 1 + N, D], what the projector takes, the class token first.
        calls: of each layer the scaled queries and the keys, [crops, H, 1 + N, d].
        tiles: (rows, cols) of the crops after the first.
    """

    states: Tensor
    calls: dict[int, tuple[Tensor, Tensor]]
    tiles: tuple[int, int]


def plain_images(host: Host, inputs: dict[str, Any]) -> list[Plain]:
    calls = {layer: call for layer, (call,) in queries_and_keys(host, inputs).items()}
    counts, pixels = num_crops(host, inputs), inputs["pixel_values"]
    if pixels.ndim == 5:
        pixels = torch.cat([one[:count] for one, count in zip(pixels, counts, strict=True)])
    with torch.no_grad():
        output = host.model.model.vision_tower(pixels, output_hidden_states=True)
    images, begin = [], 0
    for image, count in enumerate(counts):
        crops = slice(begin, begin + count)
        tall = count == 3 and len(set(inputs["image_sizes"][image].tolist())) > 1
        tall = tall and bool(inputs["image_sizes"][image].diff() < 0)
        tiles = {1: (0, 0), 3: (2, 1) if tall else (1, 2), 5: (2, 2)}[count]
        of_image = {layer: (q[crops], k[crops]) for layer, (q, k) in calls.items()}
        images.append(Plain(output.hidden_states[-2][crops], of_image, tiles))
        begin += count
    return images


def visionzip_rows(image: Plain, method: Any, budget: int) -> Tensor:
    """[R, D]: of each crop class token, dominant and contextual tokens, tiles together."""
    share = budget // len(image.states)
    contextual = int(share * method.contextual_ratio + 0.5)
    queries, keys = image.calls[-2]
    attention = (queries[:, :, :1] @ keys.mT).softmax(-1)[:, :, 0, 1:].sum(1)
    metric = functional.normalize(keys.mean(1)[:, 1:], dim=-1)
    dominant, merged = [], []
    for states, scores, of_crop in zip(image.states[:, 1:], attention, metric, strict=True):
        kept = scores.topk(share - contextual).indices.sort().values
        rest = torch.tensor([i for i in range(len(states)) if i not in kept.tolist()])
        targets = rest[:: max(1, len(rest) // contextual)][:contextual]
        others = torch.tensor([i for i in rest.tolist() if i not in targets.tolist()])
        nearest = (of_crop[others] @ of_crop[targets].T).argmax(1)
        rows = []
        for number, target in enumerate(targets):
            members = states[others[nearest == number]]
            rows.append(states[target] + (members.mean(0) if len(members) else 0))
        dominant.append(kept)
        merged.append(torch.stack(rows))
    rows = [image.states[0, :1], image.states[0, 1:][dominant[0]], merged[0]]
    _, cols = image.tiles
    places = [
        (4 * (tile // cols) + token // 4, 4 * (tile % cols) + token % 4, tile, token)
        for tile, kept in enumerate(dominant[1:])
        for token in kept.tolist()
    ]
    rows += [image.states[1 + tile, 1 + token][None] for _, _, tile, token in sorted(places)]
    return torch.cat([*rows, image.states[1:, 0], *merged[1:]])


def prumerge_rows(image: Plain, method: Any, budget: int) -> Tensor:
    """[R, D]: by attention, those at equal steps after them, and a row for the rest."""
    ((queries, keys),) = [tuple(side[0] for side in image.calls[-1])]
    heads, _, width = keys.shape
    queries, keys = ((side.transpose(0, 1).flatten(1)) for side in (queries, keys))
    logits = queries[0] * width**0.5 @ keys.T * (heads * width) ** -0.5
    attention, states, keys = logits.softmax(-1)[1:], image.states[0, 1:], keys[1:]
    first, third = (attention.quantile(share) for share in (0.25, 0.75))
    ratio = int((attention > third + 1.5 * (third - first)).sum()) / len(states)
    assert ratio
    chosen = attention.topk(int(len(states) * ratio)).indices.tolist()
    if type(method).__name__ == "PruMergePlus":
        steps = range(0, len(states) - 1, max(1, int(1 / ratio) // 3))
        chosen += [token for token in steps if token not in chosen]
    assert len(chosen) <= budget
    directions = functional.normalize(keys, dim=-1)
    rows = []
    for token in chosen:
        similar = directions @ directions[token]
        similar[token] = -2
        near = similar.topk(min(32, len(states) - 1)).indices
        rows.append(states[token] + (attention[near, None] * states[near]).sum(0))
    left = [token for token in range(len(states)) if token not in chosen]
    return torch.stack([*rows, (attention[left, None] * states[left]).sum(0)])


def large_llava() -> Host:
    """With images of 64 tokens, of which 32 may be neighbors."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER | {"image_size": 112}, projection_dim=32),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )
    return fixed(hf.LlavaForConditionalGeneration(config), 112)


def sharp(name: str) -> Host:
    """With a few outliers in the attention of the last layer."""
    torch.manual_seed(0)
    host = {**HOSTS, "llava": large_llava}[name]()
    with torch.no_grad():
        attention = tower_layers(host.model.model.vision_tower)[-1].self_attn
        attention.q_proj.weight.mul_(3)
        attention.k_proj.weight.mul_(3)
    return host


@functools.cache
def sharp_once(name: str) -> Host:
    return sharp(name)


PROJECTED: dict[str, tuple[str, Any, Any, int]] = {
    "visionzip of llava": (
        "llava",
        get_method("visionzip", official=True, contextual_ratio=0.3),
        visionzip_rows,
        9,
    ),
    "visionzip of llava_next": (
        "llava_next",
        get_method("visionzip", official=True, contextual_ratio=0.3),
        visionzip_rows,
        36,
    ),
    "prumerge of llava": ("llava", get_method("prumerge", official=True), prumerge_rows, 45),
    "prumergeplus of llava": (
        "llava",
        get_method("prumergeplus", official=True),
        prumerge_rows,
        45,
    ),
}


def plain_rows(host: Host, inputs: dict[str, Any], case: str) -> list[Tensor]:
    """For each row of the batch [L', D], embeddings in which images are the paper's rows."""
    _, method, paper, budget = PROJECTED[case]
    model = host.model.model
    with torch.no_grad():
        images = iter(
            model.multi_modal_projector(paper(image, method, budget))
            for image in plain_images(host, inputs)
        )
        sequences = []
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            words = ids[mask.bool()]
            embeddings, parts = model.get_input_embeddings()(words), []
            for place, word in enumerate(words.tolist()):
                if word != IMAGE:
                    parts.append(embeddings[place][None])
                elif words[place - 1] != IMAGE:
                    parts.append(next(images))
            sequences.append(torch.cat(parts))
    return sequences


def say(host: Host, embeddings: Tensor) -> Tensor:
    """[L, D] -> [L, V], positions counted from 0."""
    with torch.no_grad():
        states = host.model.model.language_model(inputs_embeds=embeddings[None])
        return host.model.lm_head(states.last_hidden_state)[0]


def assert_as_the_paper(case: str, rows: list[list[int]]) -> None:
    name, method, _, budget = PROJECTED[case]
    host = sharp_once(name)
    inputs = host.inputs(rows)
    plain = plain_rows(host, inputs, case)
    with tokenprune.apply(host.model, method, num_keep=budget) as handle:
        logits = logits_of(host, inputs)
        kept, report = handle.kept_positions, handle.report()
        answers = host.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
    for row, (embeddings, columns) in enumerate(zip(plain, kept, strict=True)):
        assert len(columns) == len(embeddings)  # what is told is what there is
        expected = say(host, embeddings)
        assert_close(logits[row, -len(expected) :], expected, atol=1e-4, rtol=0)
        for token in answers[row]:
            assert int(say(host, embeddings)[-1].argmax()) == token
            word = host.model.get_input_embeddings()(token[None])
            embeddings = torch.cat([embeddings, word])
    left = sum(report.tokens_after)
    marks = inputs["input_ids"] == IMAGE
    assert left == sum(int(marks[row][one].sum()) for row, one in enumerate(kept))
    assert left < sum(report.tokens_before)
    for before, after, merged, dropped in zip(
        report.tokens_before, report.tokens_after, report.merged, report.dropped, strict=True
    ):
        assert min(merged, dropped) >= 0
        assert 0 < before - merged - dropped <= after  # rows that stand for no token


@pytest.mark.parametrize("rows", [ONE, BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("case", PROJECTED)
def test_a_model_says_what_it_says_with_the_papers_rows(case, rows):
    assert_as_the_paper(case, rows)


@pytest.mark.parametrize("case", PROJECTED)
def test_a_second_turn_goes_on_from_the_papers_rows(case):
    name, method, _, budget = PROJECTED[case]
    host = sharp_once(name)
    inputs = host.inputs(BATCH)
    with tokenprune.apply(host.model, method, num_keep=budget):
        logits = two_turns(host, inputs)
    words = words_of_two_turns(len(BATCH))
    for row, embeddings in enumerate(plain_rows(host, inputs, case)):
        said = host.model.get_input_embeddings()(words[row])
        expected = say(host, torch.cat([embeddings, said]))[len(embeddings) - 1 :]
        asked = torch.cat([expected[:NEW], expected[NEW + ASKED : 2 * NEW + ASKED]])
        assert_close(logits[row], asked, atol=1e-4, rtol=0)


def in_slot_order(self: Any, *args: Any, **kwargs: Any) -> Any:
    return replace(REDUCE(self, *args, **kwargs), order=None)


REDUCE = tokenprune.Method.reduce
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "another order": (tokenprune.Method, "reduce", in_slot_order),
    "after the projector": (TowerOfHost, "project", lambda self, rows: rows),
    "another layer": (
        TowerOfHost,
        "projected_states",
        lambda self, output, arguments: output.last_hidden_state,
    ),
    "another query": (
        AttentionReader,
        "_by_head",
        lambda self, name, query, key, scale: cls_attention(query.flip(2), key),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", PROJECTED)
def test_a_planted_fault_is_noticed(case, fault, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_as_the_paper(case, ONE)


def test_positions_with_gaps_are_noticed(monkeypatch):
    as_they_were = lambda positions, keep, now: (positions, keep.sum(1) * 0)  # noqa: E731
    monkeypatch.setattr("tokenprune.hosts.before_model.compacted", as_they_were)
    for case in PROJECTED:
        with pytest.raises(AssertionError):
            assert_as_the_paper(case, ONE)


def test_attention_of_several_heads_is_noticed(monkeypatch):
    several = lambda self, name, query, key, scale: cls_attention(query, key)  # noqa: E731
    monkeypatch.setattr(AttentionReader, "_by_head", several)
    for case in ("prumerge of llava", "prumergeplus of llava"):
        with pytest.raises(AssertionError):
            assert_as_the_paper(case, ONE)


def test_all_is_kept_to_the_bit_before_the_projector_too():
    for name, method, _, _ in PROJECTED.values():
        host = sharp_once(name)
        inputs = host.inputs(ONE)
        plain = logits_of(host, inputs)
        with tokenprune.apply(host.model, method, keep_ratio=1.0):
            assert torch.equal(logits_of(host, inputs), plain)


def test_rows_are_counted_beforehand_where_they_can_be():
    host = build("llava_next")
    inputs = host.inputs(ONE)
    method = get_method("visionzip", official=True)
    with tokenprune.apply(host.model, method, num_keep=36) as handle:
        logits_of(host, inputs)
        assert handle.report().tokens_after == [5 * (7 + 1), 3 * (12 + 1)]
        assert handle.retained_count(host.sizes(inputs)) == handle.report().tokens_after
    inputs = host.inputs([[3, 0, 4, 0, 5, 0]])  # the last image has 40 tokens
    with (
        tokenprune.apply(host.model, method, num_keep=39),
        pytest.raises(ValueError, match="VisionZip must give at most as many rows as the image"),
    ):
        logits_of(host, inputs)


def test_the_projector_learns_from_rows_before_it():
    host = sharp("llava").model.train()
    inputs = sharp_once("llava").inputs(ONE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with tokenprune.apply(host, get_method("visionzip", official=True), num_keep=9):
        host(**inputs, labels=labels).loss.backward()
    gradients = [one.grad for one in host.model.multi_modal_projector.parameters()]
    assert all(one is not None and one.abs().max() > 0 for one in gradients)


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


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("llava_next", "prumerge", "PruMerge needs single_head_attention"),
        ("qwen2_5_vl", "visionzip", "VisionZip works before the projector, QwenVL does not say"),
        ("paligemma", "prumerge", "PruMerge works before the projector, Generic|PaliGemma does"),
        ("llava_onevision", "visionzip", "VisionZip shares an image's budget over its crops"),
    ],
)
def test_forms_before_the_projector_are_refused_by_name(name, method, message):
    with pytest.raises(NotImplementedError, match=message):
        tokenprune.apply(build(name).model, get_method(method, official=True), keep_ratio=0.5)


def test_what_numbers_positions_anew_is_not_the_masked_model():
    method = get_method("visionzip", official=True)
    with pytest.raises(NotImplementedError, match="VisionZip numbers positions anew"):
        tokenprune.verify(build("llava").model, build("llava").inputs(ONE), method=method)
