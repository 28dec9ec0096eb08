"""Official forms before the projector: a model says what it says with the papers' own rows.

What a plain run of the tower gives goes through a plain writing of the paper, is projected, and
stands in the place of the image with positions that have no gaps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.attention import AttentionReader
from tokenprune.hosts.tower_of_host import TowerOfHost, tower_layers
from tokenprune.ops import cls_attention

from .families.proof import ASKED, BATCH, NEW, ONE, two_turns, words_of_two_turns
from .hosts import HOSTS, IMAGE, TEXT, TOWER, Host, fixed
from .plain_tower import num_crops, queries_and_keys
from .test_apply import logits_of


@functools.cache
def build(name: str) -> Host:
    torch.manual_seed(0)
    return HOSTS[name]()


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
