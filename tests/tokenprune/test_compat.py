"""What is assumed of transformers is checked, and a cache that goes unseen is an error."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

import tokenprune
from tokenprune.hosts.compat import CACHE_NAMES

from .hosts import CACHE, HOSTS, IMAGE, Host, cache_in
from .test_apply import ONE, build, generated, logits_of, traces


@pytest.fixture
def llava() -> Host:
    return build("llava")


def renamed(function: Any, old: str, new: str) -> Any:
    """`function`, but that its argument `old` is called `new`, as in another release."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def other(*args: Any, **given: Any) -> Any:
        if new in given:
            given[old] = given.pop(new)
        return function(*args, **given)

    parameters = [
        parameter.replace(name=new) if name == old else parameter
        for name, parameter in signature.parameters.items()
    ]
    other.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return other


@pytest.mark.parametrize("part", ["", "language_model"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_an_unknown_cache_name_is_refused_at_entry(name, part, monkeypatch):
    host = build(name)
    module = host.model.model.get_submodule(part)
    before = traces(host.model)
    monkeypatch.setitem(module.__dict__, "forward", renamed(module.forward, CACHE, "kv_store"))
    message = (
        rf"transformers {transformers.__version__} .*forward must take its cache as "
        rf"{' or '.join(CACHE_NAMES)}, got .*kv_store"
    )
    for _ in range(2):  # a refusal leaves nothing behind that would let the next one pass
        with pytest.raises(NotImplementedError, match=message):
            tokenprune.apply(host.model, "divprune", keep_ratio=0.5)
    monkeypatch.undo()
    assert traces(host.model) == before


@pytest.mark.parametrize("part", ["", "self_attn"])
def test_layers_are_looked_at_where_a_method_works_between_them(part, monkeypatch):
    host = build("llava")
    module = host.model.model.language_model.layers[1].get_submodule(part)
    monkeypatch.setitem(module.__dict__, "forward", renamed(module.forward, CACHE, "kv_store"))
    with pytest.raises(NotImplementedError, match=r"must take its cache as .* got .*kv_store"):
        tokenprune.apply(host.model, tokenprune.get_method("fastv", layer=1), keep_ratio=0.5)
    tokenprune.apply(host.model, "divprune", keep_ratio=0.5).remove()


@pytest.mark.parametrize("old", ["inputs_embeds", "attention_mask", "position_ids"])
def test_other_names_are_assumed_too(llava, old, monkeypatch):
    module = llava.model.model
    monkeypatch.setitem(module.__dict__, "forward", renamed(module.forward, old, "another"))
    with pytest.raises(
        NotImplementedError, match=f"LlavaModel.forward must take {old}, got .*anot"
    ):
        tokenprune.apply(llava.model, "divprune", keep_ratio=0.5)


def test_images_must_be_encoded_where_they_are_watched(llava, monkeypatch):
    monkeypatch.setattr(type(llava.model.model), "get_image_features", None)
    with pytest.raises(NotImplementedError, match="must encode images in get_image_features"):
        tokenprune.apply(llava.model, "divprune", keep_ratio=0.5)


def test_image_features_must_arrive(llava, monkeypatch):
    base = llava.model.model
    plain = base.get_image_features

    @functools.wraps(plain)
    def without(*args: Any, **given: Any) -> Any:
        return BaseModelOutput(plain(*args, **given).last_hidden_state)

    inputs = llava.inputs(ONE)
    monkeypatch.setitem(base.__dict__, "get_image_features", without)
    with (
        tokenprune.apply(llava.model, "divprune", keep_ratio=0.5),
        pytest.raises(NotImplementedError, match="get_image_features must give pooler_output"),
    ):
        logits_of(llava, inputs)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava_next", "llava_onevision"])
def test_a_family_checks_its_own_assumptions(name, monkeypatch):
    host = build(name)
    base = host.model.model
    owner, function, old = {
        "qwen2_vl": (base, "get_image_features", "image_grid_thw"),
        "qwen3_vl": (base.language_model, "forward", "deepstack_visual_embeds"),
        "llava_next": (base, "pack_image_features", "image_newline"),
        "llava_onevision": (base, "pack_image_features", "vision_aspect_ratio"),
    }[name]
    other = renamed(getattr(owner, function), old, "another")
    monkeypatch.setitem(owner.__dict__, function, other)
    with pytest.raises(NotImplementedError, match=rf"{function} must take {old}, got .*another"):
        tokenprune.apply(host.model, "divprune", keep_ratio=0.5)


@pytest.mark.parametrize("name", HOSTS)
def test_both_cache_names_reach_the_same_cache(name):
    """A caller may still use the former name, where this release knows both."""
    host = build(name)
    inputs = host.inputs(ONE)
    token = torch.tensor([[7]])
    results = []
    for names in ((CACHE, CACHE), ("past_key_values", "past_key_values")):
        with tokenprune.apply(host.model, "divprune", keep_ratio=0.4), torch.no_grad():
            cache = cache_in(host.model(**inputs, use_cache=True))
            results.append(
                [
                    host.model.model(input_ids=token, **{name: cache}).last_hidden_state
                    for name in names
                ]
            )
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# -- a step without its cache ---------------------------------------------------------------------


def step_of(inputs: dict[str, Any]) -> dict[str, Any]:
    mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    return {"input_ids": torch.tensor([[7]]), "attention_mask": mask}


@pytest.mark.parametrize("method", ["divprune", "fastv"])
@pytest.mark.parametrize("how", ["mask", "positions", "nothing"])
def test_a_step_without_its_cache_is_no_new_prompt(llava, how, method):
    inputs = llava.inputs(ONE)
    step = step_of(inputs)
    if how != "mask":
        step.pop("attention_mask")
    if how == "positions":
        step |= {
            "input_ids": torch.tensor([[7, 8]]),
            "position_ids": inputs["input_ids"].shape[1] + torch.arange(2)[None],
        }
    method = tokenprune.get_method(method, **({"layer": 1} if method == "fastv" else {}))
    with tokenprune.apply(llava.model, method, keep_ratio=0.4) as handle, torch.no_grad():
        llava.model(**inputs, use_cache=True)
        kept = handle.kept_positions
        message = rf"LlavaModel.forward was called .* without a cache.* Pass the cache as {CACHE}"
        with pytest.raises(RuntimeError, match=message):
            llava.model(**step)
        assert torch.equal(handle.kept_positions[0], kept[0])


@pytest.mark.parametrize("how", ["other rows", "an empty cache", "another forward between"])
def test_a_mask_alone_says_that_a_step_is_no_new_prompt(llava, how):
    inputs = llava.inputs(ONE)
    step = step_of(inputs)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4), torch.no_grad():
        llava.model(**inputs, use_cache=True)
        if how == "other rows":
            step = {name: value.repeat(3, 1) for name, value in step.items()}
        elif how == "an empty cache":
            step[CACHE] = transformers.DynamicCache()
        else:
            llava.model(input_ids=torch.tensor([[1, 7]]), use_cache=False)
        with pytest.raises(RuntimeError, match=r"for 1 more columns without a cache"):
            llava.model(**step)


def test_a_cache_made_anew_from_a_shortened_one_is_refused(llava):
    """It holds no note of what was removed; the mask of the whole sequence shows it."""
    inputs = llava.inputs(ONE)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4), torch.no_grad():
        cache = cache_in(llava.model(**inputs, use_cache=True))
        other = transformers.DynamicCache()
        for number, layer in enumerate(cache.layers):
            other.update(layer.keys, layer.values, number)
        with pytest.raises(
            RuntimeError, match=r"must have \d+ columns, .* is not the one that was"
        ):
            llava.model(**step_of(inputs), **{CACHE: other})


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_a_language_model_that_does_not_hand_its_cache_on(llava, method, monkeypatch):
    """generate() has filled its own in place: the notes on it must be there all the same."""
    inputs = llava.inputs([[3, 0, 4, 0, 5], [6], [2, 0, 9]])
    method = tokenprune.get_method(method, **({"layer": 1} if method == "fastv" else {}))
    with tokenprune.apply(llava.model, method, keep_ratio=0.4):
        expected = generated(llava, inputs)
    module = llava.model.model.language_model
    plain = module.forward

    @functools.wraps(plain)
    def forward(*args: Any, **given: Any) -> Any:
        output = plain(*args, **given)
        setattr(output, CACHE, None)
        return output

    monkeypatch.setitem(module.__dict__, "forward", forward)
    cache = transformers.DynamicCache()
    step = {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with tokenprune.apply(llava.model, method, keep_ratio=0.4), torch.no_grad():
        logits = [llava.model(**step, **{CACHE: cache}).logits[:, -1]]
        for column in range(4):
            token = expected.sequences[:, column - 5, None]
            mask = torch.nn.functional.pad(step["attention_mask"], (0, 1), value=1)
            positions = (mask.cumsum(1) - 1)[:, -1:]
            step = {"input_ids": token, "attention_mask": mask, "position_ids": positions}
            logits.append(llava.model(**step, **{CACHE: cache}).logits[:, -1])
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected.logits), atol=1e-5, rtol=0)


