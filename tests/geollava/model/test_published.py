"""Equal to a run of the published implementation."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration, GeoLlavaImageProcessor

PUBLISHED_IMAGE_ID = -200
CASES = {"single": "a", "two_images": "ab"}


def inputs_of(case, images, expected, pictures, processor, config):
    """(inputs, labels) of a recorded case: each image's mark becomes one per kept token."""
    crops = processor([pictures[name] for name in images])
    lengths = (crops["num_crops"] * config.num_keep).tolist()
    recorded = expected[f"{case}.input_ids"][0].tolist()

    def expand(row, filler):
        remaining = iter(lengths)
        spans = [
            [filler] * next(remaining) if mark == PUBLISHED_IMAGE_ID else [value]
            for mark, value in zip(recorded, row, strict=True)
        ]
        return torch.tensor([[token for span in spans for token in span]])

    labels = expected.get(f"{case}.labels")
    return (
        {"input_ids": expand(recorded, config.image_token_id), **crops},
        expand(labels[0].tolist(), -100) if labels is not None else None,
    )


@pytest.fixture(scope="module")
def image_processor(tiny_checkpoint):
    return GeoLlavaImageProcessor.from_pretrained(tiny_checkpoint)


@pytest.mark.parametrize("name", ["a", "b"])
def test_crops_are_the_published_ones(name, tiny_checkpoint, expected, pictures):
    processor = GeoLlavaImageProcessor.from_pretrained(
        tiny_checkpoint, do_normalize=True, include_thumbnail=True
    )
    crops = processor(pictures[name])
    torch.testing.assert_close(
        crops["pixel_values"], expected[f"image_{name}.crops"], atol=1e-6, rtol=0
    )
    plain = GeoLlavaImageProcessor.from_pretrained(tiny_checkpoint, do_normalize=True)(
        pictures[name]
    )
    assert torch.equal(plain["pixel_values"], crops["pixel_values"][1:])
    assert plain["num_crops"].tolist() == [24]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward(case, attention, tiny_checkpoint, expected, pictures, image_processor):
    model = GeoLlavaForConditionalGeneration.from_pretrained(
        tiny_checkpoint, attn_implementation=attention
    ).eval()
    inputs, _ = inputs_of(case, CASES[case], expected, pictures, image_processor, model.config)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    tolerance = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(
        output.hidden_states[0], expected[f"{case}.inputs_embeds"], **tolerance
    )
    torch.testing.assert_close(output.logits, expected[f"{case}.logits"], **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_generate(case, model, expected, pictures, image_processor):
    inputs, _ = inputs_of(case, CASES[case], expected, pictures, image_processor, model.config)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    generated = model.generate(**inputs, **options)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(generated[:, length:], expected[f"{case}.generated"])
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), generated)


