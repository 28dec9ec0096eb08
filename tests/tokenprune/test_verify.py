"""verify() holds on every host, and does not on hosts that are broken on purpose."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import Tensor, nn

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.reduced import ReducedImages

from . import hosts
from .hosts import (
    CACHE,
    HOSTS,
    IMAGE,
    IN_SHALLOW_TOWERS,
    NEEDS_CACHE,
    NOT_OF_IMAGES,
    OF_ONE_MODEL,
    TEXT,
    Host,
)
from .test_apply import ONE, THREE, traces

_built: dict[str, Host] = {}


def build(name: str) -> Host:
    """Four layers, so that tokens can leave between them."""
    if name not in _built:
        torch.manual_seed(0)
        with mock.patch.dict(hosts.TEXT, num_hidden_layers=4):
            _built[name] = HOSTS[name]()
    return _built[name]


@pytest.fixture
def llava() -> Host:
    return build("llava")


def checks(report: tokenprune.VerifyReport) -> dict[str, tokenprune.Check]:
    return {check.name: check for check in report.checks}


def statuses(report: tokenprune.VerifyReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


ALL_OK = dict.fromkeys(["features", "keep all", "prompt", "positions", "generation", "undo"], "ok")


def expected(name: str) -> dict[str, str]:
    return {**ALL_OK, "generation": "not checked"} if name in NEEDS_CACHE else ALL_OK


# -- what is right is verified --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["divprune", "fastervlm", "visionzip", "fastv", "pyramiddrop"])
@pytest.mark.parametrize("name", HOSTS)
def test_every_host(name, method):
    host = build(name)
    inputs = host.inputs(THREE)  # unequal lengths, one row without image, padded on the left
    before = traces(host.model)
    report = tokenprune.verify(host.model, inputs, method=method, keep_ratio=0.4)
    assert statuses(report) == expected(name), report
    assert report.ok == (name not in NEEDS_CACHE)
    assert report.largest_difference < 1e-5
    placeholders = int((inputs["input_ids"] == IMAGE).sum())
    assert report.tokens_before == placeholders
    assert 0 < report.tokens_after < 0.5 * placeholders
    assert traces(host.model) == before


@pytest.mark.parametrize("method", sorted({*tokenprune.list_methods()} - OF_ONE_MODEL))
def test_every_method(llava, method):
    if method in NOT_OF_IMAGES:
        with pytest.raises(NotImplementedError, match=NOT_OF_IMAGES[method]):
            tokenprune.apply(llava.model, method, keep_ratio=0.4)
        return
    chosen = get_method(method, **IN_SHALLOW_TOWERS.get(method, {}))
    report = tokenprune.verify(llava.model, llava.inputs(ONE), method=chosen, keep_ratio=0.4)
    assert report.ok, report


def test_methods_in_a_chain():
    host = build("qwen3_vl")
    stages = (get_method("fastervlm"), get_method("tome"))
    chain = tokenprune.Chain(*stages, budgets=[0.5])
    report = tokenprune.verify(host.model, host.inputs(ONE), method=chain, keep_ratio=0.3)
    assert report.ok, report


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "paligemma"])
def test_additive_and_boolean_masks(name, attention):
    host = build(name)
    former = host.model.config._attn_implementation
    host.model.set_attn_implementation(attention)
    try:
        for method in ("spatial_pool", "fastv"):
            report = tokenprune.verify(host.model, host.inputs(THREE), method=method)
            assert statuses(report) == expected(name), report
            assert report.attention == attention
    finally:
        host.model.set_attn_implementation(former)


def test_keeping_all_is_verified_too(llava):
    report = tokenprune.verify(llava.model, llava.inputs(ONE), keep_ratio=1)
    assert report.ok, report
    assert report.largest_difference < 1e-6
    assert "positions" not in checks(report)  # no token leaves, none can move


def test_double_precision_is_closer_than_single():
    torch.manual_seed(0)
    host = HOSTS["llava"]()
    host.model.double()
    inputs = host.inputs(ONE)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    report = tokenprune.verify(host.model, inputs)
    assert report.ok, report
    assert report.dtype == "float64"
    assert report.largest_difference < 1e-14
    assert checks(report)["prompt"].tolerance < 1e-13


def test_what_a_coarse_dtype_cannot_show_is_not_called_ok():
    torch.manual_seed(0)
    host = HOSTS["llava"]()
    host.model.bfloat16()
    inputs = host.inputs(ONE)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    report = tokenprune.verify(host.model, inputs)
    assert not report.ok
    assert statuses(report)["positions"] == "not checked"
    assert "try float32" in checks(report)["positions"].detail
    assert statuses(report)["keep all"] == statuses(report)["undo"] == "ok"


def test_a_model_without_its_head(llava):
    report = tokenprune.verify(llava.model.model, llava.inputs(ONE))
    assert not report.ok
    assert statuses(report) == {**ALL_OK, "generation": "not checked"}
    assert "LlavaModel does not generate" in checks(report)["generation"].detail


@pytest.mark.parametrize("method", ["random", "fastv", "divprune"])
@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_an_image_before_all_text(name, method):
    """Also where its first token leaves: positions are relative, a shift of all shows nothing."""
    host = build(name)
    inputs = host.inputs([[0, 9]])
    for keep_ratio in (0.2, 0.5):
        report = tokenprune.verify(host.model, inputs, method=method, keep_ratio=keep_ratio)
        assert statuses(report) == expected(name), report


def test_a_batch_padded_on_the_right_is_not_generated_from(llava):
    inputs = llava.inputs(THREE, pad_left=False)
    report = tokenprune.verify(llava.model, inputs)
    assert statuses(report) == {**ALL_OK, "generation": "not checked"}, report
    assert "padded on the right" in checks(report)["generation"].detail


def test_one_token_is_read_once_more(llava):
    """Else no step with the cache would have run."""

    def change(given: dict[str, Any]) -> None:
        if given["inputs_embeds"].shape[1] == 1 and is_shortened(given[CACHE]):
            given["position_ids"] = given["position_ids"] + 1

    assert tokenprune.verify(llava.model, llava.inputs(ONE), new_tokens=1).ok
    with language_model_given(llava, change):
        report = tokenprune.verify(llava.model, llava.inputs(ONE), new_tokens=1)
    assert statuses(report)["generation"] == "failed", report


def test_features_that_are_all_alike_show_no_order(llava):
    def alike(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.ones_like(output)

    hook = llava.model.model.multi_modal_projector.register_forward_hook(alike)
    try:
        report = tokenprune.verify(llava.model, llava.inputs(ONE), method="uniform")
    finally:
        hook.remove()
    assert statuses(report)["features"] == "not checked", report


def test_what_apply_refuses_is_not_checked():
    torch.manual_seed(0)
    host = HOSTS["llava"](text_config=transformers.MistralConfig(**TEXT, sliding_window=20))
    method = tokenprune.get_method("fastv", layer=1)
    report = tokenprune.verify(host.model, host.inputs(ONE), method=method)
    assert not report.ok
    assert statuses(report)["prompt"] == "not checked"
    assert "sliding window of 20" in checks(report)["prompt"].detail
    assert math.isnan(report.largest_difference)
    assert statuses(report)["undo"] == "ok"


def test_a_model_whose_own_bits_differ_is_not_held_to_them(llava):
    generator = torch.Generator().manual_seed(0)

    def noise(module: Any, args: Any, output: Tensor) -> Tensor:
        return output + 1e-7 * torch.randn(output.shape, generator=generator)

    hook = llava.model.lm_head.register_forward_hook(noise)
    try:
        report = tokenprune.verify(llava.model, llava.inputs(ONE))
    finally:
        hook.remove()
    assert statuses(report)["keep all"] == statuses(report)["undo"] == "not checked"
    assert "differ from run to run" in checks(report)["undo"].detail


def test_a_report_can_be_read(llava):
    report = tokenprune.verify(llava.model, llava.inputs(ONE), keep_ratio=0.25, new_tokens=2)
    text = str(report)
    assert text.splitlines()[0].startswith(
        "divprune, 32 -> 8 visual tokens in LlavaForConditionalGeneration (llava), float32, sdpa, "
        f"transformers {transformers.__version__}"
    )
    assert text.splitlines()[-1] == "verified"
    assert "2 tokens, the same without a cache" in text
    assert json.loads(json.dumps(report.as_dict()))["checks"][0]["status"] == "ok"
    broken = dataclasses.replace(report, checks=report.checks[:1])
    assert math.isnan(broken.largest_difference)
    assert broken.as_dict()["largest_difference"] is None


# -- what is broken is not ------------------------------------------------------------------------


@contextmanager
def language_model_given(host: Host, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The language model of a host that hands it something else."""
    base = host.model.model
    module = getattr(base, "language_model", None) or base.text_model
    plain = module.forward

    @functools.wraps(plain)
    def forward(*args: Any, **given: Any) -> Any:
        change(given)
        return plain(*args, **given)

    with mock.patch.dict(module.__dict__, {"forward": forward}):
        yield


