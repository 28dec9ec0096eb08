"""Two ranks on a CPU answer what transformers answers with `tokenprune.apply`."""

from __future__ import annotations

import dataclasses

import pytest

from .engine import applied, ask, differences, given, open_engine, positions_of, prompts
from .forks import in_fork

QUARTER = {"keep_ratio": 0.25}


def choose_by_rank(model):
    """Makes the second rank choose other tokens. Returns the rank."""
    from vllm.distributed import get_tp_group

    rank, reduce = get_tp_group().rank_in_group, model._method._reduce

    def other(tokens, num_keep):
        rolled = tokens.features.roll(rank, dims=1) * (1 + rank)
        return reduce(dataclasses.replace(tokens, features=rolled), num_keep)

    vars(model._method)["_reduce"] = other
    return rank


@pytest.mark.parametrize(
    ("name", "method"),
    [("llava", "divprune"), ("llava", "spatial_pool"), ("qwen2_5_vl", "divprune")],
)
def test_two_ranks_go_on_with_the_choice_of_the_first(checkpoint, name, method):
    folder, asked = checkpoint(name), prompts(name)
    options = {**QUARTER, "positions": positions_of(name)}
    expected = in_fork(applied, folder, asked, method, **options)

    def ask_all():
        engine = open_engine(folder, **given(method, **QUARTER), tensor_parallel_size=2)
        assert engine.apply_model(choose_by_rank) == [0, 1]
        return ask(engine, [prompt.request() for prompt in asked])

    assert differences(in_fork(ask_all), expected) == []
