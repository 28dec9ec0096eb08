"""What tokens may carry besides, rows that stand for no token, and counts known beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenprune
from tokenprune import Chain, LayerMethod, ReducedTokens, VisionTokens, get_method, list_methods
from tokenprune.testing import check_method, example_tokens, tokens_for
from tokenprune.tokens import refuse_extra

from .cases import fields
from .families import FAMILIES
from .test_methods import ALONE, build

PUBLISHED = {"compared": "keys", "merging": "sum", "keep_cls": True}
VARIANTS = {
    **{name: lambda name=name: build(name) for name in ALONE},
    "visionzip, class token": lambda: get_method("visionzip", keep_cls=True),
    "visionzip, as published": lambda: get_method("visionzip", **PUBLISHED),
    "tome, keys": lambda: get_method("tome", compared="keys"),
    "prumerge, as published but for the budget": lambda: get_method(
        "prumerge", compared="keys", neighbors=32, keep_rest=True
    ),
    "two extra rows": lambda: Chain(
        get_method("visionzip", keep_cls=True), get_method("visionzip", keep_cls=True), budgets=[12]
    ),
    "in turn": lambda: Chain(get_method("fastervlm"), get_method("tome"), budgets=[0.5]),
}


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=8)
@given(rows=st.integers(1, 6), cols=st.integers(1, 6), data=st.data())
def test_count_is_what_comes_out(name, rows, cols, data):
    method = VARIANTS[name]()
    num_keep = data.draw(st.integers(1, rows * cols))
    result = method.reduce(tokens_for(method, 16, batch=2, grid_size=(rows, cols)), num_keep)
    num_extra = 0 if result.extra is None else result.extra.shape[1]
    assert result.keep_indices.shape[1] + num_extra == result.rows.shape[1]
    assert method.count(rows * cols, num_keep) == result.rows.shape[1]
    assert method.known_count(rows * cols, num_keep) == result.rows.shape[1]


def test_counts_of_methods_between_layers_are_the_budget():
    for name in list_methods():
        method = build(name)
        if isinstance(method, LayerMethod):
            assert method.count(576, 64) == method.counts(576, 64, len(method.cuts(32)))[-1] == 64


class Unforeseen(type(get_method("random"))):
    def count(self, num_tokens, num_keep):
        return None


def test_a_count_that_depends_on_the_image_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="Unforeseen keeps depends on the image"):
        Unforeseen().known_count(30, 7)
    with pytest.raises(NotImplementedError, match="Unforeseen keeps depends on the image, Chain"):
        Chain(get_method("random"), Unforeseen(), budgets=[9])


def test_prumerge_as_many_as_stand_out():
    tokens = example_tokens(3)
    attention = torch.full((3, 30), 0.01)
    attention += 0.001 * torch.arange(30)
    attention[0, [3, 9]] = 1
    attention[1, [1, 2, 5, 8, 20]] = 1
    tokens = replace(tokens, attention=attention)
    method = get_method("prumerge", adaptive=True, keep_rest=True)
    check_method(method)
    assert method.count(30, 4) is None
    result = method.reduce(tokens, 4)  # a budget is the most that a crop keeps
    assert result.cu_seqlens.tolist() == [0, 2, 6, 7]
    assert result.keep_indices.tolist() == [3, 9, 1, 2, 5, 8, 29]
    assert result.extra.shape == (3, 1, 16)
    for crop, quota in enumerate((2, 4, 1)):
        alone = get_method("prumerge", keep_rest=True).reduce(tokens.crop(crop), quota)
        first, last = result.cu_seqlens[crop : crop + 2].tolist()
        assert torch.equal(result.features[first:last], alone.features[0])
        assert torch.equal(result.counts[first:last], alone.counts[0])
        assert torch.equal(result.extra[crop], alone.extra[0])
    empty = method.reduce(example_tokens(0), 4)
    assert empty.cu_seqlens.tolist() == [0]
    assert empty.features.shape == (0, 16)
    assert method.approximates == (
        "features for keys; clusters do not overlap; attention of several heads for one as wide"
    )


def test_packing_what_lies_packed_is_refused():
    packed = get_method("prumerge", adaptive=True).reduce(example_tokens(), 4)
    with pytest.raises(NotImplementedError, match=r"expects slots \[B, K\], got packed ones"):
        ReducedTokens.pack([packed])
    with pytest.raises(ValueError, match="at least one part"):
        ReducedTokens.pack([])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("visionzip", {"keep_cls": True}),
        ("visionzip", {"compared": "keys"}),
        ("tome", {"compared": "keys"}),
        ("prumerge", {"compared": "keys"}),
    ],
)
def test_options_keep_every_promise(name, options):
    check_method(get_method(name, **options))


def test_visionzip_declares_what_its_options_ask_for():
    published = get_method("visionzip", **PUBLISHED)
    assert published.needs == ("attention", "cls", "keys")
    assert published.tower_layers == {"keys": (-2,)}
    assert published.approximates == "merged after the projector"
    default = get_method("visionzip")
    assert default.needs == type(default).needs == ("attention",)
    assert default.approximates == type(default).approximates
    assert default.tower_layers == {}
    tokens = VisionTokens(torch.zeros(1, 4, 8), (2, 2), attention=torch.ones(1, 4))
    for options, missing in (({"keep_cls": True}, "cls"), ({"compared": "keys"}, "keys")):
        with pytest.raises(ValueError, match=f"VisionZip needs VisionTokens.{missing}, got"):
            get_method("visionzip", **options).reduce(tokens, 2)
    for options, message in (
        ({"compared": "queries"}, "compared must be 'features' or 'keys', got 'queries'"),
        ({"merging": "max"}, "merging must be 'mean' or 'sum', got 'max'"),
    ):
        with pytest.raises(ValueError, match=message):
            get_method("visionzip", **options)


def test_the_class_token_comes_out_untouched():
    tokens = example_tokens()
    result = get_method("visionzip", keep_cls=True).reduce(tokens, 7)
    plain = get_method("visionzip").reduce(tokens, 7)
    assert torch.equal(result.extra, tokens.cls[:, None])
    assert torch.equal(result.rows, torch.cat([plain.features, tokens.cls[:, None]], 1))
    for name, value in fields(plain).items():
        assert torch.equal(value, fields(result)[name])
    assert plain.extra is None
    assert plain.rows is plain.features


def test_one_head_or_several():
    """Heads lie side by side; who has their mean already says that there is one head."""
    tokens = example_tokens()
    method = get_method("visionzip", compared="keys", contextual_ratio=0.5)
    mean = tokens.keys.unflatten(2, (tokens.num_heads, -1)).mean(2)
    expected = method.reduce(tokens, 7)
    result = method.reduce(replace(tokens, keys=mean, queries=None, num_heads=1), 7)
    assert torch.equal(result.assignment, expected.assignment)
    other = get_method("visionzip", contextual_ratio=0.5).reduce(tokens, 7)
    assert not torch.equal(result.assignment, other.assignment)


def test_a_chain_hands_on_what_its_stages_need():
    chain = Chain(
        get_method("fastervlm"), get_method("visionzip", **PUBLISHED), budgets=[15], strict=True
    )
    assert chain.needs == ("attention", "cls", "keys")
    assert chain.tower_layers == {"keys": (-2,)}
    tokens = example_tokens()
    result = chain.reduce(tokens, 7)
    assert torch.equal(result.extra, tokens.cls[:, None])
    # The second stage alone on what the first keeps gives the same.
    kept = get_method("fastervlm").reduce(tokens, 15).keep_indices
    at = kept[:, :, None]
    alone = get_method("visionzip", **PUBLISHED).reduce(
        VisionTokens(
            tokens.features.gather(1, at.expand(-1, -1, 16)),
            (3, 5),
            cls=tokens.cls,
            attention=tokens.attention.gather(1, kept),
            keys=tokens.keys.gather(1, at.expand(-1, -1, tokens.keys.shape[2])),
            num_heads=tokens.num_heads,
        ),
        7,
    )
    assert torch.equal(result.features, alone.features)
    assert torch.equal(result.keep_indices, kept.gather(1, alone.keep_indices))


def test_stages_that_name_different_layers_are_refused():
    other = get_method("visionzip", compared="keys")
    other.declare(tower_layers={"keys": (-1,)})
    with pytest.raises(ValueError, match=r"keys of one layer, got those of \[-2, -1\]"):
        Chain(get_method("visionzip", compared="keys"), other, budgets=[9])


def test_extra_rows_join_along_the_batch():
    tokens = example_tokens(5)
    method = get_method("visionzip", keep_cls=True)
    whole = method.reduce(tokens, 7)
    parts = [
        method.reduce(tokens.with_tensors({k: v[some] for k, v in tokens.tensors().items()}), 7)
        for some in (slice(0, 2), slice(2, 5))
    ]
    assert torch.equal(ReducedTokens.cat(parts).extra, whole.extra)
    with pytest.raises(ValueError, match="in all parts or in none, got them in 1 of 2"):
        ReducedTokens.cat([parts[0], replace(parts[1], extra=None)])


def test_extra_rows_and_packed_slots_do_not_mix():
    result = get_method("visionzip", keep_cls=True).reduce(example_tokens(), 7)
    packed = replace(result, cu_seqlens=torch.tensor([0, 7, 14, 21], dtype=torch.int32))
    with pytest.raises(NotImplementedError, match="cannot be joined to packed slots"):
        packed.rows  # noqa: B018


def test_where_extra_rows_have_no_place():
    result = get_method("visionzip", keep_cls=True).reduce(example_tokens(), 7)
    with pytest.raises(NotImplementedError, match=r"VisionZip adds 1 rows .* LLaVA has no place"):
        refuse_extra("VisionZip", result, "LLaVA")
    refuse_extra("VisionZip", replace(result, extra=None), "LLaVA")


@pytest.mark.parametrize(
    ("build", "options", "missing"),
    [
        (FAMILIES["aya_vision"], {"compared": "keys"}, "attention, keys of the tower"),
        (FAMILIES["qwen2_vl"], {"keep_cls": True}, "cls, Qwen2VLModel hands over attention, f"),
    ],
)
def test_a_host_that_cannot_hand_it_over_refuses_by_name(build, options, missing):
    model = build().model
    with pytest.raises(NotImplementedError, match=f"VisionZip needs {missing}"):
        tokenprune.apply(model, get_method("visionzip", **options), num_keep=3)


@pytest.mark.parametrize("name", ["keys", "queries"])
def test_keys_and_queries_are_checked(name):
    features = torch.zeros(2, 6, 4)
    for value, error, message in (
        (torch.zeros(2, 6), ValueError, rf"{name} must be \[B, N, Dk\], got shape \[2, 6\]"),
        (torch.zeros(2, 5, 8), ValueError, r"= \[2, 6, 8\], got \[2, 5, 8\]"),
        (torch.zeros(2, 6, 0), ValueError, r"got shape \[2, 6, 0\]"),
        (torch.zeros(2, 6, 8).int(), TypeError, f"{name} must be floating point"),
        (torch.zeros(2, 6, 8, device="meta"), ValueError, f"{name} must be on cpu"),
        ([0.0], TypeError, f"{name} must be a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            VisionTokens(features, (2, 3), **{name: value})
    with pytest.raises(ValueError, match=f"num_heads must divide Dk = 8 of {name}, got 3"):
        VisionTokens(features, (2, 3), **{name: torch.zeros(2, 6, 8)}, num_heads=3)


def test_hidden_states_are_checked():
    features = torch.zeros(2, 6, 4)
    with pytest.raises(ValueError, match=r"hidden_states\[9\] must be .* got \[2, 5, 4\]"):
        VisionTokens(features, (2, 3), hidden_states={9: torch.zeros(2, 5, 4)})
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        VisionTokens(features, (2, 3), num_heads=0)


def test_hidden_states_of_the_layers_that_are_named():
    method = get_method("random")
    method.declare(needs=("hidden_states",), tower_layers={"hidden_states": (9, -2)})
    with pytest.raises(ValueError, match=r"of the layers \[9, -2\], got those of \[-2\]"):
        method.reduce(example_tokens(), 7)
    with pytest.raises(ValueError, match=r"needs VisionTokens.hidden_states, got .* = None"):
        method.reduce(VisionTokens(torch.zeros(1, 4, 8), (2, 2)), 2)
    tokens = example_tokens(hidden_layers=(9, -2))
    method.reduce(tokens, 7)
    tokens.hidden_states[9][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"hidden_states\[9\] must be finite, .* in 1 of 3"):
        method.reduce(tokens, 7)


# -- crops of one image ----------------------------------------------------------------------------


def test_crops_come_apart_as_they_were_put_together():
    tokens = example_tokens(3)
    method = get_method("prumerge", adaptive=True, keep_rest=True, compared="keys")
    packed = method.reduce(tokens, 9)
    for crop, part in enumerate(packed.unpacked()):
        alone = method.reduce(tokens.crop(crop), 9)
        for name in ("keep_indices", "valid", "scores"):
            assert torch.equal(getattr(part, name)[0], getattr(alone, name))
        torch.testing.assert_close(part.features[0], alone.features)
        torch.testing.assert_close(part.rows[0, -1], alone.extra[0, 0])
    plain = get_method("random").reduce(tokens, 4)
    assert torch.equal(torch.cat([part.features for part in plain.unpacked()]), plain.features)


def test_an_order_of_rows_goes_on_from_one_crop_to_the_next():
    tokens = example_tokens(2)
    method = get_method("visionzip", official=True, contextual_ratio=0.4)
    both, parts = method.reduce(tokens, 7), [method.reduce(tokens.crop(n), 7) for n in (0, 1)]
    joined = type(both).cat(parts)
    assert torch.equal(joined.order, both.order)
    assert torch.equal(both.order.sort().values, torch.arange(16))
    assert both.order[0] == 7  # the class token, the first crop's extra row, is read first


def test_forms_of_crops_are_in_no_chain():
    for name in ("globalcom2", "hiprune"):
        options = {"official": True} if name == "hiprune" else {}
        with pytest.raises(NotImplementedError, match="shares an image's budget over its crops"):
            Chain(get_method(name, **options), get_method("random"), budgets=[9])


def test_shapes_of_what_is_said_of_crops_are_checked():
    for name, message in (("shown", "shown must be"), ("roots", "roots must be")):
        wrong = {name: torch.ones(3, 5, dtype=torch.int64)}
        with pytest.raises(ValueError, match=message):
            replace(example_tokens(3), **wrong)
