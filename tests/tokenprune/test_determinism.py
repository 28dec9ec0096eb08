"""What a method keeps is the same in every run, on any number of threads, and in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tokenprune import ReducedTokens, VisionTokens
from tokenprune.testing import tokens_for

from .test_methods import ALONE, build

BATCH, GRID, WIDTH, NUM_KEEP = 5, (12, 12), 64, 40


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def kept_by(result: ReducedTokens) -> list[Tensor]:
    """The kept tokens of each crop; packed slots are taken apart."""
    if result.cu_seqlens is None:
        return list(result.keep_indices)
    return list(result.keep_indices.split(result.cu_seqlens.diff().tolist()))


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for crop, (one, other) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(one, other), f"crop {crop} keeps other tokens"


def joined(tokens: VisionTokens, times: int) -> VisionTokens:
    """The crops so many times over, in one batch."""
    return tokens.with_tensors(
        {name: torch.cat([value] * times) for name, value in tokens.tensors().items()}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALONE)
def test_the_same_is_kept_in_runs_threads_and_batches(name, dtype, threads):
    method = build(name, WIDTH)
    tokens = tokens_for(method, WIDTH, batch=BATCH, grid_size=GRID, dtype=dtype)
    torch.set_num_threads(1)
    first = kept_by(method.reduce(tokens, NUM_KEEP))
    assert_same(first, kept_by(method.reduce(tokens, NUM_KEEP)))
    torch.set_num_threads(2)
    assert_same(first, kept_by(method.reduce(tokens, NUM_KEEP)))
    alone = [kept_by(method.reduce(tokens.crop(crop), NUM_KEEP)) for crop in range(BATCH)]
    assert_same(first, [kept for (kept,) in alone])
    many = kept_by(method.reduce(joined(tokens, 4), NUM_KEEP))  # more than a block of crops
    assert_same(first * 4, many)
