"""What the published code crashes on, and what it wastes."""

from __future__ import annotations

import copy

import pytest
import torch

from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration, GeoLlavaImageProcessor
from geollava.imagery import normalize_crops
from geollava.model.modeling import CHUNK_SIZE, CPU_CHUNK_SIZE
from tests.geollava.conftest import noise

GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


def ask(processor, questions, images=None, **kwargs):
    counts = [len(group) for group in images] if images else [0] * len(questions)
    prompts = [
        processor.build_prompt(question, num_images=count)
        for question, count in zip(questions, counts, strict=True)
    ]
    return processor(images=images, text=prompts, **kwargs)


def test_attention_methods_keep_what_the_class_token_looks_at(tiny_checkpoint):
    """FasterVLM ranks by CLIP's own attention in the layer whose output the features are."""
    config = GeoLlavaConfig.from_pretrained(tiny_checkpoint)
    config.reduction_method, config.num_keep = "fastervlm", 3
    model = GeoLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint, config=config).eval()
    side = config.vision_config.image_size
    pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    anchor, weights = model.model.vision_tower.anchor, []
    with torch.no_grad():
        kept = model.encode_crops(pixels)
        model.model.vision_tower.encoder.set_attn_implementation("eager")
        hook = anchor.register_forward_hook(lambda module, args, output: weights.append(output[1]))
        model.model.vision_tower(pixels)
        hook.remove()
    expected = weights[0].mean(1)[:, 0, 1:].topk(3).indices.sort(1).values
    assert torch.equal(kept.keep_indices, expected)


def test_text_only(pair):
    model, processor = pair
    inputs = ask(processor, ["What is a harbor?"])
    assert set(inputs) == {"input_ids", "attention_mask"}
    generated = model.generate(**inputs, **GREEDY)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 6
    labels = inputs["input_ids"].clone()
    assert model(**inputs, labels=labels).loss.isfinite()


def test_image_of_one_crop(pair):
    model, processor = pair
    single = copy.deepcopy(processor)
    single.image_processor = GeoLlavaImageProcessor(crop_size=56, image_grid_pinpoints=[[56, 56]])
    inputs = ask(single, ["What is this?"], [[noise(50, 50)]])
    assert inputs["num_crops"].tolist() == [1]
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 6


def test_batch_of_unequal_rows_equals_single_runs(pair):
    model, processor = pair
    questions = ["What is in the two images?", "Nothing to see here?", "And here?"]
    images = [[noise(200, 90, 1), noise(90, 300, 2)], [], [noise(120, 120, 3)]]
    batch = ask(processor, questions, images)
    assert (batch["attention_mask"][:, 0] == 0).any()  # padded on the left
    assert (batch["attention_mask"][:, -1] == 1).all()
    generated = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for row, (question, pictures) in enumerate(zip(questions, images, strict=True)):
        single = ask(processor, [question], [pictures] if pictures else None)
        alone = model.generate(**single, **GREEDY)[:, single["input_ids"].shape[1] :]
        assert torch.equal(alone[0], generated[row]), question


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_share_one_encoding(pair, options, monkeypatch):
    model, processor = pair
    questions = ["What is in the two images?", "And here?"]
    images = [[noise(200, 90, 1), noise(90, 300, 2)], [noise(120, 120, 3)]]
    batch = ask(processor, questions, images)
    encoded = []
    original = model.encode_crops
    monkeypatch.setattr(
        model, "encode_crops", lambda pixels, **kw: encoded.append(len(pixels)) or original(pixels)
    )
    generated = model.generate(**batch, **GREEDY, **options)
    assert encoded == [len(batch["pixel_values"])]
    copies = options.get("num_return_sequences", 1)
    new = generated[:, batch["input_ids"].shape[1] :]
    for row, (question, pictures) in enumerate(zip(questions, images, strict=True)):
        single = ask(processor, [question], [pictures])
        alone = model.generate(**single, **GREEDY, **options)[:, single["input_ids"].shape[1] :]
        assert torch.equal(alone, new[row * copies : (row + 1) * copies])


def test_video_frames_are_projected_then_pooled(pair):
    model, processor = pair
    frames = [noise(80, 60, seed) for seed in range(3)]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    inputs = processor(videos=[frames], text=prompt)
    assert inputs["pixel_values_videos"].shape == (3, 3, 56, 56)
    per_frame = model.config.tokens_per_frame
    assert per_frame == 4
    assert (inputs["input_ids"] == model.config.video_token_id).sum() == 3 * per_frame

    with torch.no_grad():
        images = processor.image_processor
        pixels = normalize_crops(inputs["pixel_values_videos"], images.image_mean, images.image_std)
        tokens = model.model.mm_projector(model.model.vision_tower(pixels)[:, 1:])
        grid = tokens.view(3, 2, 2, 2, 2, -1)  # frames, rows, 2, cols, 2
        expected = grid.mean(dim=(2, 4)).flatten(0, 2)
        got = model.get_video_features(inputs["pixel_values_videos"])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 6


@pytest.mark.parametrize("chunk", [1, 5, 24, 1000])
def test_chunk_size_changes_nothing(model, pair, chunk, monkeypatch):
    _, processor = pair
    crops = processor.image_processor([noise(300, 300)])["pixel_values"]
    whole = model.encode_crops(crops)
    monkeypatch.setattr(model.config, "encoder_chunk_size", chunk)
    done = []
    parts = model.encode_crops(crops, progress=done.append)
    assert done == [*range(chunk, len(crops), chunk), len(crops)]
    assert torch.equal(parts.keep_indices, whole.keep_indices)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mark", ["image_token_id", "video_token_id"])