def test_placeholders_without_images_are_refused(llava):
    ids = llava.inputs(ONE)["input_ids"]
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4), torch.no_grad():
        message = r"input_ids hold 32 placeholders .* expected pixel_values or mm_encoder_outputs"
        with pytest.raises(ValueError, match=message):
            llava.model(input_ids=ids)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4, strict=False):
        logits_of(llava, {"input_ids": ids})


def test_an_apply_that_fails_halfway_leaves_nothing(llava, monkeypatch):
    before = traces(llava.model)
    inputs = llava.inputs(ONE)
    with monkeypatch.context() as patch:
        patch.setattr(type(llava.model), "loss_function", None)
        for _ in range(2):
            with pytest.raises(NotImplementedError, match="must compute its loss in loss_function"):
                tokenprune.apply(llava.model, "divprune", keep_ratio=0.4)
            assert traces(llava.model) == before
            llava.model(**inputs)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4):
        assert llava.model(**inputs, labels=inputs["input_ids"]).loss.isfinite()


def test_the_language_model_may_be_called_by_itself(llava):
    model = llava.model.model.language_model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4):
            logits_of(llava, llava.inputs(ONE))
            assert torch.equal(model(input_ids=ids).last_hidden_state, expected)


def test_a_new_prompt_is_still_one(llava):
    """Text alone after images, also of one token where the caller says that it needs no cache."""
    inputs = llava.inputs(ONE)
    text = {"input_ids": torch.tensor([[1, 7, 8]])}
    plain = logits_of(llava, text)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4) as handle:
        generated(llava, inputs)
        assert torch.equal(logits_of(llava, text), plain)
        generated(llava, inputs)
        logits_of(llava, {"input_ids": torch.tensor([[1]]), "use_cache": False})
        assert handle.kept_positions[0].tolist() == [0]
        generated(llava, inputs)
        generated(llava, {"input_ids": torch.tensor([[1]])})
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4, strict=False):
        logits_of(llava, inputs)
        logits_of(llava, step_of(inputs))


