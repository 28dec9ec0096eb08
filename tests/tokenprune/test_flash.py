"""FlashAttention stays: no method asks for attention weights, and the results are exact beside it.

On a CPU its kernels are plain torch, see `flash.py`; the last test takes the package on a GPU.
"""

from __future__ import annotations

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers

import tokenprune
from tokenprune import get_method
from tokenprune.hosts import attention, before_model
from tokenprune.hosts.attention import AsItWas

from . import flash
from .hosts import (
    BY_CROP,
    CACHE,
    HOSTS,
    IN_SHALLOW_TOWERS,
    NOT_OF_IMAGES,
    OF_ONE_MODEL,
    TEXT,
    Host,
    cache_in,
)
from .test_apply import ONE, THREE, generated
from .test_layers import deep
from .test_turns import Conversation, with_images

NAMES = ("llava", "qwen2_5_vl")
METHODS = sorted({*tokenprune.list_methods()} - {*OF_ONE_MODEL, *NOT_OF_IMAGES, *BY_CROP})
OPTIONS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 1},
    "pyramiddrop": {"layers": (1, 3), "ratio": 0.7},
    **IN_SHALLOW_TOWERS,
}
Calls = list[tuple[Any, dict[str, Any]]]


def method_of(name: str) -> tokenprune.Method:
    return get_method(name, **OPTIONS.get(name, {}))


@functools.cache
def build(name: str) -> Host:
    return deep(name)


@pytest.fixture
def calls(monkeypatch) -> Calls:
    return flash.install(monkeypatch)


@pytest.fixture(params=NAMES)
def host(request, calls) -> Host:
    host = build(request.param)
    host.model.set_attn_implementation(flash.NAME)
    return host


def attention_layers(host: Host) -> dict[str, Any]:
    """All modules that attend, by name."""
    return {
        name: module
        for name, module in host.model.named_modules()
        if name.endswith(("self_attn", ".attn"))
    }


def attending(calls: Calls) -> set[int]:
    """Of the layers that attended by FlashAttention."""
    return {id(layer.layer if isinstance(layer, AsItWas) else layer) for layer, _ in calls}


def fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("eager attention was called, the one that gives weights")


@pytest.mark.parametrize("name", METHODS)
def test_every_layer_goes_on_with_it_and_no_weights_are_asked_for(name, host, calls, monkeypatch):
    layers = attention_layers(host)
    for module in {type(layer).__module__ for layer in layers.values()}:
        monkeypatch.setattr(sys.modules[module], "eager_attention_forward", fail)
    inputs = host.inputs(THREE)
    generated(host, inputs)
    plain = attending(calls)
    assert plain <= set(map(id, layers.values()))
    assert len(plain) >= 6  # four of the language model, two of the tower
    calls.clear()
    with tokenprune.apply(host.model, method_of(name), num_keep=5) as handle:
        generated(host, inputs)
        assert {layer.config._attn_implementation for layer in layers.values()} == {flash.NAME}
    assert attending(calls) == plain
    assert not any(given.get("output_attentions") for _, given in calls)
    assert max(handle.report().tokens_after) == 5


def verified(host: Host, rows: list[list[int]], name: str) -> None:
    report = tokenprune.verify(
        host.model, host.inputs(rows), method=method_of(name), keep_ratio=0.4, new_tokens=2
    )
    assert report.attention == flash.NAME
    assert report.ok, report


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exact_beside_it(name, host):
    verified(host, THREE, name)  # padded on the left


@pytest.mark.parametrize("name", ["divprune", "fastervlm", "fastv", "tome"])
def test_a_single_prompt_has_no_mask(name, host):
    verified(host, ONE, name)


