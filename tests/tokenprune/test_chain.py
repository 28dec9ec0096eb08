"""Stages in turn, told in places of the first stage's tokens."""

from __future__ import annotations

import pytest
import torch

from tokenprune import Chain, VisionTokens, get_method
from tokenprune.testing import check_method, example_tokens

from .cases import fields


@pytest.mark.parametrize(
    ("names", "budgets"),
    [
        (["tome"], []),
        (["fastervlm", "tome"], [0.5]),
        (["tome", "divprune"], [20]),
        (["uniform", "prumerge", "tome"], [0.9, 15]),
        (["cdpruner", "visionzip"], [1.0]),
    ],
)
def test_contract(names, budgets):
    check_method(Chain(*map(get_method, names), budgets=budgets))


def test_one_stage_is_the_method():
    tokens, method = example_tokens(), get_method("tome")
    for name, value in fields(Chain(method).reduce(tokens, 7)).items():
        assert torch.equal(value, fields(method.reduce(tokens, 7))[name])


def test_what_was_dropped_stays_dropped_and_what_was_merged_moves_on():
    tokens = example_tokens()
    first = get_method("fastervlm").reduce(tokens, 15)
    chain = Chain(get_method("fastervlm"), get_method("tome"), budgets=[0.5])
    result = chain.reduce(tokens, 4)
    for crop in range(3):
        kept = set(first.keep_indices[crop].tolist())
        assert set(result.keep_indices[crop].tolist()) <= kept
        for slot, root in enumerate(result.keep_indices[crop].tolist()):
            members = (result.assignment[crop] == root).nonzero().flatten()
            assert set(members.tolist()) <= kept
            mean = tokens.features[crop, members].mean(0)
            torch.testing.assert_close(result.features[crop, slot], mean)
        assert result.counts[crop].sum() == 15


def test_merging_twice_follows_both():
    tokens = example_tokens()
    result = Chain(get_method("tome"), get_method("tome"), budgets=[12]).reduce(tokens, 5)
    assert (result.counts.sum(1) == 30).all()  # nothing is lost
    first = get_method("tome").reduce(tokens, 12)
    for crop in range(3):
        pairs = zip(first.assignment[crop].tolist(), result.assignment[crop].tolist(), strict=True)
        assert len(set(pairs)) == 12  # each first root moved to one place


def test_budgets_are_never_below_what_comes_after_nor_above_what_comes_before():
    tokens = example_tokens()
    result = Chain(get_method("uniform"), get_method("uniform"), budgets=[3]).reduce(tokens, 9)
    assert torch.equal(result.keep_indices, get_method("uniform").reduce(tokens, 9).keep_indices)
    assert Chain(get_method("random"), get_method("tome"), budgets=[99]).reduce(tokens, 9)


def test_declarations_are_those_of_any_stage():
    chain = Chain(get_method("cdpruner"), get_method("visionzip"), budgets=[0.5])
    assert chain.needs == ("attention", "text")
    assert chain.merges
    assert not chain.query_agnostic
    with pytest.raises(ValueError, match=r"Chain needs VisionTokens\.attention"):
        chain.reduce(VisionTokens(torch.zeros(1, 4, 8), (2, 2)), 2)
    assert Chain(get_method("random")).query_agnostic
    assert not Chain(get_method("random")).merges


@pytest.mark.parametrize(
    ("stages", "budgets", "error", "message"),
    [
        ([], [], ValueError, "at least one method, got none"),
        (["tome"], [], TypeError, "expects methods, got str"),
        (
            [get_method("fastv")],
            [],
            NotImplementedError,
            "FastV works in a language model's layers",
        ),
        ([get_method("tome")], [4], ValueError, "0, got 1"),
        ([get_method("tome")] * 2, [0], ValueError, "at least 1 or a float .* got 0"),
        ([get_method("tome")] * 2, [1.5], ValueError, r"in \(0, 1\], got 1.5"),
    ],
)
def test_bad_chains(stages, budgets, error, message):
    with pytest.raises(error, match=message):
        Chain(*stages, budgets=budgets)


def test_shows_its_methods():
    chain = Chain(get_method("fastervlm"), get_method("tome"), budgets=[0.5])
    assert repr(chain) == (
        "Chain(FasterVLM(strict=True), ToMe(strict=True, compared='features', "
        "class_token=False, official=False, impl='auto'), budgets=[0.5])"
    )
    assert repr(Chain(get_method("fastervlm"), strict=False)).endswith("budgets=[], strict=False)")


def test_only_the_first_stage_sees_frames():
    evs, divprune = get_method("evs"), get_method("divprune")
    chain = Chain(evs, divprune, budgets=[0.5])
    assert chain.over_time
    tokens = example_tokens(2, (2, 5), frames=3)
    result = chain.reduce(tokens, 6)
    first = evs.reduce(tokens, 15).keep_indices
    assert torch.isin(result.keep_indices[0], first[0]).all()
    with pytest.raises(ValueError, match="DivPrune takes images, got videos of 3 frames"):
        divprune.reduce(tokens, 6)
    with pytest.raises(NotImplementedError, match="EVS compares whole frames"):
        Chain(divprune, evs, budgets=[0.5])


def test_frames_must_fit_the_tokens():
    features = torch.randn(1, 12, 4)
    assert VisionTokens(features, (2, 2), frames=3).frames == 3
    for frames, message in ((0, "at least 1, got 0"), (2, "in each of 2 frames = 8 must equal")):
        with pytest.raises(ValueError, match=message):
            VisionTokens(features, (2, 2), frames=frames)