def test_a_cache_under_an_unknown_name_is_refused(llava):
    """The host takes anything as a keyword: what nobody reads must not pass for nothing."""
    inputs = llava.inputs(ONE)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4), torch.no_grad():
        cache = cache_in(llava.model(**inputs, use_cache=True))
        with pytest.raises(NotImplementedError, match="is called with a cache as kv_store"):
            llava.model.model(**step_of(inputs), kv_store=cache)


def test_a_host_that_hands_on_another_cache_is_noticed(llava):
    inputs = llava.inputs(ONE)
    with tokenprune.apply(llava.model, "divprune", keep_ratio=0.4), torch.no_grad():
        cache = cache_in(llava.model(**inputs, use_cache=True))

    def lose(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, CACHE: None}

    hook = llava.model.model.language_model.register_forward_pre_hook(lose, with_kwargs=True)
    try:
        with (
            tokenprune.apply(llava.model, "divprune", keep_ratio=0.4),
            pytest.raises(NotImplementedError, match=r"Qwen2Model.forward must be called with the"),
            torch.no_grad(),
        ):
            llava.model(input_ids=torch.tensor([[7]]), **{CACHE: cache})
    finally:
        hook.remove()


def test_no_call_of_ours_warns(llava, capfd):
    """The names that this release has are the ones that are used."""
    transformers.logging.set_verbosity_warning()
    inputs = llava.inputs(ONE)
    for method in ("divprune", tokenprune.get_method("fastv", layer=1)):
        with tokenprune.apply(llava.model, method, keep_ratio=0.4):
            generated(llava, inputs)
    said = capfd.readouterr().err
    assert "deprecated" not in said
    assert int((inputs["input_ids"] == IMAGE).sum()) == 32
