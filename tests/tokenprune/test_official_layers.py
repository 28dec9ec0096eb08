"""Methods in the language model's layers as their official code, beside a plain writing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.registry import find_adapter
from tokenprune.method import Cut

from .families.proof import ASKED, NEW, longer, said
from .hosts import CACHE, IMAGE, Host, cache_in
from .plain_layers import Plain, PlainDART, plain_logits
from .test_apply import generated, logits_of
from .test_layers import assert_exact, assert_no_cache, assert_rows, deep

ROW = [[5, 0, 6]]
ROWS = [[5, 0, 6], [7], [9, 0, 3]]  # of unequal length, one of them without image
HOSTS = ("llava", "llava_next", "qwen2_5_vl")
DART = {"official": True, "layer": 2, "image_pivots": 2, "text_pivots": 2}


_built: dict[str, Host] = {}


def build(name: str) -> Host:
    """Four layers, and a final norm that half of the channels hardly pass: it must be noticed."""
    if name not in _built:
        _built[name] = deep(name)
        norm_of(_built[name]).weight.data[::2] = 0.01
    return _built[name]


def norm_of(host: Host) -> Any:
    return find_adapter(host.model).language_model.norm


@pytest.fixture(params=HOSTS)
def host(request) -> Host:
    return build(request.param)


def dart(host: Host) -> Plain:
    """6 of an image's tokens: two pivots, and one for each of four."""
    return PlainDART(2, 1, 2, norm_of(host))


FORMS: dict[str, tuple[Any, int, Any]] = {  # the method, its budget, and how it is written plainly
    "dart": (get_method("dart", **DART), 6, dart),
}
SUBSETS = ("dart",)  # the others make rows of several tokens


@pytest.fixture(params=FORMS)
def form(request) -> Any:
    return FORMS[request.param]


def assert_plain(host: Host, method: Any, num_keep: int, plain: Any) -> None:
    """Prompt and generation, an answer and a second question in the cache: as written plainly."""
    inputs = host.inputs(ROW)
    length = inputs["input_ids"].shape[1]
    with tokenprune.apply(host.model, method, num_keep=num_keep) as handle:
        prompt = logits_of(host, inputs)[0]
        run = generated(host, inputs)
        words = torch.arange(5, 5 + 2 * NEW + ASKED)[None]
        answer, asked, last = words.split([NEW, ASKED, NEW], 1)
        first = said(host, inputs, answer, length)
        again = longer(inputs, torch.cat([answer, asked], 1)) | {CACHE: cache_in(first)}
        second = said(host, again, last, length + NEW + ASKED)
        turns = torch.cat([torch.stack(first.logits, 1), torch.stack(second.logits, 1)], 1)[0]
        assert handle.report().tokens_before == [int((inputs["input_ids"] == IMAGE).sum())]
    said_all = plain_logits(host, inputs, words[0], plain(host))
    shown = len(prompt)
    assert len(said_all) == shown + words.shape[1]
    torch.testing.assert_close(prompt, said_all[:shown], atol=1e-4, rtol=0)
    expected = torch.cat([said_all[shown - 1 :][:NEW], said_all[shown + NEW + ASKED - 1 :][:NEW]])
    torch.testing.assert_close(turns, expected, atol=1e-4, rtol=0)
    greedy = run.sequences[0, length:]
    along = plain_logits(host, inputs, greedy, plain(host))[shown - 1 :]
    assert torch.equal(along[: len(greedy)].argmax(1), greedy)
    torch.testing.assert_close(
        torch.stack(run.logits, 1)[0], along[: len(greedy)], atol=1e-4, rtol=0
    )
    whole = plain_logits(host, inputs, words[0], Plain())[-NEW:]
    assert (whole - said_all[-NEW:]).abs().max() > 1e-3, "the method changes nothing"


def test_as_written_plainly(host, form):
    assert_plain(host, *form)


FAULTS = {  # what is declared otherwise
    "dart": (
        {"normed": False},
        {"cuts": lambda num_layers: [Cut(before=2, ranked_in=0)]},
        {"cuts": lambda num_layers: [Cut(before=3, ranked_in=1)]},
    ),
}


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_a_planted_fault_does_not_pass(name, fault):
    method, num_keep, plain = FORMS[name]
    method = copy.copy(method)
    method.declare(**fault)
    with pytest.raises(AssertionError, match=r"not close|not equal"):
        assert_plain(build("llava"), method, num_keep, plain)


def test_a_batch_is_its_rows(host, form):
    method, num_keep, _ = form
    assert_rows(host, method, num_keep, ROWS)


def test_a_cache_changes_nothing(host, form):
    method, num_keep, _ = form
    assert_no_cache(host, method, num_keep)


@pytest.mark.parametrize("name", SUBSETS)
def test_exactly_the_whole_model_with_columns_masked_away(host, name):
    method, num_keep, _ = FORMS[name]

    def truth(host: Host, inputs: Any, method: Any, num_keep: int) -> dict[int, torch.Tensor]:
        """As the handle says: `test_as_written_plainly` proves what is kept."""
        with tokenprune.apply(host.model, method, num_keep=num_keep) as handle:
            logits_of(host, inputs)
            by_layer = handle.outcome().by_layer
        return {number: ~keep for number, keep in enumerate(by_layer) if keep is not None}

    assert_exact(host, method, num_keep, ROW, truth)
    report = tokenprune.verify(host.model, host.inputs(ROWS), method=method, keep_ratio=0.5)
    assert report.ok, report