def test_a_mark_that_the_model_says_is_a_word(pair, mark):
    model, processor = pair
    said = getattr(model.config, mark)

    def only_the_mark(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(said), 0.0)

    inputs = ask(processor, ["What?"], [[noise(60, 60)]])
    ids = model.generate(**inputs, **GREEDY, logits_processor=[only_the_mark])
    assert ids[0, -6:].tolist() == [said] * 6


def test_a_chunk_is_what_the_configuration_says_else_what_the_device_likes(model, monkeypatch):
    assert model.chunk_size == CPU_CHUNK_SIZE < CHUNK_SIZE
    monkeypatch.setattr(model.config, "encoder_chunk_size", 100)
    assert model.chunk_size == 100


def test_uint8_and_normalized_crops_are_the_same(model, pair):
    _, processor = pair
    crops = processor.image_processor([noise(300, 300)])["pixel_values"]
    normalized = normalize_crops(crops, model.config.image_mean, model.config.image_std)
    assert crops.dtype == torch.uint8
    with torch.no_grad():
        assert torch.equal(model.get_image_features(crops), model.get_image_features(normalized))


def test_only_needed_layers_run_and_no_hidden_state_is_kept(model, pair):
    _, processor = pair
    crops = processor.image_processor([noise(100, 100)])["pixel_values"]
    ran = []
    layers = model.model.vision_tower.encoder.encoder.layers
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(layers)
    ]
    try:
        vision_tokens = model.model.vision_tower(normalize_crops(crops, [0.5] * 3, [0.5] * 3))
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0, 1]  # of three: the feature layer is -2
    assert isinstance(vision_tokens, torch.Tensor)


@pytest.mark.parametrize("change", [1, -1])
def test_placeholders_must_fit_the_crops(pair, change):
    model, processor = pair
    inputs = ask(processor, ["What?"], [[noise(100, 100)]])
    ids = inputs["input_ids"][0].tolist()
    where = ids.index(model.config.image_token_id)
    ids[where : where + 1] = [ids[where]] * (1 + change)
    inputs["input_ids"] = torch.tensor([ids])
    del inputs["attention_mask"]
    count = len(inputs["pixel_values"]) * model.config.num_keep
    with pytest.raises(ValueError, match=rf"expected {count}, got {count + change}"):
        model(**inputs)


def test_marks_without_images_and_images_without_marks(pair):
    model, processor = pair
    inputs = ask(processor, ["What?"], [[noise(100, 100)]])
    with pytest.raises(ValueError, match="expected 0, got"):
        model(input_ids=inputs["input_ids"])
    words = ask(processor, ["What?"])
    with pytest.raises(ValueError, match=r"expected \d+, got 0"):
        model(input_ids=words["input_ids"], pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixel_values": torch.zeros(4, 3, 28, 28)}, ValueError, r"\[crops, 3, 56, 56\]"),
        ({"pixel_values": torch.zeros(4, 56, 56)}, ValueError, r"\[crops, 3, 56, 56\]"),
        ({"pixel_values": torch.zeros(0, 3, 56, 56)}, ValueError, "at least one crop"),
        ({"pixel_values": torch.zeros(4, 3, 56, 56).long()}, TypeError, "int64"),
        ({"num_crops": torch.tensor([3])}, ValueError, "must add up to"),
        ({"input_ids": None}, ValueError, "exactly one of"),
        ({"pixel_values": torch.full((6, 3, 56, 56), float("nan"))}, ValueError, "must be finite"),
    ],
)
def test_bad_inputs(pair, change, error, message):
    model, processor = pair
    inputs = ask(processor, ["What?"], [[noise(100, 150)]])
    assert inputs["num_crops"].tolist() == [6]
    if "num_crops" not in change:
        del inputs["num_crops"]
    with pytest.raises(error, match=message):
        model(**(dict(inputs) | change))


def test_gradient_checkpointing_gives_the_same_gradients(complete_checkpoint, pair):
    _, processor = pair
    inputs = ask(processor, ["What?"], [[noise(100, 100)]])
    gradients = []
    for checkpointing in (False, True):
        model = GeoLlavaForConditionalGeneration.from_pretrained(complete_checkpoint).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-4)


def test_bfloat16(complete_checkpoint, pair):
    _, processor = pair
    model = GeoLlavaForConditionalGeneration.from_pretrained(
        complete_checkpoint, dtype=torch.bfloat16
    ).eval()
    inputs = ask(processor, ["What?"], [[noise(100, 100)]])
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_keep": 0}, "between 1 and the 576 tokens of a crop, got 0"),
        ({"num_keep": 577}, "between 1 and the 576 tokens of a crop, got 577"),
        ({"vision_feature_layer": 0}, "between -24 and -1"),
        ({"encoder_chunk_size": 0}, "at least 1"),
        ({"merge_assignment": "fuzzy"}, "hard, straight_through, soft, got .fuzzy."),
        ({"merge_temperature": 0.0}, "above 0 and finite, got 0.0"),
    ],
)
def test_bad_configuration(options, message):
    with pytest.raises(ValueError, match=message):
        GeoLlavaConfig(**options)


def test_a_head_that_learns(complete_checkpoint, pair):
    _, processor = pair
    inputs = ask(processor, ["What?"], [[noise(100, 100)]])
    losses = {}
    for assignment in ("hard", "straight_through", "soft"):
        config = GeoLlavaConfig.from_pretrained(complete_checkpoint)
        config.merge_assignment = assignment
        model = GeoLlavaForConditionalGeneration.from_pretrained(complete_checkpoint, config=config)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        for weight in model.reghead.parameters():
            learns = weight.grad is not None and bool(weight.grad.abs().max() > 0)
            assert learns == (assignment != "hard")
        losses[assignment] = loss.item()
    assert losses["hard"] == losses["straight_through"] != losses["soft"]