def whole_length(host: Host, given: dict[str, Any]) -> bool:
    """A prompt of which nothing was taken out, and what follows it without a cache."""
    return given["inputs_embeds"].shape[1] >= 49


def is_shortened(cache: Any) -> bool:
    """Whether a cache holds fewer columns than it counts."""
    return any(layer.keys.shape[2] < cache.get_seq_length() for layer in cache.layers)


FAULTS = ["prompt position", "step position", "leak", "step leak", "lost cache", "order", "merged"]
NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "paligemma"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_faults_are_caught(name, fault):
    host = build(name)
    inputs = host.inputs(ONE)
    length = inputs["input_ids"].shape[1]
    visual = inputs["input_ids"] == IMAGE

    def change(given: dict[str, Any]) -> None:
        now = given["inputs_embeds"].shape[1]
        short = 1 < now < length
        step = now == 1 and is_shortened(given[CACHE])
        positions, mask = given.get("position_ids"), given.get("attention_mask")
        if fault == "prompt position" and short:
            # The tokens after the first image come one too early.
            late = torch.arange(now) > now // 2
            given["position_ids"] = positions - late.to(positions)
        elif fault == "step position" and step:
            given["position_ids"] = positions + 1
        elif fault == "leak" and now >= length:
            given["attention_mask"] = opened(mask)
        elif fault == "step leak" and step:
            given[CACHE] = with_zeros(given[CACHE])
            given["attention_mask"] = None
        elif fault == "lost cache" and step:
            given[CACHE] = None
        elif fault == "order" and short:
            given["inputs_embeds"] = given["inputs_embeds"].clone()
            first = int(visual[0].nonzero()[0])
            given["inputs_embeds"][:, first : first + 4] = given["inputs_embeds"][
                :, first : first + 4
            ].flip(1)

    method = "visionzip" if fault == "merged" else "divprune"
    with language_model_given(host, change):
        if fault == "merged":  # what was made of an image's tokens goes to others of its slots
            plain = ReducedImages.features
            with mock.patch.object(
                ReducedImages, "features", lambda self, like: plain(self, like).flip(0)
            ):
                report = tokenprune.verify(host.model, inputs, method=method)
        else:
            report = tokenprune.verify(host.model, inputs, method=method)
    assert not report.ok, report
    found = statuses(report)
    where = "generation" if fault in ("step position", "step leak", "lost cache") else "prompt"
    unproved = where == "generation" and name in NEEDS_CACHE
    assert found[where] in (("not checked", "failed") if unproved else ("failed",)), report
    assert found["keep all"] == found["undo"] == "ok", report
    if fault != "leak":  # there it is the whole model that is not what it seems
        assert found["features"] == "ok", report


