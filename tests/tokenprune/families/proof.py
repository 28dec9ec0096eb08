"""What is shown of a type of hosts before it is listed as supported.

`tests/tokenprune/test_families.py` runs it, and `tools/tested_hosts.py`, which writes the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

import tokenprune
from tokenprune.hosts.before_model import BeforeModel
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.verifying.runs import Given, Runs

from ..hosts import CACHE, NEEDS_CACHE, Host, cache_in

ONE = [[5, 0, 4, 0, 6]]  # two images, of unequal size where the family has more than one size
BATCH = [[5, 0, 4, 0, 6], [9, 0, 3]]  # padded on the left
KEEP = 0.4  # more than half of the tokens go, also where a number is rounded up
NEW, ASKED = 6, 4  # tokens generated, and asked in the second turn
TOLERANCE = 1e-4  # on logits, beside the tighter one that `verify` measures
BY_COLUMN = ("attention_mask", "token_type_ids", "mm_token_type_ids")


def masked_equivalence(host: Host, rows: list[list[int]]) -> None:
    """Six checks of `verify`, none left out: the prompt, six tokens, ratio 1 to the bit, undo."""
    report = verified(host, rows)
    # Where the whole model says something else without a cache, it is no reference.
    generation = {"generation"} if host.model_type in NEEDS_CACHE else set()
    bad = {check.name for check in report.checks if check.status != "ok"} - generation
    assert not bad, report
    assert 2 * report.tokens_after <= report.tokens_before
    shown = {check.name: check for check in report.checks if check.difference is not None}
    for name in ({"prompt", "generation"} - generation) & set(shown):
        assert shown[name].difference <= TOLERANCE, report


def verified(host: Host, rows: list[list[int]]) -> tokenprune.VerifyReport:
    return tokenprune.verify(
        host.model, host.inputs(rows), method="divprune", keep_ratio=KEEP, new_tokens=NEW
    )


def one_position_off(host: Host) -> None:
    """A planted fault: from the second image on, kept tokens are one position off."""
    plain = BeforeModel.positions

    def off(self: Any, given: Any, columns: Any) -> Tensor:
        positions = plain(self, given, columns).clone()
        positions[..., positions.shape[-1] // 2 :] += 1
        return positions

    with mock.patch.object(BeforeModel, "positions", off):
        report = verified(host, ONE)
    checks = {check.name: check.status for check in report.checks}
    assert checks["prompt"] == "failed", report


def second_turn(host: Host, rows: list[list[int]]) -> None:
    """An answer, and another question in the cache: as the whole model with the tokens hidden."""
    inputs, method = host.inputs(rows), tokenprune.get_method("divprune")
    length, batch = inputs["input_ids"].shape[1], len(rows)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, 90, (batch, 2 * NEW + ASKED), generator=generator)
    answer, asked, last = words.split([NEW, ASKED, NEW], 1)
    with tokenprune.apply(host.model, method, keep_ratio=KEEP) as handle:
        first = said(host, inputs, answer, length)
        kept = Runs(host.model, find_adapter(host.model), inputs, method, NEW).kept(handle)
        # The last word of an answer is not in the cache yet.
        again = longer(inputs, torch.cat([answer, asked], 1))
        talk = {name: again[name] for name in ("input_ids", *BY_COLUMN) if name in again}
        second = said(host, {**talk, CACHE: cache_in(first)}, last, length + NEW + ASKED)
    whole = Runs(host.model, find_adapter(host.model), again, method, NEW - 1)
    use_cache = host.model_type in NEEDS_CACHE
    if use_cache:
        return
    with torch.no_grad():
        hidden = whole.reference(kept, lambda: whole.generate(last, use_cache=False))
    short = torch.stack(second.logits, 1)
    torch.testing.assert_close(short, hidden.steps, atol=TOLERANCE, rtol=0)


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
    """The prompt, and words after it."""
    padded = {
        name: functional.pad(inputs[name], (0, words.shape[1]), value=int(name == BY_COLUMN[0]))
        for name in BY_COLUMN
        if name in inputs
    }
    return {**inputs, **padded, "input_ids": torch.cat([inputs["input_ids"], words], 1)}


PROOFS: dict[str, Callable[[Host], None]] = {
    "single": lambda host: masked_equivalence(host, ONE),
    "batch": lambda host: masked_equivalence(host, BATCH),
    "second turn": lambda host: second_turn(host, ONE),
    "second turn, batch": lambda host: second_turn(host, BATCH),
    "one position off": one_position_off,
}
