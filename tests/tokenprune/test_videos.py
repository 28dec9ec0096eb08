"""Videos: a reduced one is the whole one with the dropped tokens hidden, as images are."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import tokenprune
from tokenprune import ImageLayout, TokenGrid, VisionTokens, get_method
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.tested import results

from .families.proof import (
    KEEP,
    METHOD,
    TOLERANCE,
    hiding,
    masked_equivalence,
    one_position_off,
    second_turn,
)
from .families.videos import BUILD, PROMPTS, with_videos
from .hosts import HOSTS, IMAGE, VIDEO, Host
from .test_families import LISTED, RELEASE

VARIANTS = {"qwen3_vl_moe", "qwen3_5_moe", "cosmos3_omni"}  # of hosts that are here, too


def build(name: str) -> Host:
    if name not in LISTED:
        pytest.skip(f"transformers {RELEASE} has no {name}")
    if RELEASE in results()[0] and not LISTED[name].video:
        pytest.skip(f"{name} is listed without videos on transformers {RELEASE}")
    return with_videos(name)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        (name, prompt)
        for name in BUILD
        for prompt in PROMPTS
        if name not in VARIANTS or prompt == "images and videos"
    ],
)
def test_a_reduced_video_is_the_masked_one(name, prompt):
    masked_equivalence(build(name), PROMPTS[prompt])


@pytest.mark.parametrize("name", BUILD)
def test_a_second_turn(name):
    second_turn(build(name), PROMPTS["images and videos"])


@pytest.mark.parametrize("name", BUILD)
def test_a_position_off_is_found(name):
    one_position_off(build(name), PROMPTS["one video"])


def test_none_is_left_out_on_the_newest():
    releases, hosts = results()
    assert {name for name, host in hosts.items() if releases[-1] in host.video} == set(BUILD)
    for host in LISTED.values():
        assert host.supported or not host.video


# -- frames ---------------------------------------------------------------------------------------


def encoded(host: Host, inputs: dict[str, Any]) -> list[Tensor]:
    """The videos' features, as methods are handed them."""
    given = {
        name: value
        for name, value in inputs.items()
        if name in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    }
    with torch.no_grad():
        output = find_adapter(host.model).model.get_video_features(**given, return_dict=True)
    return list(output.pooler_output)