def test_a_model_that_needs_its_cache_is_not_checked(llava):
    """Its own steps are wrong: nothing can be said of those of the reduced model."""

    def change(given: dict[str, Any]) -> None:
        if given["inputs_embeds"].shape[1] == 1:
            given["position_ids"] = given["position_ids"] + 1

    with language_model_given(llava, change):
        report = tokenprune.verify(llava.model, llava.inputs(ONE))
    assert not report.ok
    assert statuses(report) == {**ALL_OK, "generation": "not checked"}
    assert "the whole model itself differs by" in checks(report)["generation"].detail


def opened(mask: Any) -> Any:
    """A mask that closes nothing but the future."""
    if isinstance(mask, dict):
        return {kind: opened(one) for kind, one in mask.items()}
    if not isinstance(mask, Tensor):
        return mask
    if mask.ndim == 2:
        return torch.ones_like(mask)
    return mask | torch.ones(mask.shape[2:], dtype=torch.bool).tril()


def with_zeros(cache: Any) -> Any:
    """Keys of nothing before the first: what a padded cache whose mask is lost would show."""
    for layer in cache.layers:
        layer.keys = nn.functional.pad(layer.keys, (0, 0, 1, 0))
        layer.values = nn.functional.pad(layer.values, (0, 0, 1, 0), value=1.0)
    return cache


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_faults_between_layers_are_caught(name, method):
    """One later layer attends to one column too few."""
    host = build(name)
    layer = host.model.model.language_model.layers[3]
    plain = layer.forward
    length = host.inputs(ONE)["input_ids"].shape[1]

    @functools.wraps(plain)
    def forward(hidden_states: Tensor, *args: Any, **given: Any) -> Any:
        now = hidden_states.shape[1]
        if 1 < now < length:
            own = torch.ones(1, 1, now, now, dtype=torch.bool).tril()
            own[..., 1:, 0] = False
            given["attention_mask"] = own
        return plain(hidden_states, *args, **given)

    with mock.patch.dict(layer.__dict__, {"forward": forward}):
        report = tokenprune.verify(host.model, host.inputs(ONE), method=method)
    assert statuses(report)["prompt"] == "failed", report


