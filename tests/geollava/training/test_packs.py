"""Words -> tokens with labels on the answers -> packs, each row blind to the others."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from geollava import GeoLlavaProcessor
from geollava.training.config import read_config
from geollava.training.loading import read_model_config
from geollava.training.packs import join, pack
from geollava.training.rows import Turn
from geollava.training.run import load_packs, load_rows
from geollava.training.tokens import IGNORED, Size, sample_of, tokenize
from tests.geollava.conftest import noise

TURNS = [Turn("<image>\nWhat?", "A harbor."), Turn("And in <image> now?", "Ships.\n")]


def test_labels_are_the_answers(pair):
    _, processor = pair
    sample = sample_of(tokenize(processor, TURNS), processor.image_token_id, [6, 9])
    ids = sample["input_ids"].tolist()
    assert ids.count(processor.image_token_id) == 15
    text = processor.tokenizer.decode([label for label in sample["labels"] if label != IGNORED])
    assert text == "A harbor.<|im_end|>Ships.\n<|im_end|>"
    whole = processor.tokenizer.decode(ids)
    assert whole.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert "\nAnd in " + 9 * "<image>" + " now?" in whole
    assert whole.endswith("<|im_start|>assistant\nShips.\n<|im_end|>\n")
    for visual_tokens in ([6], [6, 9, 9]):
        with pytest.raises(ValueError, match=f"expected {len(visual_tokens)}, got 2"):
            sample_of(tokenize(processor, TURNS), processor.image_token_id, visual_tokens)


@pytest.mark.parametrize("which", ["pair", "default_pair"])
def test_a_mark_becomes_the_tokens_of_a_prompt_with_all_of_them(which, request):
    """One mark per image is tokenized; the result is that of the text with every mark in it."""
    _, processor = request.getfixturevalue(which)
    for count in (0, 1, 7):
        said = [turn for turn in TURNS[:1] for _ in range(2)]
        tokens = tokenize(processor, said)
        sample = sample_of(tokens, processor.image_token_id, [count * processor.num_keep] * 2)
        roles = [("user", said[0].question), ("assistant", said[0].answer)] * 2
        text = processor.apply_chat_template(
            [{"role": role, "content": words} for role, words in roles], tokenize=False
        )
        if count:
            expected = processor.tokenize([text], [count * processor.num_keep] * 2)["input_ids"][0]
            assert torch.equal(sample["input_ids"], expected)
        else:
            assert len(sample["input_ids"]) == len(tokens) - 2
        asked = sample["labels"] != IGNORED
        assert torch.equal(sample["labels"][asked], sample["input_ids"][asked])


def test_a_template_with_marks_of_its_own_is_refused(pair):
    _, processor = pair
    processor = copy.copy(processor)
    processor.chat_template = "<image>" + processor.chat_template
    with pytest.raises(ValueError, match=r"one <image> per image: expected 1, got [23]"):
        tokenize(processor, TURNS[:1])


def test_rows_are_tokenized_once_and_kept_in_little(
    write, complete_checkpoint, tmp_path, monkeypatch
):
    """5 bytes for a token of text, none for a visual one, and those in a file."""
    text = "many words " * 40
    turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "7"}]
    noise(400, 400).save(tmp_path / "large.png")
    rows = [{"id": n, "image": "large.png", "conversations": turns} for n in range(20)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    config = read_config(write())
    model_config = read_model_config(config, complete_checkpoint)
    processor = GeoLlavaProcessor.from_pretrained(complete_checkpoint)
    texts, call = [], type(processor.tokenizer).__call__
    monkeypatch.setattr(
        type(processor.tokenizer),
        "__call__",
        lambda self, text, **kwargs: texts.append(text) or call(self, text, **kwargs),
    )
    checked = load_rows(config, config.data.files, processor)
    packs = load_packs(config, checked, processor, model_config)
    samples = [packs[index] for index in range(len(packs))]
    assert sum(text in said for said in texts) == 20
    assert sum(batch["input_ids"].numel() for batch in samples) == sum(
        size.tokens for size in packs.sizes
    )

    kept = [row.tokens for group in packs.groups for row in group]
    assert {tokens.dtype.itemsize for tokens in kept} == {5}
    for row in (row for group in packs.groups for row in group):
        assert row.size.visual_tokens > 50
        assert len(row.tokens) == row.size.tokens - row.size.visual_tokens + 1  # its mark
    assert all(isinstance(tokens.base.base, np.memmap) for tokens in kept)
    assert len({id(row.images[0]) for group in packs.groups for row in group}) == 1


def test_a_pack_is_its_samples_one_by_one(pair):
    model, processor = pair
    samples = []
    for index, crops in enumerate((noise(100, 100), noise(60, 200), None)):
        inputs = {} if crops is None else dict(processor.image_processor([crops]))
        mark = "" if crops is None else "<image>\n"
        tokens = tokenize(processor, [Turn(f"{mark}Q{index}", "abc")])
        counts = inputs.get("num_crops", torch.tensor([])) * processor.num_keep
        samples.append(inputs | sample_of(tokens, processor.image_token_id, counts.tolist()))
    with torch.no_grad():
        packed = model(**join(samples))
        alone = [model(**join([sample])) for sample in samples]
    assert packed.logits.shape[1] == sum(one.logits.shape[1] for one in alone) == 3 * 4
    expected = torch.cat([one.logits for one in alone], dim=1)
    torch.testing.assert_close(packed.logits, expected, atol=1e-5, rtol=1e-5)
    assert packed.loss.item() == pytest.approx(sum(one.loss.item() for one in alone) / 3, rel=1e-5)


def test_packs_hold_every_row_once_within_their_budget():
    sizes = [Size(100 + 7 * index % 50, 7 * index % 90) for index in range(200)]
    packs = pack(sizes, 120, 500, seed=3)
    assert sorted(index for group in packs for index in group) == list(range(200))
    assert len(packs) < 100
    for group in packs:
        assert sum(sizes[index].visual_tokens for index in group) <= 120
        assert sum(sizes[index].tokens for index in group) <= 500
    assert pack(sizes, 120, 500, seed=3) == packs != pack(sizes, 120, 500, seed=4)
    assert sorted(pack(sizes, None, 500, seed=3)) == [[index] for index in range(200)]
