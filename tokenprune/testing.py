"""The contract of a method, for tests here and in other packages."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.method import OF_TOWER, OF_TOWER_LAYER, Method
from tokenprune.tokens import BY_LAYER, ReducedTokens, VisionTokens

__all__ = ["check_method", "check_packed", "check_result", "example_tokens", "tokens_for"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUM_HEADS = 2
JOINT_WIDTH = 8
DEFAULT_LAYERS = {"hidden_states": (-2,), "received": (8, -2)}
NEEDS = (*OF_TOWER, "text", "image_embeds", "text_embeds", "layers")


def example_tokens(
    batch: int = 3,
    grid_size: tuple[int, int] = (6, 5),
    width: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    hidden_layers: Sequence[int] = DEFAULT_LAYERS["hidden_states"],
    received_layers: Sequence[int] = DEFAULT_LAYERS["received"],
    frames: int = 1,
) -> VisionTokens:
    """Random tokens that carry everything a method may need.

    Args:
        hidden_layers: the tower layers whose `hidden_states` the tokens carry.
        received_layers: those whose attention received they carry.
        frames: of a video, each of `grid_size`.
    """
    generator = torch.Generator().manual_seed(seed)
    num_tokens = frames * grid_size[0] * grid_size[1]
    everything = torch.randn(batch, num_tokens + 5, width, generator=generator).to(dtype)
    features, cls, text = everything.split([num_tokens, 1, 4], dim=1)
    attention = torch.rand(batch, num_tokens, generator=generator).softmax(1)

    def of_a_layer(width: int) -> Tensor:
        return torch.randn(batch, num_tokens, width, generator=generator).to(dtype)

    return VisionTokens(
        features,
        grid_size,
        cls=cls[:, 0],
        attention=attention,
        keys=of_a_layer(NUM_HEADS * 4),
        queries=of_a_layer(NUM_HEADS * 4),
        hidden_states={layer: of_a_layer(width) for layer in hidden_layers},
        received={
            layer: torch.rand(batch, num_tokens, generator=generator) for layer in received_layers
        },
        cls_logits=of_a_layer(1)[:, :, 0],
        single_head_attention=torch.rand(batch, num_tokens, generator=generator),
        text=text,
        image_embeds=of_a_layer(JOINT_WIDTH),
        text_embeds=of_a_layer(JOINT_WIDTH)[:, :2],
        num_heads=NUM_HEADS,
        frames=frames,
    )


def tokens_for(method: Method, width: int, **options: Any) -> VisionTokens:
    """`example_tokens` with the tower layers that a method names, in frames if it works over time.

    There are as many tokens either way.
    """
    layers = {name: method.tower_layers.get(name, DEFAULT_LAYERS[name]) for name in BY_LAYER}
    rows, cols = options.pop("grid_size", (6, 5))
    frames = 3 if method.over_time and rows % 3 == 0 else 1
    grid_size = (rows // frames, cols)
    return example_tokens(
        width=width,
        hidden_layers=layers["hidden_states"],
        received_layers=layers["received"],
        grid_size=grid_size,
        frames=frames,
        **options,
    )


def check_method(method: Method | type[Method], *, width: int = 16) -> None:
    """Raises AssertionError, naming the promise, if a method breaks the contract.

    Declared needs, exact count, unique ascending indices in range, equivariance to permutations of
    the batch, the same result again, float16 to float64, gradients, a budget of N as the identity,
    the grid without effect unless declared, one token, all tokens equal, NaN refused in strict
    mode, `count` as it comes out.

    A method whose `count` is None keeps a number that depends on the data, and gives packed slots:
    it is put to the promises about declarations and counts alone.

    Args:
        method: a method, or the class of one that has no required options.
        width: D of the tokens, where the options fix it.
    """
    instance = method() if isinstance(method, type) else method
    promises = LAYER_PROMISES if instance.in_layers else PROMISES
    if promises is PROMISES and instance.count(30, 7) is None:
        promises = (_declarations, _count_is_known_beforehand)
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
    if result.extra is not None:
        num_extra = result.extra.shape[1] if result.extra.ndim == 3 else 1
        shapes["extra"] = ((batch, num_extra, width), tokens.features.dtype)
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


def check_packed(result: ReducedTokens, tokens: VisionTokens) -> None:
    """Raises AssertionError if a result is not one of packed slots, some number for each crop."""
    batch, num_tokens, width = tokens.features.shape
    require(result.cu_seqlens is not None, "cu_seqlens must be given where the count is not known")
    bounds = result.cu_seqlens
    assert bounds is not None
    require(bounds.dtype == torch.int32, f"cu_seqlens must be int32, got {bounds.dtype}")
    require(tuple(bounds.shape) == (batch + 1,), f"cu_seqlens must be [{batch + 1}]")
    total = int(bounds[-1])
    shapes = {
        "features": ((total, width), tokens.features.dtype),
        "keep_indices": ((total,), torch.int64),
        "valid": ((total,), torch.bool),
        "assignment": ((batch, num_tokens), torch.int64),
        "scores": ((total,), torch.float32),
    }
    for name, expected in shapes.items():
        value = getattr(result, name)
        got = tuple(value.shape), value.dtype
        require(got == expected, f"{name} must be {expected}, got {got}")
    for crop in range(batch):
        kept = result.keep_indices[bounds[crop] : bounds[crop + 1]]
        require((kept.diff() > 0).all(), "keep_indices must ascend within a crop")
        require(((kept >= 0) & (kept < num_tokens)).all(), f"must lie in [0, {num_tokens})")


def _declarations(method: Method, width: int) -> None:
    unknown = set(method.needs) - {*NEEDS}
    require(not unknown, f"needs must be of {', '.join(NEEDS)}, got {', '.join(sorted(unknown))}")
    layered = {name for name in method.needs if name in OF_TOWER_LAYER}
    named = {name for name, layers in method.tower_layers.items() if layers}
    require(layered == named, f"tower_layers must name {sorted(layered)}, got {sorted(named)}")
    for name in named - {*BY_LAYER}:
        require(len(method.tower_layers[name]) == 1, f"{name} must be of one tower layer")


def _count_is_known_beforehand(method: Method, width: int) -> None:
    for grid_size in ((6, 5), (1, 1)):
        tokens = tokens_for(method, width, grid_size=grid_size)
        num_tokens = tokens.features.shape[1]
        for num_keep in {1, min(7, num_tokens), num_tokens}:
            count = method.count(num_tokens, num_keep)
            result = method.reduce(tokens, num_keep)
            if count is None:
                check_packed(result, tokens)
                continue
            rows = result.rows.shape[1]
            require(
                count == rows, f"says {count} rows for {num_keep} of {num_tokens}, gives {rows}"
            )


def _exact_count(method: Method, width: int) -> None:
    tokens = tokens_for(method, width)
    for num_keep in (1, 2, 7, 23, 30):
        check_result(method.reduce(tokens, num_keep), tokens, num_keep)


def _permutation_of_the_batch(method: Method, width: int) -> None:
    tokens = tokens_for(method, width)
    order = torch.tensor([2, 0, 1])
    permuted = tokens.with_tensors({name: value[order] for name, value in tokens.tensors().items()})
    first, other = method.reduce(tokens, 7), method.reduce(permuted, 7)
    require(torch.equal(first.keep_indices[order], other.keep_indices), "keeps other tokens")
    require(torch.equal(first.assignment[order], other.assignment), "assigns otherwise")
    torch.testing.assert_close(first.rows[order], other.rows)


def _the_same_again(method: Method, width: int) -> None:
    tokens = tokens_for(method, width)
    state = torch.get_rng_state()
    first, again = method.reduce(tokens, 7), method.reduce(tokens, 7)
    for name, value in _tensors(first).items():
        require(torch.equal(value, getattr(again, name)), f"{name} differ in a second run")
    require(torch.equal(torch.get_rng_state(), state), "draws from the global generator")


def _every_dtype(method: Method, width: int) -> None:
    for dtype in DTYPES:
        tokens = tokens_for(method, width, dtype=dtype)
        result = method.reduce(tokens, 7)
        check_result(result, tokens, 7)
        require(result.rows.isfinite().all(), f"features are not finite in {dtype}")


def _gradients(method: Method, width: int) -> None:
    tokens = tokens_for(method, width)
    features = tokens.features.clone().requires_grad_()
    method.reduce(replace(tokens, features=features), 7).features.square().sum().backward()
    require(features.grad is not None, "none arrives at the features")
    gradient = features.grad
    assert gradient is not None
    require(gradient.isfinite().all(), "is not finite")
    require((gradient.flatten(1) != 0).any(1).all(), "is zero for a whole crop")


def _a_budget_of_N_is_the_identity(method: Method, width: int) -> None:  # noqa: N802
    tokens = tokens_for(method, width)
    result = method.reduce(tokens, 30)
    # A method may find fewer clusters than N; where it does not, nothing has been merged.
    if result.valid.all():
        torch.testing.assert_close(result.features, tokens.features)


def _grid_as_declared(method: Method, width: int) -> None:
    if method.uses_grid:
        return
    tokens = tokens_for(method, width)
    row = tokens.with_tensors({}, grid_size=(1, 30 // tokens.frames))
    result, flat = method.reduce(tokens, 7), method.reduce(row, 7)
    same = torch.equal(result.keep_indices, flat.keep_indices)
    require(
        same and torch.equal(result.assignment, flat.assignment),
        "the result must be the same for a grid of one row, or uses_grid declared",
    )


def _one_token(method: Method, width: int) -> None:
    tokens = tokens_for(method, width, grid_size=(1, 1))
    result = method.reduce(tokens, 1)
    check_result(result, tokens, 1)
    torch.testing.assert_close(result.features, tokens.features)


def _constant_features(method: Method, width: int) -> None:
    tokens = tokens_for(method, width)
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
    needed = ("features", *method.needs)
    names = [name for name in tokens_for(method, width).tensors() if name.split("[")[0] in needed]
    for name in names:
        for bad in (torch.nan, torch.inf):
            tokens = tokens_for(method, width)
            value = tokens.tensors()[name].clone()
            value[1].view(-1)[0] = bad
            broken = tokens.with_tensors({name: value})
            try:
                strict.reduce(broken, 7)
            except ValueError:
                continue
            raise AssertionError(f"{bad} in {name} is not refused in strict mode")
    tokens = tokens_for(method, width)
    tokens.features[1, 0, 0] = torch.nan
    result = _with_strict(method, False).reduce(tokens, 7)
    require((result.keep_indices.diff(dim=1) > 0).all(), "repeats tokens when not strict")
    require(result.features[0].isfinite().all(), "spreads to other crops when not strict")


def _with_strict(method: Method, strict: bool) -> Method:
    changed = copy.copy(method)
    changed.strict = strict
    return changed


def _tensors(result: ReducedTokens) -> dict[str, Tensor]:
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


PROMISES: tuple[Callable[[Method, int], None], ...] = (
    _declarations,
    _exact_count,
    _permutation_of_the_batch,
    _the_same_again,
    _every_dtype,
    _gradients,
    _a_budget_of_N_is_the_identity,
    _grid_as_declared,
    _one_token,
    _constant_features,
    _not_finite,
    _count_is_known_beforehand,
)


def _cuts_ascend_within_the_layers(method: Method, width: int) -> None:
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


def _counts_never_grow(method: Method, width: int) -> None:
    num_cuts = len(method.cuts(80))
    for num_tokens in (1, 2, 30, 577):
        for num_keep in {1, (num_tokens + 1) // 2, num_tokens}:
            counts = method.counts(num_tokens, num_keep, num_cuts)
            expected = f"for {num_keep} of {num_tokens} tokens in {num_cuts} cuts, got {counts}"
            require(len(counts) == num_cuts, f"must be one for each cut {expected}")
            require(counts == sorted(counts, reverse=True), f"grow {expected}")
            require(counts[0] <= num_tokens, f"are more than there are {expected}")
            require(counts[-1] == num_keep, f"do not end in the budget {expected}")


def _tokens_alone_are_refused(method: Method, width: int) -> None:
    try:
        method.reduce(tokens_for(method, width), 7)
    except NotImplementedError:
        return
    raise AssertionError("`reduce` has no language model, and answers all the same")


LAYER_PROMISES: tuple[Callable[[Any, int], None], ...] = (
    _cuts_ascend_within_the_layers,
    _counts_never_grow,
    _tokens_alone_are_refused,
)
