"""The contract of a method, for tests here and in other packages."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.method import LayerMethod, Method
from tokenprune.tokens import ReducedTokens, VisionTokens

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def example_tokens(
    batch: int = 3,
    grid_size: tuple[int, int] = (6, 5),
    width: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> VisionTokens:
    """Random tokens that carry everything a method may need."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = grid_size[0] * grid_size[1]
    everything = torch.randn(batch, num_tokens + 5, width, generator=generator).to(dtype)
    features, cls, text = everything.split([num_tokens, 1, 4], dim=1)
    attention = torch.rand(batch, num_tokens, generator=generator).softmax(1)
    return VisionTokens(features, grid_size, cls=cls[:, 0], attention=attention, text=text)


def check_method(method: Method | type[Method], *, width: int = 16) -> None:
    """Raises AssertionError, naming the promise, if a method breaks the contract.

    Exact count, unique ascending indices in range, equivariance to permutations of the batch, the
    same result again, float16 to float64, gradients, a budget of N as the identity, one token, all
    tokens equal, NaN refused in strict mode.

    Args:
        method: a method, or the class of one that has no required options.
        width: D of the tokens, where the options fix it.
    """
    instance = method() if isinstance(method, type) else method
    promises = LAYER_PROMISES if isinstance(instance, LayerMethod) else PROMISES
    for promise in promises:
        try:
            promise(instance, width)
        except Exception as error:
            name = promise.__name__.removeprefix("_").replace("_", " ")
            raise AssertionError(f"{type(instance).__name__}, {name}: {error}") from error


def require(truth: bool | Tensor, message: str) -> None:
    # A statement `assert` would be silent under `python -O`.
    if not truth:
        raise AssertionError(message)


def check_result(result: ReducedTokens, tokens: VisionTokens, num_keep: int) -> None:
    """Raises AssertionError if a result is not one of `num_keep` tokens per crop."""
    batch, num_tokens, width = tokens.features.shape
    shapes = {
        "features": ((batch, num_keep, width), tokens.features.dtype),
        "keep_indices": ((batch, num_keep), torch.int64),
        "valid": ((batch, num_keep), torch.bool),
        "assignment": ((batch, num_tokens), torch.int64),
        "scores": ((batch, num_keep), torch.float32),
    }
    for name, expected in shapes.items():
        value = getattr(result, name)
        got = tuple(value.shape), value.dtype
        require(got == expected, f"{name} must be {expected}, got {got}")
    kept, roots = result.keep_indices, result.assignment
    require((kept.diff(dim=1) > 0).all(), "keep_indices must be unique and ascending")
    for name, value in (("keep_indices", kept), ("assignment", roots)):
        inside = (value >= 0) & (value < num_tokens)
        require(inside.all(), f"{name} must lie in [0, {num_tokens})")
    members = result.counts[result.valid]
    require((members >= 1).all(), "a valid slot must be the root of at least one token")
    require((result.features[~result.valid] == 0).all(), "slots that are not valid must be zero")
    require(result.grid_size == tokens.grid_size, f"grid_size must be {tokens.grid_size}")


def _exact_count(method: Method, width: int) -> None:
    tokens = example_tokens(width=width)
    for num_keep in (1, 2, 7, 23, 30):
        check_result(method.reduce(tokens, num_keep), tokens, num_keep)


def _permutation_of_the_batch(method: Method, width: int) -> None:
    tokens = example_tokens(width=width)
    order = torch.tensor([2, 0, 1])
    permuted = replace(
        tokens,
        **{name: value[order] for name, value in _tensors(tokens).items()},
    )
    first, other = method.reduce(tokens, 7), method.reduce(permuted, 7)
    require(torch.equal(first.keep_indices[order], other.keep_indices), "keeps other tokens")
    require(torch.equal(first.assignment[order], other.assignment), "assigns otherwise")
    torch.testing.assert_close(first.features[order], other.features)


def _the_same_again(method: Method, width: int) -> None:
    tokens = example_tokens(width=width)
    state = torch.get_rng_state()
    first, again = method.reduce(tokens, 7), method.reduce(tokens, 7)
    for name, value in _tensors(first).items():
        require(torch.equal(value, getattr(again, name)), f"{name} differ in a second run")
    require(torch.equal(torch.get_rng_state(), state), "draws from the global generator")


def _every_dtype(method: Method, width: int) -> None:
    for dtype in DTYPES:
        tokens = example_tokens(width=width, dtype=dtype)
        result = method.reduce(tokens, 7)
        check_result(result, tokens, 7)
        require(result.features.isfinite().all(), f"features are not finite in {dtype}")


