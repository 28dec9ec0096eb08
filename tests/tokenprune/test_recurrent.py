"""Language models with recurrent layers: what leaves is hidden in attention, and absent in them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import transformers as hf
from torch.nn import functional
from torch.testing import assert_close

import tokenprune
from tokenprune.hosts.recurrent import mixers
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.verifying import runs

from .families.common import family, square
from .families.proof import (
    BATCH,
    KEEP,
    METHOD,
    ONE,
    TOLERANCE,
    hiding,
    longer,
    said,
    two_turns,
    verified,
)
from .hosts import CACHE, IMAGE, TEXT, TOWER, Host, cache_in
from .test_families import build

UNEQUAL = [[5, 0, 4, 0, 6], [3, 0, 9]]  # images of which different numbers are kept
NAMES = ("qwen3_5", "lfm2_vl", "lfm3_vl", "nemotron_h_omni")


@pytest.fixture(params=NAMES)
def host(request) -> Host:
    return build(request.param)


def dropped(host: Host, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    """[B, L] bool: the visual tokens that leave."""
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP, **options) as handle:
        host.model(**inputs)
    hidden = inputs["input_ids"] == host.image
    for row, kept in zip(hidden, handle.kept_positions, strict=True):
        row[kept] = False
    assert hidden.any()
    return hidden


@torch.no_grad()
def test_absent_is_not_hidden(host):
    """Were dropped tokens zeros to the recurrent layers, logits would be others."""
    with mock.patch.object(runs, "absent", return_value=nullcontext()):
        report = verified(host, ONE)
    failed = {check.name for check in report.checks if check.status == "failed"}
    assert "prompt" in failed
    assert mixers(find_adapter(host.model).language_model)


@torch.no_grad()
def test_a_conversation_goes_on_without_a_handle(host):
    inputs = host.inputs(BATCH)
    with hiding(host, dropped(host, inputs)):
        whole = two_turns(host, inputs)
    words = torch.randint(5, 90, (2, 16), generator=torch.Generator().manual_seed(0))
    answer, asked, last = words.split([6, 4, 6], 1)
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        first = said(host, inputs, answer, inputs["input_ids"].shape[1])
    again = longer(inputs, torch.cat([answer, asked], 1)) | {CACHE: cache_in(first)}
    second = said(host, again, last, again["input_ids"].shape[1])
    assert_close(torch.stack([*first.logits, *second.logits], 1), whole, atol=TOLERANCE, rtol=0)
    language_model: Any = find_adapter(host.model).language_model
    assert not any(layer._forward_pre_hooks for layer in language_model.layers)


@torch.no_grad()
def test_beams_change_rows(host):
    # One image in a row: some hosts repeat images one by one, and mix those of one row.
    inputs = host.inputs([[5, 0, 4], [9, 0, 3]])

    def searched() -> Any:
        return host.model.generate(
            **inputs,
            max_new_tokens=5,
            num_beams=3,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=list(range(100, 128)),
            return_dict_in_generate=True,
            output_scores=True,
        )

    hidden = dropped(host, inputs)
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        short = searched()
    with hiding(host, hidden.repeat_interleave(3, 0)):
        whole = searched()
    assert torch.equal(short.sequences, whole.sequences)
    assert_close(short.sequences_scores, whole.sequences_scores, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_rows_that_keep_different_numbers(host):
    """A shorter row is filled up before its first token, which no layer sees."""
    inputs = host.inputs([[4, 0, 5]])
    other = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        alone = host.model(**inputs).logits
        without_mask = host.model(**other).logits
        both = host.model(**host.inputs(UNEQUAL)).logits
    assert_close(alone, without_mask, atol=1e-5, rtol=0)
    hidden = dropped(host, host.inputs(UNEQUAL))
    with hiding(host, hidden):
        whole = host.model(**host.inputs(UNEQUAL)).logits
    mask = host.inputs(UNEQUAL)["attention_mask"].bool()
    for row, short in enumerate(both):
        kept = whole[row][mask[row] & ~hidden[row]]
        assert_close(short[-len(kept) :], kept, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padding_on_the_right(host):
    inputs = host.inputs(BATCH, pad_left=False)
    hidden = dropped(host, inputs)
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        shorts = host.model(**inputs).logits
    with hiding(host, hidden):
        whole = host.model(**inputs).logits
    for row, short in enumerate(shorts):
        kept = whole[row][inputs["attention_mask"][row].bool() & ~hidden[row]]
        assert_close(short[: len(kept)], kept, atol=TOLERANCE, rtol=0)


def test_the_loss_and_its_gradient(host):
    inputs = host.inputs(BATCH)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == host.image, -100)
    labels = labels.masked_fill(labels == 1, -100)  # what comes first is told by padding
    hidden = dropped(host, inputs)
    embedding = host.model.get_input_embeddings().weight

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(loss, [embedding])
        return found

    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        loss = host.model(**inputs, labels=labels).loss
        short = gradient(loss)
    with hiding(host, hidden):
        logits = host.model(**inputs).logits
        # The last kept column before a text token tells it; hidden columns tell nothing.
        told, words = [], []
        for row in range(len(logits)):
            kept = (~hidden[row] & inputs["attention_mask"][row].bool()).nonzero()[:, 0]
            told.append(logits[row, kept[:-1]])
            words.append(labels[row, kept[1:]])
        whole = functional.cross_entropy(torch.cat(told), torch.cat(words))
        long = gradient(whole)
    assert_close(loss, whole, atol=1e-5, rtol=0)
    assert_close(short, long, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_a_new_image_in_the_second_turn():
    host = build("lfm2_vl")
    first, second = host.inputs([[4, 0, 5]]), host.inputs([[3, 0, 6]], seed=1)
    both = {
        "input_ids": torch.cat([first["input_ids"], second["input_ids"]], 1),
        "attention_mask": torch.cat([first["attention_mask"], second["attention_mask"]], 1),
    }
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        cache = getattr(host.model(**first), CACHE)
        new = {**second, "attention_mask": both["attention_mask"], CACHE: cache}
        short = host.model(**new).logits
    hidden = torch.cat([dropped(host, first), dropped(host, second)], 1)
    together = {
        name: torch.cat([first[name], second[name]])
        for name in ("spatial_shapes", "pixel_attention_mask", "pixel_values")
    }
    with hiding(host, hidden):
        whole = host.model(**both, **together).logits
    start = first["input_ids"].shape[1]
    kept = whole[0, start:][~hidden[0, start:]]
    assert_close(short[0], kept, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padding_between_turns_is_refused():
    host = build("lfm2_vl")
    first, second = host.inputs([[4], [6]]), host.inputs([[3, 0, 6], [3, 0, 4]])
    assert len({len(row) for row in host.inputs([[3, 0, 6]])["input_ids"]}) == 1
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    with tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP):
        cache = getattr(host.model(**first), CACHE)
        with pytest.raises(NotImplementedError, match="over the padding between"):
            host.model(**{**second, "attention_mask": mask, CACHE: cache})


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_between_its_layers_nothing_leaves(name):
    with pytest.raises(NotImplementedError, match="a language model with recurrent layers"):
        tokenprune.apply(build("qwen3_5").model, name, keep_ratio=0.5)


@torch.no_grad()
def test_compact_positions_do_not_move_the_states():
    host = build("qwen3_5")
    both = host.inputs([[5, 0, 4], [9, 0, 3, 0, 8]])
    real, grid = both["attention_mask"][0].bool(), both["image_grid_thw"][:1]
    row = {name: both[name][:1, real] for name in ("input_ids", "attention_mask")}
    row |= {"mm_token_type_ids": both["mm_token_type_ids"][:1, real], "image_grid_thw": grid}
    row["pixel_values"] = both["pixel_values"][: int(grid.prod())]
    logits = {}
    for positions in ("compact", "original"):
        with tokenprune.apply(host.model, METHOD(), keep_ratio=0.1, positions=positions):
            alone, batch = host.model(**row).logits[0], host.model(**both).logits[0]
        assert len(batch) > len(alone)  # the row is padded
        assert_close(batch[-len(alone) :], alone, atol=1e-5, rtol=0)
        logits[positions] = alone
    assert (logits["compact"] - logits["original"]).abs().max() > TOLERANCE


def test_a_layer_that_takes_no_mask_is_refused():
    torch.manual_seed(0)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.Lfm2Config(**TEXT, layer_types=["conv", "full_attention"]),
        image_token_id=IMAGE,
    )
    config.model_type = "made_on_the_spot"
    model = hf.LlavaForConditionalGeneration(config)
    host = family(model, square(56))
    assert verified(host, BATCH).ok  # of a kind that is known
    (mixer,) = mixers(find_adapter(model).language_model)

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("not reached")

    mixer.forward = forward
    with pytest.raises(NotImplementedError, match="do not take the batch's padding as a mask"):
        tokenprune.apply(model, "divprune", keep_ratio=0.5)
