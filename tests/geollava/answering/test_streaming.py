"""Crops in chunks: the same result for every size, within the memory that was granted."""

from __future__ import annotations

import copy
import threading
import time
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geollava import imagery
from geollava.answering.encoding import encode_scene
from geollava.answering.measures import Stopwatch
from geollava.answering.memory import parse_memory
from geollava.answering.session import Session
from geollava.answering.streaming import (
    ahead,
    bytes_per_crop,
    crops_within,
    in_chunks,
)
from tests.geollava.conftest import noise


class PeakBytes(TorchDispatchMode):
    """The largest sum of bytes that tensors made inside it hold at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.held, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given_storages = {
            t.untyped_storage()._cdata for t in tree_leaves(args) if torch.is_tensor(t)
        }
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive | given_storages:
                    self.add(storage)
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.alive.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.alive.discard(key)
        self.held -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["pair", "default_pair"])
def test_what_a_crop_takes_is_known_from_its_shapes(which, dtype, request):
    model, _ = request.getfixturevalue(which)
    model = copy.deepcopy(model).to(dtype)
    side = model.config.vision_config.image_size
    crops = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode(), PeakBytes() as memory:
        model.encode_crops([crops.clone()])
    expected = 8 * bytes_per_crop(model.config, dtype)
    assert 0.5 * expected < memory.peak <= expected


def test_budget(pair):
    config = pair[0].config
    one = bytes_per_crop(config, torch.float32)
    assert crops_within(one, config, torch.float32) == 1
    assert crops_within(7 * one + one // 2, config, torch.float32) == 7
    assert crops_within(10**15, config, torch.float32) == config.max_crops
    with pytest.raises(ValueError, match="must hold one crop"):
        crops_within(one - 1, config, torch.float32)


def test_memory_sizes():
    sizes = {"8GiB": 8 * 2**30, "512 MB": 2**29, "1.5g": 3 * 2**29, "2e9": 2 * 10**9, "7": 7}
    assert {text: parse_memory(text) for text in sizes} == sizes
    for text in ("", "much", "-1GiB", "0", "8 GiB please", "1.2.3G", "1e999"):
        with pytest.raises(ValueError, match="must be a size such as 8GiB"):
            parse_memory(text)


@given(lengths=st.lists(st.integers(0, 9), max_size=8), size=st.integers(1, 12))
def test_chunks_hold_the_same_crops_in_order(lengths, size):
    whole = torch.arange(sum(lengths))[:, None]
    chunks = list(in_chunks(whole.split(lengths) if lengths else [], size))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * max(len(chunks) - 1, 0)
    assert torch.equal(torch.cat([*chunks, whole[:0]]), whole)
    assert all(len(chunk) for chunk in chunks)


@pytest.mark.parametrize("crops", [1, 2, 5, 24, 1000])
def test_every_budget_gives_the_same_tokens(crops, pair):
    model, processor = pair
    scene = imagery.as_scene(noise(500, 300))
    whole = model.encode_crops(processor.image_processor.cut(noise(500, 300)))
    done = []
    tokens = encode_scene(
        model,
        processor,
        scene,
        memory_budget=crops * bytes_per_crop(model.config, model.dtype),
        progress=lambda *counts: done.append(counts),
    )
    total = tokens.canvas.crops
    size = min(crops, model.chunk_size)  # more would be slower on a CPU
    assert done == [(min(i + size, total), total) for i in range(0, total, size)]
    assert torch.equal(tokens.kept.keep_indices, whole.keep_indices)
    assert torch.equal(tokens.kept.assignment, whole.assignment)
    torch.testing.assert_close(tokens.kept.features, whole.features, atol=1e-5, rtol=1e-5)


def test_streamed_answers_are_those_of_the_whole_image(pair):
    model, processor = pair
    image = noise(300, 200)
    inputs = processor(images=[image], text=processor.build_prompt("What?"))
    options = {"max_new_tokens": 8, "do_sample": False}
    ids = model.generate(
        **inputs,
        **options,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    answer = Session.of(model, processor).see(image).ask("What?", max_new_tokens=8)
    assert answer.text == expected


def test_the_next_item_is_made_while_one_is_in_use():
    made = []

    def make():
        for number in range(5):
            made.append(number)
            yield number

    items = ahead(make())
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert 2 <= len(made) <= 3  # one waits, one is on its way, no more
    assert list(items) == [1, 2, 3, 4]


def test_errors_and_early_ends_of_the_thread():
    def broken():
        yield 1
        raise ValueError("damaged there")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="damaged there"):
        next(items)

    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = ahead(endless())
    next(items)
    items.close()
    assert closed.is_set()
    assert not [t for t in threading.enumerate() if t.name == "geollava-crops"]


def test_stages_within_stages_are_counted_once():
    stopwatch = Stopwatch()

    def slow():
        time.sleep(0.2)
        yield 1

    start = time.perf_counter()
    with stopwatch.stage("encode"):
        for _ in stopwatch.waits("crop", slow()):
            time.sleep(0.1)
    total = time.perf_counter() - start
    assert stopwatch.seconds["crop"] >= 0.2
    assert 0.1 <= stopwatch.seconds["encode"] <= total - 0.2
    assert sum(stopwatch.seconds.values()) == pytest.approx(total, abs=0.01)