def kept_of_videos(host: Host, inputs: dict[str, Any], handle: Any) -> list[Tensor]:
    """For each row the numbers, among its video tokens, of those that remain."""
    numbers = []
    for ids, kept in zip(inputs["input_ids"], handle.kept_positions, strict=True):
        remain = torch.zeros_like(ids, dtype=torch.bool)
        remain[kept] = True
        numbers.append(remain[ids == VIDEO].nonzero()[:, 0])
    return numbers


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_image_methods_work_frame_by_frame(name):
    host = build(name)
    inputs = host.inputs([[5, -1, 4]])
    (frames, rows, cols), (features,) = inputs["video_grid_thw"][0].tolist(), encoded(host, inputs)
    by_frame = features.unflatten(0, (frames, -1))
    shares = {"image": [3, 3, 3], "frame": [9 - 3] * 3}
    for per, num_keep in (("image", 9), ("frame", 6)):
        with tokenprune.apply(host.model, METHOD(), num_keep=num_keep, per=per) as handle:
            host.model(**inputs)
            (kept,) = kept_of_videos(host, inputs, handle)
        expected = []
        for frame, share in enumerate(shares[per]):
            tokens = VisionTokens(by_frame[frame][None], (rows // 2, cols // 2))
            found = METHOD().reduce(tokens, share).keep_indices[0]
            expected.append(found + frame * by_frame.shape[1])
        assert kept.tolist() == torch.cat(expected).tolist()


@torch.no_grad()
@pytest.mark.parametrize("method", ["evs", "vidcom2"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava_onevision", "video_llama_3"])
def test_methods_over_time_see_the_frames_in_order_and_leave_images_whole(name, method):
    host = build(name)
    inputs = host.inputs([[5, 0, 4, -1, 6]])
    (features,) = encoded(host, inputs)
    with tokenprune.apply(host.model, method, keep_ratio=0.5) as handle:
        host.model(**inputs)
        (kept,) = kept_of_videos(host, inputs, handle)
        report = handle.report()
    frames = 3
    newline = len(features) % frames  # LLaVA-OneVision's, which shows nothing
    shown = features[: len(features) - newline]
    num_keep = int(0.5 * len(features) + 0.5)
    tokens = VisionTokens(shown[None], (1, len(shown) // frames), frames=frames)
    assert kept.tolist() == get_method(method).reduce(tokens, num_keep).keep_indices[0].tolist()
    ids = inputs["input_ids"]
    remain = ids[0][handle.kept_positions[0]]
    assert int((remain == IMAGE).sum()) == int((ids == IMAGE).sum()) > 0
    counts = zip(report.tokens_before, report.tokens_after, strict=True)
    assert sorted(before - after for before, after in counts) == [0, len(features) - num_keep]
    verified = tokenprune.verify(host.model, inputs, method=method, keep_ratio=0.5)
    assert verified.ok, verified


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_method_over_time_that_reads_the_tower_is_exact_beside_images(name):
    host = build(name)
    inputs = host.inputs([[5, 0, 4, -1, 6]])
    report = tokenprune.verify(host.model, inputs, method="flashvid", keep_ratio=0.4)
    assert report.ok, report
    assert 0 < report.tokens_after < report.tokens_before


def test_evs_without_a_video_is_refused():
    host = build("qwen2_vl")
    with (
        tokenprune.apply(host.model, "evs", keep_ratio=0.5),
        pytest.raises(NotImplementedError, match="EVS compares the frames of videos"),
    ):
        host.model(**host.inputs([[5, 0, 4]]))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(set(BUILD) - VARIANTS))
@pytest.mark.parametrize("per", ["image", "frame"])
def test_counts_are_known_beforehand(name, per):
    host = build(name)
    inputs = host.inputs(PROMPTS["two videos"])
    sizes: Any = inputs.get("video_grid_thw")
    if sizes is None:
        sizes = [pixels.shape[0] for pixels in inputs["pixel_values_videos"]]
    elif "video_merge_sizes" in inputs:
        sizes = torch.cat([sizes, inputs["video_merge_sizes"][:, None]], 1)
    for method in ("divprune", "evs"):
        for budget in ({"num_keep": 3}, {"keep_ratio": 0.4}, {"keep_ratio": 1.0}):
            with tokenprune.apply(host.model, method, per=per, **budget) as handle:
                host.model(**inputs)
                report = handle.report()
                assert handle.retained_count(sizes, videos=True) == report.tokens_after
            if "num_keep" in budget and per == "image":
                assert report.tokens_after == [3, 3]
    assert report.tokens_after == report.tokens_before


# -- what methods need ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_attention_of_videos_is_in_the_order_of_their_tokens(name):
    """Patches of one token, when they change, change what is read of it and of its frame alone."""
    host = build(name)
    adapter: Any = find_adapter(host.model)
    inputs = host.inputs([[5, -1, 4]])
    sizes = [tuple(map(int, grid)) for grid in inputs["video_grid_thw"]]
    states: list[Tensor] = []
    hook = adapter.attention_layer.register_forward_pre_hook(
        lambda module, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        states.clear()
        (features,) = encoded(host, {**inputs, "pixel_values_videos": pixels})
        return features, states[-1].flatten(0, -2)

    plain, before = run(inputs["pixel_values_videos"])
    merge = adapter.merge_size**2
    for token in range(0, len(plain), 5):
        pixels = inputs["pixel_values_videos"].clone()
        pixels[merge * token : merge * (token + 1)] *= -5
        features, after = run(pixels)
        assert int((features - plain).norm(dim=1).argmax()) == token
        moved = (after - before).norm(dim=1)[None]
        (values,) = adapter.videos.token_attention(moved, sizes)
        assert int(values.argmax()) == token
    hook.remove()
    report = tokenprune.verify(host.model, inputs, method="fastervlm", keep_ratio=KEEP)
    assert report.ok, report


def test_what_is_handed_over_for_images_alone_is_refused():
    host = build("llava_onevision")
    inputs = host.inputs([[5, -1, 4]])
    with (
        tokenprune.apply(host.model, "fastervlm", keep_ratio=0.5),
        pytest.raises(NotImplementedError, match="hands over for images, not for videos"),
    ):
        host.model(**inputs)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next_video"])
def test_videos_leave_between_layers(name):
    host = build(name)
    method = get_method("fastv", layer=1)
    for rows in PROMPTS.values():
        report = tokenprune.verify(host.model, host.inputs(rows), method=method, keep_ratio=KEEP)
        assert report.ok, report


# -- hosts that show a video as pictures ----------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_frames_that_come_as_images(name):
    """Their processors write each frame of a video as an image, with words between."""
    host = HOSTS[name]()
    frames, words = 4, 2
    rows = [[5, *[part for _ in range(frames) for part in (words, 0)], 6], [3, 0, 4]]
    masked_equivalence(host, rows)
    with tokenprune.apply(host.model, METHOD(), num_keep=3) as handle:
        host.model(**host.inputs(rows))
    assert handle.report().tokens_after == [3] * (frames + 1)


# -- beams, refusals ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava_next_video"])
def test_beams(name):
    host = build(name)
    # One of each in a row: some hosts repeat images one by one, and mix those of one row.
    inputs = host.inputs([[5, 0, 4, -1, 6], [9, 0, 3, -1]])

    def searched() -> Any:
        return host.model.generate(
            **inputs,
            max_new_tokens=4,
            num_beams=2,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=list(range(100, 128)),
            return_dict_in_generate=True,
            output_scores=True,
        )

    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP) as handle:
        short = searched()
        host.model(**inputs)
        kept = handle.kept_positions
    hidden = find_adapter(host.model).placeholders(inputs["input_ids"])
    for row, columns in zip(hidden, kept, strict=True):
        row[columns] = False
    with hiding(host, hidden.repeat_interleave(2, 0)):
        whole = searched()
    assert torch.equal(short.sequences, whole.sequences)
    assert_close(short.sequences_scores, whole.sequences_scores, atol=TOLERANCE, rtol=0)


def test_an_image_between_the_frames_is_refused():
    host = build("qwen3_vl")
    inputs = host.inputs([[5, 0, 4, -1, 6]])
    ids = inputs["input_ids"]
    images, videos = (ids[0] == IMAGE).nonzero()[:, 0], (ids[0] == VIDEO).nonzero()[:, 0]
    ids[0, images[-1]], ids[0, videos[1]] = VIDEO, IMAGE
    positions = torch.arange(ids.shape[1])[None, None].expand(3, 1, -1)
    with (
        tokenprune.apply(host.model, METHOD(), keep_ratio=0.5),
        pytest.raises(NotImplementedError, match="between those of a video"),
    ):
        host.model(**inputs, position_ids=positions)


def test_placeholders_without_a_video_are_refused():
    host = build("qwen2_vl")
    inputs = host.inputs([[5, -1, 4]])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    count = int((inputs["input_ids"] == VIDEO).sum())
    with (
        tokenprune.apply(host.model, METHOD(), keep_ratio=0.5),
        pytest.raises(ValueError, match=f"hold {count} placeholders for video tokens, but no"),
    ):
        host.model(**words)


def test_a_host_that_reduces_no_videos_refuses_them(caplog):
    host = build("llava_next_video")
    inputs = host.inputs([[5, -1, 4]])
    find_adapter(host.model)
    plain = type(find_adapter(host.model)).videos
    try:
        type(find_adapter(host.model)).videos = None
        with (
            tokenprune.apply(host.model, METHOD(), keep_ratio=0.5) as handle,
            pytest.raises(NotImplementedError, match="tokens of videos are not reduced in"),
        ):
            host.model(**inputs)
        with pytest.raises(NotImplementedError, match="reduces no videos, got their sizes"):
            handle.retained_count([3], videos=True)
        with torch.no_grad():
            whole = host.model(**inputs).logits
            with (
                caplog.at_level(logging.WARNING, "tokenprune"),
                tokenprune.apply(host.model, METHOD(), keep_ratio=0.5, strict=False),
            ):
                assert torch.equal(host.model(**inputs).logits, whole)
    finally:
        type(find_adapter(host.model)).videos = plain
    assert any("videos" in one.message for one in caplog.records)


def test_videos_with_tokens_dropped_by_the_processor_are_refused():
    host = build("video_llama_3")
    inputs = host.inputs([[5, -1, 4]])
    mask = torch.ones(int((inputs["input_ids"] == VIDEO).sum()), dtype=torch.bool)
    with tokenprune.apply(host.model, METHOD(), keep_ratio=0.5), torch.no_grad():
        host.model(**inputs, video_compression_mask=mask)
        mask[3] = False
        with pytest.raises(NotImplementedError, match="use_token_compression=False"):
            host.model(**inputs, video_compression_mask=mask)


def test_layouts_of_videos():
    layout = ImageLayout.video(3, 2, 4, after=1)
    assert layout.num_tokens == 25
    assert layout.is_video
    (grid,) = layout.grids
    assert grid.positions(torch.device("cpu")).tolist() == list(range(24))
    assert [frame.start for frame in grid.by_frame()] == [0, 8, 16]
    apart = TokenGrid(2, 1, 2, 2, frames=2, frame_stride=5)
    assert apart.positions(torch.device("cpu")).tolist() == [2, 3, 7, 8]