def test_training_step(tiny_checkpoint, expected, grad_norms, pictures, image_processor):
    model = GeoLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    inputs, labels = inputs_of("train", "a", expected, pictures, image_processor, model.config)
    loss = model(**inputs, labels=labels).loss
    assert loss.item() == pytest.approx(expected["train.loss"].item(), rel=1e-5)

    loss.backward()
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(grad_norms)
    for name, norm in grad_norms.items():
        gradient = parameters[name].grad
        if norm is None:
            assert gradient is None, name
        else:  # a key's bias moves all scores of a query alike: its gradient is rounding alone
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    torch.testing.assert_close(
        parameters["model.mm_projector.0.weight"].grad,
        expected["train.grad.model.mm_projector.0.weight"],
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("form", ["own", "published", "published, sharded"])
def test_save_and_load(form, model, tiny_checkpoint, expected, pictures, image_processor, tmp_path):
    folder = tmp_path / "saved"
    if form == "own":
        model.save_pretrained(folder)
    else:
        size = "200KB" if "sharded" in form else "5GB"
        model.save_published(folder, max_shard_size=size)
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llava_qwen"
        assert (len(list(folder.glob("*.safetensors"))) > 1) == ("sharded" in form)
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    original = load_file(tiny_checkpoint / "model.safetensors")
    assert set(stored) == set(original)
    assert all(torch.equal(stored[name], original[name]) for name in original)

    inputs, _ = inputs_of("single", "a", expected, pictures, image_processor, model.config)
    for loader in (GeoLlavaForConditionalGeneration, AutoModelForImageTextToText):
        again = loader.from_pretrained(folder).eval()
        assert type(again) is GeoLlavaForConditionalGeneration
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert type(AutoConfig.from_pretrained(folder)) is GeoLlavaConfig
    same = GeoLlavaImageProcessor.from_pretrained(folder)
    assert torch.equal(
        same(pictures["b"])["pixel_values"], image_processor(pictures["b"])["pixel_values"]
    )


@pytest.mark.parametrize("save", ["save_pretrained", "save_published"])
def test_what_ends_a_reply_is_saved_too(save, model, tmp_path, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", 7)
    getattr(model, save)(tmp_path / "saved")
    again = GeoLlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert again.generation_config.eos_token_id == 7


def test_save_published_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("geollava.model.published.save_torch_state_dict", no_space)
    with pytest.raises(OSError, match="no space left"):
        model.save_published(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="must be new or empty"):
        model.save_published(tmp_path / "taken")


def test_grid_shapes(golden):
    processor = GeoLlavaImageProcessor()
    cases = json.loads((golden / "grid_shapes.json").read_text())
    assert len(cases) == 312
    for case in cases:
        assert list(processor.select_canvas(*case["size_wh"])) == case["best_wh"], case


def full_size_shapes() -> dict[str, list[int]]:
    """The released checkpoint written out: CLIP ViT-L/14-336, Qwen2-7B, projector, head."""
    shapes: dict[str, list[int]] = {}

    def linear(name, rows, cols, bias=True):
        shapes[f"{name}.weight"] = [rows, cols]
        if bias:
            shapes[f"{name}.bias"] = [rows]

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = [width]

    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = [152_064, 3584]
    shapes["model.norm.weight"] = [3584]
    for index in range(28):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = [3584]
        shapes[f"{layer}.post_attention_layernorm.weight"] = [3584]
        linear(f"{layer}.self_attn.q_proj", 3584, 3584)
        linear(f"{layer}.self_attn.k_proj", 512, 3584)
        linear(f"{layer}.self_attn.v_proj", 512, 3584)
        linear(f"{layer}.self_attn.o_proj", 3584, 3584, bias=False)
        linear(f"{layer}.mlp.gate_proj", 18_944, 3584, bias=False)
        linear(f"{layer}.mlp.up_proj", 18_944, 3584, bias=False)
        linear(f"{layer}.mlp.down_proj", 3584, 18_944, bias=False)

    tower = "model.vision_tower.vision_tower.vision_model"
    shapes[f"{tower}.embeddings.class_embedding"] = [1024]
    shapes[f"{tower}.embeddings.patch_embedding.weight"] = [1024, 3, 14, 14]
    shapes[f"{tower}.embeddings.position_embedding.weight"] = [577, 1024]
    norm(f"{tower}.pre_layrnorm", 1024)
    norm(f"{tower}.post_layernorm", 1024)
    for index in range(24):
        layer = f"{tower}.encoder.layers.{index}"
        norm(f"{layer}.layer_norm1", 1024)
        norm(f"{layer}.layer_norm2", 1024)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{name}", 1024, 1024)
        linear(f"{layer}.mlp.fc1", 4096, 1024)
        linear(f"{layer}.mlp.fc2", 1024, 4096)
    linear("model.mm_projector.0", 3584, 1024)
    linear("model.mm_projector.2", 3584, 3584)
    shapes["reghead.dw.weight"] = [1024, 1, 3, 3]
    shapes["reghead.pw.weight"] = [9, 1024, 1, 1]
    shapes["reghead.pw.bias"] = [9]
    return shapes


@pytest.mark.parametrize("source", ["defaults", "published config"])
def test_full_size_has_the_published_tensors(source, tiny_checkpoint, tmp_path):
    config = GeoLlavaConfig()
    if source == "published config":
        published = json.loads((tiny_checkpoint / "config.json").read_text())
        del published["image_grid_pinpoints"]
        published |= {
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_patch_merge_type": "unires_max24",
            "mm_hidden_size": 1024,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
        }
        (tmp_path / "config.json").write_text(json.dumps(published))
        config = GeoLlavaConfig.from_pretrained(tmp_path)
        assert config.image_token_id == 151_646  # the first that Qwen2's tokenizer leaves free
    with torch.device("meta"):
        model = GeoLlavaForConditionalGeneration(config)
    assert config.num_keep == 24
    state = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state == full_size_shapes()
