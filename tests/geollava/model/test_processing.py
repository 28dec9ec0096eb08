"""Placeholders in their exact count, text in the published format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from geollava import GeoLlavaImageProcessor, GeoLlavaProcessor
from tests.geollava.conftest import noise


def test_prompt_is_the_published_format(pair):
    _, processor = pair
    assert processor.build_prompt("How many ships?") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nHow many ships?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_of_several_turns(pair):
    _, processor = pair
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A port."},
        {"role": "user", "content": "Where?"},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nA port.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_template_with_images_makes_inputs(pair):
    _, processor = pair
    content = [{"type": "image", "image": noise(100, 100)}, {"type": "text", "text": "What?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    plain = processor(images=[noise(100, 100)], text=processor.build_prompt("What?"))
    assert torch.equal(torch.as_tensor(inputs["input_ids"]), plain["input_ids"])
    assert torch.equal(inputs["pixel_values"], plain["pixel_values"])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=3),
    num_keep=st.integers(1, 16),
)
def test_one_placeholder_per_kept_token(pair, sizes, num_keep):
    _, processor = pair
    counted = GeoLlavaProcessor(
        processor.image_processor, processor.tokenizer, num_keep=num_keep, tokens_per_frame=4
    )
    images = [noise(*size) for size in sizes]
    inputs = counted(images=images, text=counted.build_prompt("What?", num_images=len(images)))
    per_image = [
        int(width // 56 * (height // 56))
        for width, height in (counted.image_processor.select_canvas(*size) for size in sizes)
    ]
    assert inputs["num_crops"].tolist() == per_image
    placeholders = int((inputs["input_ids"] == counted.image_token_id).sum())
    assert placeholders == sum(per_image) * num_keep
    assert len(inputs["pixel_values"]) == sum(per_image)


def test_text_around_the_marks_is_tokenized_as_if_they_were_not_there(pair):
    _, processor = pair
    inputs = processor(images=[noise(100, 100)], text="before <image> after")
    ids = inputs["input_ids"][0]
    words = ids[ids != processor.image_token_id].tolist()
    pieces = (
        processor.tokenizer("before ")["input_ids"] + processor.tokenizer(" after")["input_ids"]
    )
    assert words == pieces


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (1, "no mark", "one <image> per image: expected 1, got 0"),
        (1, "<image><image>", "expected 1, got 2"),
        (0, "<image>", "expected 0, got 1"),
        (0, "<video>", "one <video> per video: expected 0, got 1"),
    ],
)
def test_marks_and_images_must_agree(pair, images, text, message):
    _, processor = pair
    with pytest.raises(ValueError, match=message):
        processor(images=[noise(60, 60)] * images or None, text=text)


def test_no_text(pair):
    with pytest.raises(ValueError, match="must be a prompt"):
        pair[1](images=[noise(60, 60)])


def test_kinds_of_images(pair, tmp_path):
    processor = pair[1].image_processor
    image = noise(120, 80)
    image.save(tmp_path / "image.png")
    array = np.asarray(image)
    expected = processor(image)["pixel_values"]
    for same in (
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        [image],
    ):
        assert torch.equal(processor(same)["pixel_values"], expected)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (3, TypeError, "got int"),
        (np.zeros((8, 8, 3)), TypeError, "must be uint8, got float64"),
        (np.zeros((8, 8), dtype=np.uint8), ValueError, r"\[H, W, 3\], got \[8, 8\]"),
        ([], ValueError, "at least one image"),
    ],
)
def test_what_is_no_image(pair, image, error, message):
    with pytest.raises(error, match=message):
        pair[1].image_processor(image)


def test_unknown_options_are_not_swallowed(pair):
    with pytest.raises(TypeError, match="does not take do_magic"):
        pair[1].image_processor(noise(60, 60), do_magic=True)
    with pytest.raises(ValueError, match="return_tensors must be 'pt'"):
        pair[1](text="hello", return_tensors="np")


@pytest.mark.parametrize("loader", [GeoLlavaProcessor, AutoProcessor])
@pytest.mark.parametrize("form", ["saved", "published"])
def test_save_and_load(pair, complete_checkpoint, tmp_path, loader, form):
    _, processor = pair
    folder = complete_checkpoint
    if form == "saved":
        folder = tmp_path
        pair[0].save_pretrained(folder)
        processor.save_pretrained(folder)
    again = loader.from_pretrained(folder)
    assert type(again) is GeoLlavaProcessor
    assert type(again.image_processor) is GeoLlavaImageProcessor
    prompt = processor.build_prompt("How many?")
    assert again.build_prompt("How many?") == prompt
    first = processor(images=[noise(150, 60)], text=prompt)
    second = again(images=[noise(150, 60)], text=prompt)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_processor_saved_alone(pair, tmp_path):
    _, processor = pair
    processor.save_pretrained(tmp_path)
    again = GeoLlavaProcessor.from_pretrained(tmp_path)
    assert (again.num_keep, again.tokens_per_frame) == (5, 4)
    assert again.image_processor.canvases() == processor.image_processor.canvases()
