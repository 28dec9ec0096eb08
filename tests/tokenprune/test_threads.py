"""Threads through one model: each gets what it would get alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch

import tokenprune
from tokenprune import get_method
from tokenprune.hosts import attention
from tokenprune.hosts.registry import find_adapter

from .hosts import Host
from .test_apply import generated, traces
from .test_layers import deep, layers_of

THREADS, ROUNDS = 8, 20
METHODS = {
    "divprune": {},
    "fastervlm": {},
    "fastv": {"layer": 1},
    "visionzip": {"compared": "keys"},
}


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns five hundred times as often as Python has them do by itself."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def prompts(host: Host) -> list[dict[str, Any]]:
    """Of different lengths, images and numbers of rows; one is text alone."""
    rows = [
        [[3, 0, 4]],
        [[9, 0, 1, 0, 2]],
        [[5]],
        [[2, 0, 8], [7, 0, 3]],
        [[1, 0, 0, 0, 1]],
        [[4, 0, 4], [6]],
        [[12, 0, 2]],
        [[2, 0, 2, 0, 9]],
    ]
    return [host.inputs(one, seed=number) for number, one in enumerate(rows)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llava", "divprune"),
        ("llava", "fastervlm"),
        ("llava", "visionzip"),
        ("llava", "fastv"),
        ("idefics3", "divprune"),
    ],
)
def test_eight_threads_are_eight_calls_in_a_row(kind, name, restless):
    host = deep(kind)
    inputs = prompts(host)
    before = traces(host.model)
    with tokenprune.apply(host.model, get_method(name, **METHODS[name]), num_keep=5) as handle:

        def answer(number: int) -> tuple[Any, list[Any], Any]:
            output = generated(host, inputs[number], max_new_tokens=2)
            return torch.stack(output.logits), handle.kept_positions, handle.last

        alone = [answer(number) for number in range(THREADS)]
        together = threading.Barrier(THREADS)

        def answers(number: int) -> list[tuple[Any, list[Any], Any]]:
            torch.set_num_threads(1)
            together.wait()
            return [answer(number) for _ in range(ROUNDS)]

        with ThreadPoolExecutor(THREADS) as pool:
            for expected, got in zip(alone, pool.map(answers, range(THREADS)), strict=True):
                for logits, kept, _ in got:
                    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=0)
                    assert len(kept) == len(expected[1])
                    assert all(map(torch.equal, kept, expected[1]))
    assert traces(host.model) == before


def test_a_new_thread_has_no_run_yet():
    host = deep("llava")
    with tokenprune.apply(host.model, "divprune", num_keep=5) as handle:
        generated(host, host.inputs([[3, 0, 4]]))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: (handle.last, handle.kept_positions)).result() == (None, [])
        assert handle.last is not None


@pytest.mark.parametrize("name", ["fastv", "divprune"])
def test_checkpoints_run_again_in_other_threads(name):
    """Two threads train at once, and each backward runs in a thread of its own."""
    host = deep("llava")
    inputs = prompts(host)[:2]
    host.model.train()
    host.model.gradient_checkpointing_enable()
    target = layers_of(host)[3].mlp.up_proj.weight

    def gradient(given: dict[str, Any]) -> torch.Tensor:
        labels = given["input_ids"].masked_fill(given["input_ids"] == 100, -100)
        loss = host.model(**given, labels=labels).loss
        found: list[torch.Tensor] = []
        work = threading.Thread(target=lambda: found.extend(torch.autograd.grad(loss, [target])))
        work.start()
        work.join()
        return found[0]

    with tokenprune.apply(host.model, get_method(name, **METHODS[name]), num_keep=5):
        alone = [gradient(given) for given in inputs]
        with ThreadPoolExecutor(2) as pool:
            both = [list(pool.map(gradient, inputs)) for _ in range(10)]
    for pair in both:
        for expected, got in zip(alone, pair, strict=True):
            torch.testing.assert_close(got, expected)


def test_a_layer_whose_configuration_is_just_being_exchanged_attends_as_it_does(monkeypatch):
    """Another thread begins to read between two looks at the layer."""
    layer = find_adapter(deep("llava").model).attention_layer
    plain, begun = attention.attention_implementation, ExitStack()

    def late(owner: Any) -> str:
        monkeypatch.setattr(attention, "attention_implementation", plain)
        begun.enter_context(attention.attention_exchanged(layer, lambda *args, **kwargs: None))
        return plain(owner)

    monkeypatch.setattr(attention, "attention_implementation", late)
    with begun:
        attend = attention.real_attention(layer)
        held = [cell.cell_contents for cell in attend.__closure__ or ()]
        assert attention.attend_or_read not in held
