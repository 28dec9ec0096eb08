"""Our model replies as `geollava ask` does, and encodes an image once."""

from __future__ import annotations

import json

import pytest

from geollava.answering import session
from geollava.answering.prefix import Prefix
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.opening import open_model
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from geollava.imagery import as_scene
from tests.geollava.conftest import noise
from tests.geollava.evaluate.parrot import XLRS, lines_of, write


def test_replies_are_those_of_ask(questions, guessing_checkpoint, monkeypatch):
    reads, original = [], Prefix.read
    monkeypatch.setattr(Prefix, "read", lambda *a: reads.append(len(a[1])) or original(*a))
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    data = Data(XLRS, str(questions))
    examples = data.examples(blind=False, limit=4)
    prompts = [XLRS.build_prompt(example.row) for example in examples]
    with data.open(examples[0]) as scenes:
        seen = answerer.see(scenes)
        prepared = [answerer.prepare(seen, prompt, 3) for prompt in prompts]
        together = answerer.ask(seen, prepared, 3)
        for inputs, reply in zip(prepared, together, strict=True):
            (alone,) = answerer.ask(seen, [inputs], 3)
            assert alone.text == reply.text
            assert alone.confidence == pytest.approx(reply.confidence, abs=1e-3)
        assert len(reads) == 1  # what all questions share is read once
        assert reads[0] < min(map(len, prepared))
        asked = answerer.session.see(scenes[0])
        assert [asked.ask(prompt, max_new_tokens=3).text for prompt in prompts] == [
            reply.text for reply in together
        ]
    assert len({reply.text for reply in together}) > 1


def test_an_image_is_encoded_once(questions, guessing_checkpoint, tmp_path, monkeypatch):
    sizes = []
    original = session.encode_scene
    monkeypatch.setattr(
        session,
        "encode_scene",
        lambda m, p, scene, **more: sizes.append(scene.size) or original(m, p, scene, **more),
    )
    rows = json.loads(questions.read_text())
    rows = [{**row, "image": str(questions.parent / row["image"][0])} for row in rows[:24:8] * 2]
    data = Data(XLRS, str(write(tmp_path / "d.json", rows)))
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    evaluate(data, answerer, tmp_path / "out", Options(max_new_tokens=1))
    assert sizes == [(400 + 60 * seed, 300) for seed in range(3)]
    assert [line["row"] for line in lines_of(tmp_path / "out")] == list(range(6))


def test_smaller_image_has_as_many_tokens_unreduced(guessing_checkpoint):
    answerer = open_model(str(guessing_checkpoint), None, None, "cpu", "float32")
    image = as_scene(noise(1300, 1000))
    own = answerer.see([image])
    answerer.reduce("smaller_image", 288)
    smaller = answerer.see([image])
    assert (own.crops, smaller.crops) == (12, 6)
    assert smaller.tokens_before == smaller.tokens_after == 6 * 576
    assert answerer.protocol(blind=False)["method"] == "smaller_image"
    answerer.reduce(None, None)
    assert answerer.see([image]).crops == 12
    assert answerer.protocol(blind=False)["method"] == "background_anchored"