@pytest.mark.parametrize("name", ["divprune", "fastervlm", "fastv"])
@pytest.mark.parametrize("rows", [ONE, [[3, 0, 4, 0, 5], [6, 0, 2]]], ids=["single", "batch"])
def test_an_image_in_a_later_turn(name, rows, calls):
    """Its positions have gaps, which transformers takes for packed sequences in a batch of one."""
    host, turns = build("llava"), {}
    for implementation in ("sdpa", flash.NAME):
        host.model.set_attn_implementation(implementation)
        talk = Conversation(host, host.inputs(rows))
        with tokenprune.apply(host.model, method_of(name), num_keep=5):
            talk.turn()
            talk.turn(**with_images(host, talk))
            talk.turn()
        turns[implementation] = talk.logits
    for ours, expected in zip(turns[flash.NAME], turns["sdpa"], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def image_after_text(host: Host) -> torch.Tensor:
    """The first turn had no image: its cache holds all of its columns."""
    inputs = host.inputs([[3, 0, 4]])
    before = host.model(input_ids=torch.tensor([[1, 7, 8, 9]]), use_cache=True)
    mask = torch.ones(1, 4 + inputs["input_ids"].shape[1], dtype=torch.int64)
    return host.model(
        **{**inputs, "attention_mask": mask}, **{CACHE: cache_in(before)}, use_cache=True
    ).logits


def test_the_first_image_after_a_turn_of_text(calls, monkeypatch):
    host, found = build("llava"), {}
    with tokenprune.apply(host.model, "divprune", num_keep=5):
        for implementation in ("sdpa", flash.NAME):
            host.model.set_attn_implementation(implementation)
            found[implementation] = image_after_text(host)
        monkeypatch.setattr(before_model, "bounds_beside_gaps", lambda *_: {})
        without = image_after_text(host)
    torch.testing.assert_close(found[flash.NAME], found["sdpa"], atol=1e-5, rtol=0)
    assert (without - found["sdpa"]).abs().max() > 1e-3, "nothing is shown"


@pytest.mark.parametrize(
    ("name", "owner", "read"),
    [("fastv", attention, "attention_rows"), ("fastervlm", attention.AttentionReader, "read")],
)
def test_a_thread_attends_in_a_layer_while_another_reads_it(name, owner, read, host, monkeypatch):
    inputs, other = host.inputs(ONE), host.inputs(THREE)
    plain, found = getattr(owner, read), []

    def attended() -> torch.Tensor:
        return torch.stack(generated(host, other, max_new_tokens=2).logits)

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(owner, read, plain)
            found.append(pool.submit(attended).result())
        return plain(*args, **kwargs)

    with tokenprune.apply(host.model, method_of(name), num_keep=5):
        expected = attended()
        monkeypatch.setattr(owner, read, meanwhile)
        generated(host, inputs, max_new_tokens=2)
    assert found
    for logits in found:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_a_window_shorter_than_the_prompt_is_refused(name, calls):
    """It would be counted in the columns that remain; a longer one is never felt."""

    def sliding(window: int) -> Host:
        torch.manual_seed(0)
        text = {**TEXT, "num_hidden_layers": 4, "sliding_window": window}
        host = HOSTS["llava"](text_config=transformers.MistralConfig(**text))
        host.model.set_attn_implementation(flash.NAME)
        return host

    host = sliding(60)
    length = host.inputs(ONE)["input_ids"].shape[1]
    assert length < 60
    method = method_of(name)
    report = tokenprune.verify(host.model, host.inputs(ONE), method=method, keep_ratio=0.4)
    assert report.ok, report
    for window in (length - 1, length + 2):  # in the prompt; while it generates
        host = sliding(window)
        with (
            tokenprune.apply(host.model, method, num_keep=5),
            pytest.raises(NotImplementedError, match=f"sliding window of {window}"),
        ):
            generated(host, host.inputs(ONE))


@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None,
    reason="needs a CUDA device and the extra flash",
)
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("name", METHODS)
def test_the_package_on_a_gpu(kind, name):
    """In bfloat16, whose rounding hides what a position off by one would do."""
    host = deep(kind)
    host.model.to("cuda", torch.bfloat16).set_attn_implementation("flash_attention_2")
    inputs = {key: value.cuda() for key, value in host.inputs(THREE).items()}
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    report = tokenprune.verify(host.model, inputs, method=method_of(name), keep_ratio=0.4)
    assert report.attention == "flash_attention_2"
    bad = {check.name for check in report.checks if check.status != "ok"}
    assert bad <= {"positions"}, report
    assert not any(check.status == "failed" for check in report.checks), report
    layers = attention_layers(host).values()
    assert {layer.config._attn_implementation for layer in layers} == {"flash_attention_2"}