def _gradients(method: Method, width: int) -> None:
    tokens = example_tokens(width=width)
    features = tokens.features.clone().requires_grad_()
    method.reduce(replace(tokens, features=features), 7).features.square().sum().backward()
    require(features.grad is not None, "none arrives at the features")
    gradient = features.grad
    assert gradient is not None
    require(gradient.isfinite().all(), "is not finite")
    require((gradient.flatten(1) != 0).any(1).all(), "is zero for a whole crop")


def _a_budget_of_N_is_the_identity(method: Method, width: int) -> None:  # noqa: N802
    tokens = example_tokens(width=width)
    result = method.reduce(tokens, 30)
    # A method may find fewer clusters than N; where it does not, nothing has been merged.
    if result.valid.all():
        torch.testing.assert_close(result.features, tokens.features)


def _one_token(method: Method, width: int) -> None:
    tokens = example_tokens(grid_size=(1, 1), width=width)
    result = method.reduce(tokens, 1)
    check_result(result, tokens, 1)
    torch.testing.assert_close(result.features, tokens.features)


def _constant_features(method: Method, width: int) -> None:
    tokens = example_tokens(width=width)
    for value in (1.0, 0.0):
        equal = replace(
            tokens,
            features=torch.full_like(tokens.features, value),
            attention=torch.full((3, 30), value / 30),
        )
        for num_keep in (1, 7, 30):
            result = method.reduce(equal, num_keep)
            check_result(result, equal, num_keep)
            kept = result.features[result.valid]
            torch.testing.assert_close(kept, torch.full_like(kept, value))


def _not_finite(method: Method, width: int) -> None:
    strict = _with_strict(method, True)
    for name in ("features", *method.needs):
        for bad in (torch.nan, torch.inf):
            tokens = example_tokens(width=width)
            value = getattr(tokens, name).clone()
            value[(1,) + (0,) * (value.ndim - 1)] = bad
            broken = replace(tokens, **{name: value})
            try:
                strict.reduce(broken, 7)
            except ValueError:
                continue
            raise AssertionError(f"{bad} in {name} is not refused in strict mode")
    tokens = example_tokens(width=width)
    tokens.features[1, 0, 0] = torch.nan
    result = _with_strict(method, False).reduce(tokens, 7)
    require((result.keep_indices.diff(dim=1) > 0).all(), "repeats tokens when not strict")
    require(result.features[0].isfinite().all(), "spreads to other crops when not strict")


def _with_strict(method: Method, strict: bool) -> Method:
    changed = copy.copy(method)
    changed.strict = strict
    return changed


def _tensors(carrier: VisionTokens | ReducedTokens) -> dict[str, Any]:
    values = {field.name: getattr(carrier, field.name) for field in dataclasses.fields(carrier)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


PROMISES: tuple[Callable[[Method, int], None], ...] = (
    _exact_count,
    _permutation_of_the_batch,
    _the_same_again,
    _every_dtype,
    _gradients,
    _a_budget_of_N_is_the_identity,
    _one_token,
    _constant_features,
    _not_finite,
)


def _cuts_ascend_within_the_layers(method: LayerMethod, width: int) -> None:
    for num_layers in (4, 28, 32, 80):
        try:
            cuts = method.cuts(num_layers)
        except ValueError:  # options for a deeper model
            require(num_layers < 80, "are refused in 80 layers")
            continue
        before = [cut.before for cut in cuts]
        require(len(cuts) > 0, f"there are none in {num_layers} layers")
        require(before == sorted({*before}), f"they do not ascend, got {before}")
        require(before[0] >= 1, "the first layer must see all")
        require(before[-1] < num_layers, f"the last of {num_layers} layers lies before {before}")
        for cut in cuts:
            require(0 <= cut.ranked_in <= cut.before, f"{cut} is ranked by a layer after it")


def _counts_never_grow(method: LayerMethod, width: int) -> None:
    num_cuts = len(method.cuts(80))
    for num_tokens in (1, 2, 30, 577):
        for num_keep in {1, (num_tokens + 1) // 2, num_tokens}:
            counts = method.counts(num_tokens, num_keep, num_cuts)
            expected = f"for {num_keep} of {num_tokens} tokens in {num_cuts} cuts, got {counts}"
            require(len(counts) == num_cuts, f"must be one for each cut {expected}")
            require(counts == sorted(counts, reverse=True), f"grow {expected}")
            require(counts[0] <= num_tokens, f"are more than there are {expected}")
            require(counts[-1] == num_keep, f"do not end in the budget {expected}")


def _tokens_alone_are_refused(method: LayerMethod, width: int) -> None:
    try:
        method.reduce(example_tokens(width=width), 7)
    except NotImplementedError:
        return
    raise AssertionError("`reduce` has no language model, and answers all the same")


LAYER_PROMISES: tuple[Callable[[Any, int], None], ...] = (
    _cuts_ascend_within_the_layers,
    _counts_never_grow,
    _tokens_alone_are_refused,
)
