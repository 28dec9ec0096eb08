"""What is shown of a type of hosts before it is listed as supported.

`tests/tokenprune/test_families.py` runs it, and `tools/tested_hosts.py`, which writes the list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import tokenprune
from tokenprune.hosts.before_model import BeforeModel
from tokenprune.hosts.recurrent import KINDS
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.verifying.hidden import absent
from tokenprune.hosts.verifying.proof import Proof
from tokenprune.hosts.verifying.runs import Given, Runs

from ..hosts import CACHE, NEEDS_CACHE, Host, cache_in

ONE = [[5, 0, 4, 0, 6]]  # two images, of unequal size where the family has more than one size
BATCH = [[5, 0, 4, 0, 6], [9, 0, 3]]  # padded on the left
KEEP = 0.4  # more than half of the tokens go, also where a number is rounded up
NEW, ASKED = 6, 4  # tokens generated, and asked in the second turn
TOLERANCE = 1e-4  # on logits, beside the tighter one that `verify` measures
METHOD = functools.partial(tokenprune.get_method, "divprune")
LEAST = torch.finfo(torch.float32).min
NO_POSITIONS = {"nemotron_h_omni"}
BY_COLUMN = ("attention_mask", "token_type_ids", "mm_token_type_ids")


def masked_equivalence(host: Host, rows: list[list[int]]) -> None:
    """Six checks of `verify`, none left out: the prompt, six tokens, ratio 1 to the bit, undo."""
    report = verified(host, rows)
    # Where the whole model says something else without a cache, it is no reference; `second_turn`
    # compares what is generated with one.
    generation = {"generation"} if host.model_type in NEEDS_CACHE else set()
    for check in report.checks:
        assert check.status == ("not checked" if check.name in generation else "ok"), report
    assert 2 * report.tokens_after <= report.tokens_before
    shown = {check.name: check for check in report.checks if check.difference is not None}
    for name in ({"prompt", "generation"} - generation) & set(shown):
        assert shown[name].difference <= TOLERANCE, report


def verified(host: Host, rows: list[list[int]]) -> tokenprune.VerifyReport:
    return tokenprune.verify(
        host.model, host.inputs(rows), method=METHOD(), keep_ratio=KEEP, new_tokens=NEW
    )


def one_position_off(host: Host, rows: list[list[int]] = ONE) -> None:
    """A planted fault must not pass: half of what is kept is one position off.

    Where a model has no positions but the order, one place off.
    """
    plain, ordered = BeforeModel.positions, BeforeModel.embeddings

    def off(self: Any, given: Any, columns: Any) -> Tensor:
        positions = plain(self, given, columns).clone()
        positions[..., positions.shape[-1] // 2 :] += 1
        return positions

    def moved(self: Any, *args: Any) -> Tensor:
        embeddings = ordered(self, *args)
        half = embeddings.shape[1] // 2
        return torch.cat([embeddings[:, :half], embeddings[:, half:].roll(1, 1)], 1)

    fault = ("embeddings", moved) if host.model_type in NO_POSITIONS else ("positions", off)
    with mock.patch.object(BeforeModel, *fault), torch.no_grad():
        adapter = find_adapter(host.model)
        proof = Proof(Runs(host.model, adapter, host.inputs(rows), METHOD(), 1), "", KEEP)
        proof.prompt(proof.runs.run())
    assert proof.checks[0].name == "prompt"
    assert proof.checks[0].status == "failed", proof.checks


def second_turn(
    host: Host, rows: list[list[int]] = BATCH, method: Callable[[], Any] = METHOD
) -> None:
    """An answer, and another question in the cache: as the whole model with the tokens hidden."""
    inputs = host.inputs(rows)
    with tokenprune.apply(host.model, method(), keep_ratio=KEEP):
        short = two_turns(host, inputs)
    with tokenprune.apply(host.model, method(), keep_ratio=KEEP) as handle, torch.no_grad():
        host.model(**inputs)
        hidden = find_adapter(host.model).placeholders(inputs["input_ids"])
        for row, kept in zip(hidden, handle.kept_positions, strict=True):
            row[kept] = False
    assert hidden.any()
    with hiding(host, hidden):
        whole = two_turns(host, inputs)
    assert_close(short, whole, atol=TOLERANCE, rtol=0)
    whole = two_turns(host, inputs)
    assert (short - whole).abs().max() > 2 * TOLERANCE, "hiding tokens changes nothing"


def words_of_two_turns(rows: int) -> Tensor:
    """[rows, T]: an answer, a question after it, and the answer to that."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, 90, (rows, 2 * NEW + ASKED), generator=generator)


def two_turns(host: Host, inputs: dict[str, Any]) -> Tensor:
    """[B, T, V] logits of an answer, and of one to a question after it; both are given."""
    words = words_of_two_turns(len(inputs["input_ids"]))
    answer, asked, last = words.split([NEW, ASKED, NEW], 1)
    length = inputs["input_ids"].shape[1]
    first = said(host, inputs, answer, length)
    again = longer(inputs, torch.cat([answer, asked], 1))
    again[CACHE] = cache_in(first)
    second = said(host, again, last, length + NEW + ASKED)
    return torch.stack([*first.logits, *second.logits], 1)


@contextmanager
def hiding(host: Host, hidden: Tensor) -> Iterator[None]:
    """In the whole model, columns [B, L] closed in the prompt and in every step after it."""
    language_model: Any = find_adapter(host.model).language_model

    def close(mask: Any, total: int) -> Any:
        if isinstance(mask, dict):
            return {kind: one if kind in KINDS else close(one, total) for kind, one in mask.items()}
        closed = functional.pad(hidden, (0, total - hidden.shape[1]))
        if mask is None or mask.ndim == 2:
            mask = torch.ones(closed.shape, dtype=torch.int64) if mask is None else mask
            return mask.masked_fill(closed, 0)
        held = closed[:, None, None, total - mask.shape[3] :].expand(-1, -1, mask.shape[2], -1)
        if mask.shape[2] == mask.shape[3]:  # a hidden token goes on seeing itself
            held = held & ~torch.eye(mask.shape[3], dtype=torch.bool)
        return mask.masked_fill(held, False if mask.dtype == torch.bool else LEAST)

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        cache = kwargs.get(CACHE)
        past = 0 if cache is None else cache.get_seq_length()
        total = past + kwargs["inputs_embeds"].shape[1]
        return args, kwargs | {"attention_mask": close(kwargs.get("attention_mask"), total)}

    hook = language_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with absent(language_model, hidden):
            yield
    finally:
        hook.remove()


def said(host: Host, inputs: dict[str, Any], words: Tensor, length: int) -> Any:
    """Generation that says `words` [B, T], whatever the logits."""
    return host.model.generate(
        **inputs,
        max_new_tokens=words.shape[1],
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=[Given(words, length)],
        return_dict_in_generate=True,
        output_logits=True,
    )


def longer(inputs: dict[str, Any], words: Tensor) -> dict[str, Any]:
    """The prompt without its images, and words after it."""
    ids = torch.cat([inputs["input_ids"], words], 1)
    padded = {
        name: functional.pad(inputs[name], (0, words.shape[1]), value=int(name == BY_COLUMN[0]))
        for name in BY_COLUMN
        if name in inputs
    }
    return {"input_ids": ids, **padded}


PROOFS: dict[str, Callable[[Host], None]] = {
    "single": lambda host: masked_equivalence(host, ONE),
    "batch": lambda host: masked_equivalence(host, BATCH),
    "second turn": second_turn,
    "one position off": one_position_off,
}
