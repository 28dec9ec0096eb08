"""A scene asked of vLLM gets the answers of `geollava ask`."""

from __future__ import annotations

import pytest
import torch

from tests.serving.vllm.conftest import imported  # noqa: F401
from tests.serving.vllm.forks import in_fork

NEW_TOKENS = 8
CLOSE = 1e-3  # between the two most likely words: then either may come


def demo():
    """The scene that `make demo` asks about, on a drawn ground: (picture, questions)"""
    from geollava import scenes
    from geollava.scenes.draw import draw

    scene = scenes.plan(80_000, 1344, 1.3)
    return draw(scene, "procedural"), [question.text for question in scene.questions]


def asked_of_vllm(folder, picture, questions):
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder), dtype="float32", max_model_len=4096, enforce_eager=True, block_size=32
    )
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    found = []
    for question in questions:
        content = [
            {"type": "image_pil", "image_pil": picture},
            {"type": "text", "text": question},
        ]
        messages = [{"role": "user", "content": content}]
        (output,) = engine.chat(messages, sampling, use_tqdm=False)
        found.append((len(output.prompt_token_ids), list(output.outputs[0].token_ids)))
    return found


def asked_of_session(folder, picture, questions):
    """(tokens of the prompt, [the most likely word, how far ahead it is] per step, the text)"""
    from geollava import Session

    session = Session(folder, device="cpu", dtype="float32")
    model, processor = session.model, session.processor
    found = []
    for question in questions:
        inputs = processor(picture, processor.build_prompt(question), return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        steps = []
        for logits in output.logits:
            best = logits[0].topk(2)
            steps.append((int(best.indices[0]), float(best.values[0] - best.values[1])))
        text = session.see(picture).ask(question, max_new_tokens=NEW_TOKENS).text
        ids = [word for word, _ in steps]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
        found.append((inputs["input_ids"].shape[1], steps))
    return found


@pytest.fixture(scope="module")
def small():
    from geollava.model.default_model import default_checkpoint

    return default_checkpoint()


def compare(replies, expected):
    assert len(replies) == len(expected)
    for (length, ids), (known_length, steps) in zip(replies, expected, strict=True):
        assert length == known_length
        sure = next((n for n, (_, ahead) in enumerate(steps) if ahead < CLOSE), len(steps))
        assert sure > 0
        assert ids[:sure] == [word for word, _ in steps][:sure]
        assert sure < len(steps) or len(ids) == len(steps)


def test_a_scene_gets_the_same_answers(small):
    asked = in_fork(demo)
    expected = in_fork(asked_of_session, small, *asked)
    compare(in_fork(asked_of_vllm, small, *asked), expected)


def test_the_published_form(small, tmp_path):
    def publish():
        from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor

        GeoLlavaForConditionalGeneration.from_pretrained(small).save_published(tmp_path)
        GeoLlavaProcessor.from_pretrained(small).tokenizer.save_pretrained(tmp_path)

    in_fork(publish)
    picture, questions = in_fork(demo)
    expected = in_fork(asked_of_session, small, picture, questions[:1])
    compare(in_fork(asked_of_vllm, tmp_path, picture, questions[:1]), expected)
