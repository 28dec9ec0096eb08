"""transformers' pipelines: inside a reduction, and the one that asks an image many questions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

import tokenprune
import tokenprune.pipelines

from .checkpoint import TEMPLATE, byte_tokenizer, write_llava

QUESTIONS = ["What is it?", "Where is the red one, and how many are there?", "Why?"]
NEW = 6


def llava(folder: Any) -> tuple[Any, Any]:
    write_llava(folder)
    return (
        hf.LlavaForConditionalGeneration.from_pretrained(folder),
        hf.AutoProcessor.from_pretrained(folder),
    )


def llava_next(folder: Any) -> tuple[Any, Any]:
    """Tiles, in numbers that depend on the image."""
    tokenizer = byte_tokenizer()
    heads = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    pinpoints = [[56, 112], [112, 56]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(
            **heads, intermediate_size=64, image_size=56, patch_size=14
        ),
        text_config=hf.Qwen2Config(
            **heads, num_key_value_heads=2, intermediate_size=64, vocab_size=len(tokenizer)
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    torch.manual_seed(0)
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size=56, image_grid_pinpoints=pinpoints
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return hf.LlavaNextForConditionalGeneration(config).eval(), processor


@pytest.fixture(scope="module", params=[llava, llava_next], ids=lambda build: build.__name__)
def host(request, tmp_path_factory) -> tuple[Any, Any]:
    return request.param(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels = torch.randint(0, 256, (56, 80, 3), dtype=torch.uint8)
    return Image.frombytes("RGB", (80, 56), bytes(pixels.flatten().tolist()))


def asked(model: Any, processor: Any, image: Image.Image, question: str) -> str:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    said = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("method", ["divprune", "visionzip", "fastervlm"])
def test_many_questions_one_encoding(host, image, method):
    model, processor = host
    try:
        tokenprune.apply(model, method, keep_ratio=0.3).remove()
    except NotImplementedError:
        pytest.skip(f"{method} does not run on this host")
    with tokenprune.apply(model, method, keep_ratio=0.3) as handle:
        alone = [asked(model, processor, image, question) for question in QUESTIONS]
        report = handle.report()
    pipe = hf.pipeline("pruned-image-text-to-text", model=model, processor=processor)
    encoded: list[int] = []
    hook = model.model.vision_tower.register_forward_hook(lambda *args: encoded.append(1))
    try:
        answers = pipe(image, QUESTIONS, method=method, keep_ratio=0.3, max_new_tokens=NEW)
    finally:
        hook.remove()
    assert len(encoded) == 1
    assert [answer["question"] for answer in answers] == QUESTIONS
    assert [answer["generated_text"] for answer in answers] == alone
    assert len(set(alone)) > 1
    assert {answer["tokens_before"] for answer in answers} == {sum(report.tokens_before)}
    assert {answer["tokens_after"] for answer in answers} == {sum(report.tokens_after)}
    assert sum(report.tokens_after) < sum(report.tokens_before)
    one = asked(model, processor, image, QUESTIONS[0])  # nothing is left in the model
    assert one != alone[0]


def test_a_configuration_is_a_method(host, image):
    model, processor = host
    pipe = hf.pipeline("pruned-image-text-to-text", model=model, processor=processor)
    config = tokenprune.ReductionConfig("divprune", num_keep=3)
    (answer,) = pipe(image, QUESTIONS[0], method=config, max_new_tokens=2)
    assert answer["tokens_after"] == 3


def test_what_looks_at_the_question_is_refused(host, image):
    model, processor = host
    pipe = hf.pipeline("pruned-image-text-to-text", model=model, processor=processor)
    for method in ("cdpruner", "fastv"):
        with pytest.raises(ValueError, match="chooses tokens by the question"):
            pipe(image, QUESTIONS, method=method, keep_ratio=0.5)
    with pytest.raises(ValueError, match="questions must be one text or more"):
        pipe(image, [], keep_ratio=0.5)
    with pytest.raises(TypeError, match=r"retention_ratio; write keep_ratio=0\.2"):
        pipe(image, QUESTIONS, retention_ratio=0.2)


def test_questions_before_the_image_are_refused(host, image):
    model, processor = host
    backwards = "{% for m in messages %}{% for c in m['content'] | reverse %}"
    pipe = hf.pipeline("pruned-image-text-to-text", model=model, processor=processor)
    template = processor.chat_template
    processor.chat_template = TEMPLATE.replace(TEMPLATE[: len(backwards) - 10], backwards)
    assert processor.chat_template != template
    try:
        with pytest.raises(ValueError, match="questions must come after the image"):
            pipe(image, QUESTIONS, keep_ratio=0.5)
    finally:
        processor.chat_template = template


def test_the_own_pipeline_inside_the_block(host, image):
    """transformers' image-text-to-text needs to know of nothing."""
    model, processor = host
    pipe = hf.pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}]
    chat = [{"role": "user", "content": content}]

    def said() -> str:
        (answer,) = pipe(text=chat, max_new_tokens=NEW, return_full_text=False)
        return answer["generated_text"]

    whole = said()
    with tokenprune.apply(model, "divprune", keep_ratio=0.3):
        short = said()
        assert short == asked(model, processor, image, QUESTIONS[0])
    assert said() == whole != short
