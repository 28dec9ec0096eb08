"""A checkpoint is loaded whole, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.model.default_model import default_checkpoint


def load(folder):
    return GeoLlavaForConditionalGeneration.from_pretrained(folder)


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_tensor(checkpoint_copy):
    edit_tensors(checkpoint_copy, lambda tensors: tensors.pop("reghead.pw.bias"))
    with pytest.raises(ValueError, match=r"missing reghead\.pw\.bias$"):
        load(checkpoint_copy)


def test_extra_tensor(checkpoint_copy):
    edit_tensors(checkpoint_copy, lambda tensors: tensors.update(stray=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"extra stray$"):
        load(checkpoint_copy)


def test_misshapen_tensor(checkpoint_copy):
    name = "model.mm_projector.0.weight"
    edit_tensors(checkpoint_copy, lambda tensors: tensors.update({name: torch.zeros(96, 65)}))
    with pytest.raises(ValueError, match=rf"misshapen {name}: expected \[96, 64\], got \[96, 65\]"):
        load(checkpoint_copy)


def test_many_problems_stay_one_short_line(checkpoint_copy):
    edit_tensors(
        checkpoint_copy, lambda tensors: [tensors.pop(name) for name in list(tensors)[:50]]
    )
    with pytest.raises(ValueError, match="and 42 more") as error:
        load(checkpoint_copy)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_computed_tensors_of_old_checkpoints_are_no_strangers(checkpoint_copy):
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 17),
    }
    edit_tensors(checkpoint_copy, lambda tensors: tensors.update(buffers))
    load(checkpoint_copy)


def test_tied_head_may_be_absent(checkpoint_copy):
    edit_config(checkpoint_copy, tie_word_embeddings=True)
    edit_tensors(checkpoint_copy, lambda tensors: tensors.pop("lm_head.weight"))
    model = load(checkpoint_copy)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("form", ["published", "own"])
def test_export_of_tied_embeddings(form, run, default_pair, tmp_path):
    folder = tmp_path / "exported"
    code, _, err = run("export", default_checkpoint(), folder, "--form", form)
    assert code == 0, err
    again = load(folder)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    state, expected = again.state_dict(), default_pair[0].state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_export_prints_no_progress(run, complete_checkpoint, tmp_path):
    transformers_logging.enable_progress_bar()
    assert run("export", complete_checkpoint, tmp_path / "own", "--form", "own") == (0, "", "")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a.pt"])
def test_pickles_are_refused_with_the_way_out(checkpoint_copy, name):
    (checkpoint_copy / "model.safetensors").rename(checkpoint_copy / name)
    with pytest.raises(ValueError, match=r"pickle.*not loaded.*safetensors.*weights_only=True"):
        load(checkpoint_copy)


def test_adapters_beside_the_weights_are_refused(checkpoint_copy):
    (checkpoint_copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json: a checkpoint must hold whole"):
        load(checkpoint_copy)


def test_truncated_weights(checkpoint_copy):
    path = checkpoint_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        load(checkpoint_copy)


def test_missing_weights_and_missing_shards(checkpoint_copy):
    weights = checkpoint_copy / "model.safetensors"
    weights.unlink()
    with pytest.raises(ValueError, match=r"must hold model\.safetensors or its index"):
        load(checkpoint_copy)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-1\.safetensors, model-2\.safetensors"):
        load(checkpoint_copy)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "/etc/model.safetensors"}, "in the checkpoint's folder, got /etc/model.safetensors"),
        ({"a": "../model.safetensors"}, r"in the checkpoint's folder, got \.\./model"),
        ({"a": "b/../../model.safetensors"}, "in the checkpoint's folder"),
        # As Windows reads names.
        ({"a": "C:model.safetensors"}, "in the checkpoint's folder, got C:model"),
        ({"a": r"\model.safetensors"}, r"in the checkpoint's folder, got \\model"),
        ({"a": r"..\model.safetensors"}, r"in the checkpoint's folder, got \.\.\\model"),
        ({"a": 1}, "must name a file for each tensor"),
        (["model.safetensors"], "must name a file for each tensor"),
        (None, "must name a file for each tensor"),
    ],
)
def test_an_index_stays_in_its_folder(checkpoint_copy, weight_map, message):
    weights = checkpoint_copy / "model.safetensors"
    weights.rename(checkpoint_copy.parent / "model.safetensors")
    index = checkpoint_copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message) as error:
        load(checkpoint_copy)
    assert str(index) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_patch_merge_type": "spatial_unpad"}, "unires_max .* got spatial_unpad"),
        ({"mm_patch_merge_type": "unires_max17"}, "between 1 and the 16 tokens"),
        ({"mm_projector_type": "linear"}, "mlp2x_gelu, got linear"),
        ({"mm_vision_tower": None}, "must name the vision tower"),
        ({"mm_vision_tower": "nowhere"}, "vision tower nowhere"),
        ({"image_grid_pinpoints": [[55, 112]]}, "multiples of 56"),
    ],
)
def test_settings_that_this_model_does_not_have(checkpoint_copy, changes, message):
    edit_config(checkpoint_copy, **changes)
    with pytest.raises(ValueError, match=message):
        GeoLlavaConfig.from_pretrained(checkpoint_copy).canvases()


def test_not_a_checkpoint(tmp_path, checkpoint_copy):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold a checkpoint's config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="got the file"):
        load(checkpoint_copy / "config.json")


def test_no_tokenizer(tiny_checkpoint):
    with pytest.raises(ValueError, match="must hold the tokenizer"):
        GeoLlavaProcessor.from_pretrained(tiny_checkpoint)


def test_known_tower_needs_no_files(checkpoint_copy):
    tower = "openai/clip-vit-large-patch14-336"
    edit_config(checkpoint_copy, mm_vision_tower=tower, image_grid_pinpoints=[[336, 672]])
    config = GeoLlavaConfig.from_pretrained(checkpoint_copy).vision_config
    assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (1024, 24, 336)
    assert (config.intermediate_size, config.num_attention_heads) == (4096, 16)
    assert config.hidden_act == "quick_gelu"


def test_image_token_is_one_that_text_does_not_have(tiny_checkpoint, complete_checkpoint):
    assert GeoLlavaConfig.from_pretrained(tiny_checkpoint).image_token_id == 512  # vocabulary's end
    config = GeoLlavaConfig.from_pretrained(complete_checkpoint)
    processor = GeoLlavaProcessor.from_pretrained(complete_checkpoint)
    assert processor.image_token_id == config.image_token_id
    assert processor.video_token_id == config.video_token_id


def test_pinpoints_as_a_range():
    config = GeoLlavaConfig(image_grid_pinpoints="(1x1),...,(2x3)")
    assert config.canvases() == [
        [336, 336], [336, 672], [336, 1008], [672, 336], [672, 672], [672, 1008],
    ]  # fmt: skip