@pytest.mark.parametrize("name", NAMES)
def test_features_in_another_order_are_caught(name):
    """A host that shuffles features after it encoded them: grids and attention do not fit."""
    host = build(name)
    visual = host.inputs(ONE)["input_ids"] == IMAGE
    base = host.model.model

    def shuffle(module: Any, args: Any, given: Any) -> Any:
        embeddings = given["inputs_embeds"]
        if embeddings.shape[1] >= visual.shape[1]:
            embeddings = embeddings.clone()
            embeddings[:, : visual.shape[1]][visual] = embeddings[:, : visual.shape[1]][
                visual
            ].roll(1, 0)
            given = {**given, "inputs_embeds": embeddings}
        return args, given

    module = getattr(base, "language_model", None) or base.text_model
    hook = module.register_forward_pre_hook(shuffle, with_kwargs=True)
    try:
        report = tokenprune.verify(host.model, host.inputs(ONE))
    finally:
        hook.remove()
    assert statuses(report)["features"] == "failed", report


def test_a_cache_that_is_not_found_is_caught(llava):
    """The host's cache has a name that is not known: nothing is applied, and nothing is ok."""
    base = llava.model.model
    plain = base.forward

    def forward(
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        kv_store: Any = None,
        inputs_embeds: Any = None,
        **given: Any,
    ) -> Any:
        return plain(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{CACHE: given.pop(CACHE, kv_store)},
            **given,
        )

    with mock.patch.dict(base.__dict__, {"forward": forward}):
        report = tokenprune.verify(llava.model, llava.inputs(ONE))
    assert not report.ok
    found = checks(report)
    assert found["prompt"].status == found["keep all"].status == "failed"
    assert "must take its cache as cache or past_key_values" in found["prompt"].detail


def test_a_forward_that_forgets_to_hand_on_its_cache_is_caught(llava):
    head = llava.model
    plain = head.model.forward

    @functools.wraps(plain)
    def forward(*args: Any, **given: Any) -> Any:
        if given["input_ids"].shape[1] == 1:
            given.pop(CACHE)
        return plain(*args, **given)

    with mock.patch.dict(head.model.__dict__, {"forward": forward}):
        report = tokenprune.verify(head, llava.inputs(ONE))
    assert not report.ok
    assert statuses(report)["generation"] == "failed", report


@pytest.mark.parametrize(
    ("owner", "name", "value", "said"),
    [
        ("model", "forgotten", True, "model.forgotten"),
        ("", "_loss_function", len, "_loss_function"),
        ("generation_config", "max_new_tokens", 1, "the generation_config"),
    ],
)
def test_what_stays_behind_is_caught(llava, owner, name, value, said):
    owner = getattr(llava.model, owner) if owner else llava.model
    there, before = name in vars(owner), vars(owner).get(name)
    plain = tokenprune.Handle.remove

    def remove(self: Any) -> None:
        plain(self)
        setattr(owner, name, value)

    try:
        with mock.patch.object(tokenprune.Handle, "remove", remove):
            report = tokenprune.verify(llava.model, llava.inputs(ONE))
    finally:
        if there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
    assert statuses(report)["undo"] == "failed"
    assert f"changed: {said}" in checks(report)["undo"].detail


# -- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(llava):
    inputs = llava.inputs(ONE)
    text = {"input_ids": torch.tensor([[5, 6, 7]])}
    for arguments, error, message in (
        ({"inputs": text}, ValueError, r"must hold an image, got no placeholder \(id 100\)"),
        ({"inputs": {"pixel_values": inputs["pixel_values"]}}, ValueError, "must have input_ids"),
        ({"inputs": 3}, TypeError, "a mapping, got int"),
        ({"method": "best"}, ValueError, "method must be one of"),
        ({"method": 3}, TypeError, "must be a name or a Method, got int"),
        ({"keep_ratio": 1.5}, ValueError, r"keep_ratio must be in \(0, 1\], got 1.5"),
        ({"method": get_method("fastv", layer=9)}, ValueError, "layer must lie below the 4 layers"),
        ({"new_tokens": 0}, ValueError, "new_tokens must be at least 1, got 0"),
        ({"model": nn.Linear(2, 2)}, NotImplementedError, "no adapter for Linear"),
        ({"model": "llava"}, TypeError, "got str"),
    ):
        given = {"model": llava.model, "inputs": inputs, **arguments}
        with pytest.raises(error, match=message):
            tokenprune.verify(given.pop("model"), given.pop("inputs"), **given)
    with (
        tokenprune.apply(llava.model, "random", num_keep=3),
        pytest.raises(ValueError, match="got one with a reduction applied"),
    ):
        tokenprune.verify(llava.model, inputs)
    llava.model.train()
    try:
        with pytest.raises(ValueError, match=r"call model.eval\(\)"):
            tokenprune.verify(llava.model, inputs)
    finally:
        llava.model.eval()
