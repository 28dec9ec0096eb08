"""tokenprune.apply on GeoLLaVA, after the model's own reduction and alone: exact, or refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf

import tokenprune
from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.model import host as host_file
from geollava.model.configuration import NO_REDUCTION
from geollava.model.token_reduction import check_method, crop_methods, host_methods
from tests.geollava.conftest import noise
from tests.tokenprune import hosts, test_apply, test_layers, test_turns
from tests.tokenprune.hosts import IMAGE, VIDEO
from tests.tokenprune.test_towers import needing

OPTIONS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 1},
    "pyramiddrop": {"layers": (1, 3), "ratio": 0.7},
    **hosts.IN_SHALLOW_TOWERS,
}
NUM_KEEP, PER_CROP, SIDE = 5, 16, 56
AFTER, ALONE = "background_anchored", NO_REDUCTION
OF_A_GRID = {"downsample", "spatial_pool"}
BY_ATTENTION = {
    *("fastervlm", "flashvid", "hiprune", "holov", "idpruner", "nuwa", "prumerge", "prumergeplus"),
    *("prunesid", "scope", "visionzip", "vispruner"),
}
NOT_HANDED_OVER = {"globalcom2": "does not say which crops are one image's"}
GREEDY = test_apply.GREEDY


@dataclass
class GeoHost(hosts.Host):
    """Images of two crops, one and three; so many tokens of each crop as the model keeps."""

    def lengths(self, images: dict[str, Any]) -> list[int]:
        return [self.model.config.num_keep * int(crops) for crops in images["num_crops"]]


def images(counts: list[int]) -> dict[str, Any]:
    num_crops = torch.tensor([(2, 1, 3)[i % 3] for i in range(sum(counts))])
    return {
        "pixel_values": torch.randn(int(num_crops.sum()), 3, SIDE, SIDE),
        "num_crops": num_crops,
    }


def built(method: str, num_keep: int) -> GeoHost:
    config = GeoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**hosts.TOWER),
        text_config=hf.Qwen2Config(**{**hosts.TEXT, "num_hidden_layers": 4}),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        num_keep=num_keep,
        reduction_method=method,
        encoder_chunk_size=2,  # images come to the tower in pieces
    )
    torch.manual_seed(0)
    model = GeoLlavaForConditionalGeneration(config).eval()
    sizes = lambda inputs: [(crops,) for crops in inputs["num_crops"].tolist()]  # noqa: E731
    return GeoHost(model, images, sizes)


@pytest.fixture(scope="module", params=[AFTER, ALONE])
def host(request) -> GeoHost:
    return built(request.param, NUM_KEEP if request.param == AFTER else PER_CROP)


@pytest.fixture(scope="module")
def after() -> GeoHost:
    return built(AFTER, NUM_KEEP)


def method_of(name: str) -> tokenprune.Method:
    return tokenprune.get_method(name, **OPTIONS.get(name, {}))


def is_alone(host: GeoHost) -> bool:
    return host.model.config.reduction_method == ALONE


# -- every method works exactly, or says why not --------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(tokenprune.list_methods()) - hosts.OF_ONE_MODEL))
def test_every_method_is_verified_or_refused_by_name(host, name):
    method = method_of(name)
    if name in NOT_HANDED_OVER:
        reason = "neighbors" if not is_alone(host) else NOT_HANDED_OVER[name]
        with pytest.raises(NotImplementedError, match=f"{type(method).__name__} .*{reason}"):
            tokenprune.apply(host.model, method, keep_ratio=0.5)
        return
    if not is_alone(host) and name in OF_A_GRID | BY_ATTENTION:
        with pytest.raises(NotImplementedError) as refused:
            tokenprune.apply(host.model, method, keep_ratio=0.5)
        line = str(refused.value)
        assert line.startswith(type(method).__name__)
        assert "background_anchored leaves 5 of 16; reduction_method 'none' keeps" in line
        assert "\n" not in line
        return
    inputs = host.inputs([[3, 0, 4, 0, 5], [6], [2, 0, 9]])
    if method.over_time:
        refused = pytest.raises(NotImplementedError, match=f"^{type(method).__name__} .* of videos")
        with refused, tokenprune.apply(host.model, method, keep_ratio=0.5):
            host.model(**inputs)
        return
    report = tokenprune.verify(host.model, inputs, method=method, keep_ratio=0.5, new_tokens=2)
    assert report.ok, report
    before = [crops * host.model.config.num_keep for crops in (2, 1, 3)]
    assert report.tokens_before == sum(before)
    assert report.tokens_after == sum((tokens + 1) // 2 for tokens in before)


def test_the_models_own_method_needs_its_weights_and_a_class_token(host):
    with pytest.raises(ValueError, match="background_anchored needs the model's weights"):
        tokenprune.apply(host.model, "background_anchored", keep_ratio=0.5)


@pytest.mark.parametrize("name", ["divprune", "fastv", "pyramiddrop", "sparsevlm"])
def test_it_is_the_whole_model_with_dropped_columns_masked(host, name):
    method = method_of(name)
    if isinstance(method, tokenprune.LayerMethod):
        test_layers.assert_exact(host, method)
        test_layers.assert_rows(host, method)
        test_layers.assert_no_cache(host, method)
    else:
        test_apply.test_original_positions_are_the_whole_model_with_tokens_hidden(host, name)
        for positions in ("original", "compact"):
            test_apply.test_a_batch_is_its_rows(host, positions)
            test_apply.test_a_cache_changes_nothing(host, positions)


@pytest.mark.parametrize("where", ["inside", "after", "under another"])
@pytest.mark.parametrize("name", ["divprune", "fastv", "pyramiddrop"])
def test_further_turns_are_the_whole_models(after, name, where):
    test_turns.assert_turns(after, name, test_turns.BATCH, where)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "cdpruner"])
def test_undo_leaves_nothing_behind(host, name):
    inputs = host.inputs(test_apply.ONE)
    plain, before = test_apply.logits_of(host, inputs), test_apply.traces(host.model)
    with tokenprune.apply(host.model, method_of(name), keep_ratio=0.5):
        assert test_apply.logits_of(host, inputs).shape[1] < plain.shape[1]
    assert test_apply.traces(host.model) == before
    assert torch.equal(test_apply.logits_of(host, inputs), plain)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_training(host, name):
    test_layers.test_training(host, method_of(name))


def test_training_before_the_language_model(host):
    test_apply.assert_training(host, "tome")


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_gradient_checkpointing(name):
    host = built(AFTER, NUM_KEEP)
    inputs = host.inputs(test_apply.ONE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    host.model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            host.model.gradient_checkpointing_enable({"use_reentrant": False})
        with tokenprune.apply(host.model, method_of(name), keep_ratio=0.5):
            host.model(**inputs, labels=labels).loss.backward()
        gradients.append(
            [
                host.model.model.layers[3].mlp.up_proj.weight.grad.clone(),
                host.model.model.mm_projector[0].weight.grad.clone(),
            ]
        )
        host.model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_by_place(after):
    """All arguments without their names, as the signature has them."""
    inputs = after.inputs([[3, 0, 4, 0, 5]])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    order = ("input_ids", "pixel_values", "num_crops", "attention_mask")
    with tokenprune.apply(after.model, "divprune", keep_ratio=0.5), torch.no_grad():
        named = after.model(**inputs, labels=labels)
        by_place = after.model(*(inputs[name] for name in order), *[None] * 7, labels)
    assert torch.equal(named.logits, by_place.logits)
    assert torch.equal(named.loss, by_place.loss)


# -- what a handle tells --------------------------------------------------------------------------


def test_a_budget_counts_for_an_image_and_is_shared_out_to_its_crops(pair):
    model, processor = pair
    scenes = [[noise(200, 90, 1), noise(90, 300, 2)], [], [noise(120, 120, 3)]]
    prompts = [processor.build_prompt("What?", num_images=len(group)) for group in scenes]
    inputs = processor(images=scenes, text=prompts)
    assert (inputs["attention_mask"][:, 0] == 0).any()
    crops = inputs["num_crops"].tolist()
    before = [count * model.config.num_keep for count in crops]
    with tokenprune.apply(model, "divprune", keep_ratio=0.4) as handle:
        model.generate(**inputs, max_new_tokens=3)
        report, last = handle.report(), handle.last
        kept = handle.kept_positions
        assert handle.retained_count([(count,) for count in crops]) == report.tokens_after
        assert handle.retained_count(before) == report.tokens_after
    assert report.unit == "image"
    assert report.tokens_before == before
    assert report.tokens_after == [count * 2 for count in crops]  # 0.4 of 5
    assert tuple(last.keep_indices.shape) == (sum(crops), 2)
    remain = inputs["input_ids"].gather(1, torch.stack([row[-20:] for row in kept]))
    assert bool((remain[:, -5:] != model.config.image_token_id).all())
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert [len(row) for row in kept] == [
        lengths[0] - 3 * sum(crops[:2]),
        lengths[1],
        lengths[2] - 3 * crops[2],
    ]


def test_layers_look_at_an_image_as_a_whole(after):
    """A question may be about one crop alone: each image keeps its number, not each crop."""
    inputs = after.inputs([[3, 0, 4, 0, 5]])
    with tokenprune.apply(after.model, method_of("fastv"), num_keep=4) as handle:
        test_apply.logits_of(after, inputs)
        assert handle.report().tokens_after == [4, 4]
        assert [tuple(part.keep_indices.shape) for part in handle.last] == [(1, 4), (1, 4)]


def test_an_8k_image_has_576_crops_of_24_tokens():
    with torch.device("meta"):
        model = GeoLlavaForConditionalGeneration(GeoLlavaConfig())
    with tokenprune.apply(model, "fastv", keep_ratio=1.0) as handle:
        assert handle.retained_count([(576,)]) == [576 * 24]
    with tokenprune.apply(model, "fastv", keep_ratio=0.5) as handle:
        assert handle.retained_count([(576,)]) == [576 * 12]


# -- images that were encoded before ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["divprune", "cdpruner", "fastv", "pyramiddrop"])
@pytest.mark.parametrize("beams", [1, 3])
def test_features_in_place_of_pixels(host, name, beams):
    model = host.model
    inputs = host.inputs([[3, 0, 4, 0, 5], [6], [2, 0, 9]])
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        vision = model.encode_crops(pixels).features
        ready = model.get_image_features(pixels, inputs["num_crops"])
    plain = test_apply.generated(host, {**inputs, "pixel_values": pixels}, num_beams=beams)
    for features in ({"vision_features": vision}, {"image_features": ready}):
        whole = test_apply.generated(host, {**inputs, **features}, num_beams=beams)
        assert torch.equal(whole.sequences, plain.sequences)
        assert torch.equal(torch.stack(whole.logits), torch.stack(plain.logits))
    with tokenprune.apply(model, method_of(name), keep_ratio=0.5) as handle:
        expected = test_apply.generated(host, {**inputs, "pixel_values": pixels}, num_beams=beams)
        kept = handle.kept_positions
        for features in ({"vision_features": vision}, {"image_features": ready}):
            run = test_apply.generated(host, {**inputs, **features}, num_beams=beams)
            assert torch.equal(run.sequences, expected.sequences)
            assert torch.equal(torch.stack(run.logits), torch.stack(expected.logits))
            for one, other in zip(handle.kept_positions, kept, strict=True):
                assert torch.equal(one, other)
            with pytest.raises(ValueError, match="num_crops must say how many crops"):
                model(input_ids=inputs["input_ids"], **features)


def test_a_feature_that_was_encoded_before_has_no_attention():
    host = built(ALONE, PER_CROP)
    inputs = host.inputs(test_apply.ONE)
    pixels = inputs.pop("pixel_values")
    with torch.no_grad(), tokenprune.apply(host.model, "fastervlm", keep_ratio=0.5):
        features = host.model.get_image_features(pixels, inputs["num_crops"])
        host.model(**inputs, image_features=features)  # whose attention was just read
        other = features.clone()
        other[-1] += 1  # an image like the one before, and another
        for given in (
            {"image_features": other},
            {"vision_features": host.model.encode_crops(pixels).features},
        ):
            with pytest.raises(ValueError, match="images that were encoded before"):
                host.model(**inputs, **given)


def test_num_crops_must_fit(after):
    inputs = after.inputs(test_apply.ONE)
    inputs["num_crops"] = inputs["num_crops"] + 1
    with tokenprune.apply(after.model, "divprune", keep_ratio=0.5):
        with pytest.raises(ValueError, match="num_crops must add up to the 3 crops"):
            after.model(**inputs)
        pixels = inputs.pop("pixel_values")
        features = after.model.get_image_features(pixels, [2, 1])
        with pytest.raises(ValueError, match="the 15 tokens of image_features, 5 of each"):
            after.model(**inputs, image_features=features)
        inputs["num_crops"] = [2, 1]
        vision = after.model.encode_crops(pixels).features
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == 1, IMAGE)
        with pytest.raises(ValueError, match="expected 15, got 16"):
            after.model(**inputs, vision_features=vision)
        inputs["input_ids"] = torch.tensor([[1, *[IMAGE] * 12, 7]])
        del inputs["attention_mask"]
        with pytest.raises(ValueError, match="num_crops must add up to 12 tokens, 5 of each crop"):
            after.model(**inputs, vision_features=vision[:, :4])


def test_what_cannot_be_is_refused(after, monkeypatch):
    model, inputs = after.model, after.inputs(test_apply.ONE)
    with tokenprune.apply(model, "divprune", keep_ratio=0.5):
        with pytest.raises(NotImplementedError, match="tokens of videos are not reduced"):
            model(input_ids=inputs["input_ids"], video_features=torch.zeros(3, 32))
        with pytest.raises(NotImplementedError, match="inputs_embeds without images"):
            model(inputs_embeds=torch.zeros(1, 9, 32))
    with pytest.raises(NotImplementedError, match="no adapter for GeoLlavaModel"):
        tokenprune.apply(model.model, "divprune", keep_ratio=0.5)
    monkeypatch.setattr(host_file, "is_sharded", lambda model: True)
    with pytest.raises(NotImplementedError, match="while its weights are sharded"):
        tokenprune.apply(model, "divprune", keep_ratio=0.5)


# -- a model that keeps all -----------------------------------------------------------------------


def test_none_keeps_every_token_as_it_is(complete_checkpoint, tmp_path):
    source = complete_checkpoint
    config = GeoLlavaConfig.from_pretrained(source)
    config.reduction_method, config.num_keep = NO_REDUCTION, PER_CROP
    model = GeoLlavaForConditionalGeneration.from_pretrained(source, config=config).eval()
    model.save_pretrained(tmp_path)
    GeoLlavaProcessor.from_pretrained(source, num_keep=PER_CROP).save_pretrained(tmp_path)
    model = GeoLlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = GeoLlavaProcessor.from_pretrained(tmp_path)
    assert model.config.reduction_method == NO_REDUCTION
    inputs = processor(images=[noise(80, 60)], text=processor.build_prompt("What?"))
    placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert placeholders == PER_CROP * int(inputs["num_crops"].sum())
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
        kept = model.encode_crops(inputs["pixel_values"])
        tower = model.model.vision_tower(model.prepare_pixels(inputs["pixel_values"]))[:, 1:]
    torch.testing.assert_close(kept.features, tower, atol=1e-5, rtol=1e-5)
    assert kept.valid.all()
    assert kept.assignment.numel() == kept.keep_indices.numel()
    assert torch.equal(kept.keep_indices, kept.assignment)
    with pytest.raises(ValueError, match="published form knows only background_anchored"):
        model.save_published(tmp_path / "published")


def test_none_with_another_budget_is_refused(model):
    with pytest.raises(ValueError, match="num_keep must be the 576 tokens of a crop where"):
        GeoLlavaConfig(reduction_method=NO_REDUCTION)
    changed = copy.copy(model)
    changed.config = copy.deepcopy(model.config)
    changed.config.reduction_method = NO_REDUCTION
    with pytest.raises(ValueError, match=r"num_keep must be the 16 tokens .* got 5"):
        changed.encode_crops(torch.zeros(1, 3, SIDE, SIDE))


@pytest.mark.parametrize(
    "name", ["fastervlm", "spatial_pool", "vispruner", "scope", "downsample", "holov"]
)
def test_alone_means_the_grid_and_the_attention_of_the_tower(name):
    """Places and attention are the very ones that the model itself reduces crops by."""
    host = built(ALONE, PER_CROP)
    inputs = host.inputs([[3, 0, 4, 0, 5]])
    with tokenprune.apply(host.model, name, keep_ratio=0.25) as handle:
        test_apply.logits_of(host, inputs)
        applied = handle.last
    host.model.config.reduction_method, host.model.config.num_keep = name, 4
    with torch.no_grad():
        inside = host.model.encode_crops(inputs["pixel_values"])
    if name == "holov":  # it compares features too, which the projector changes
        assert applied.keep_indices.shape == inside.keep_indices.shape
    else:
        assert torch.equal(applied.keep_indices, inside.keep_indices)
        assert torch.equal(applied.assignment, inside.assignment)


# -- which methods there are ----------------------------------------------------------------------


def test_layers_of_the_tower_are_read_crop_by_crop(after):
    """Crops come to the tower two at a time; its last layer but one is the last that runs."""
    host = built(ALONE, PER_CROP)
    inputs = host.inputs([[3, 0, 4, 0, 5]])
    method = needing(hidden_states=(-2,), keys=(0,))
    report = tokenprune.verify(host.model, inputs, method=method, keep_ratio=0.4, new_tokens=2)
    assert report.ok, report
    tower = host.model.model.vision_tower
    with torch.no_grad():
        whole = tower(inputs["pixel_values"])[:, 1:]
        first = tower.encoder.encoder.layers[0]
        embedded = tower.encoder.pre_layrnorm(tower.encoder.embeddings(inputs["pixel_values"]))
        keys = first.self_attn.k_proj(first.layer_norm1(embedded))[:, 1:]
    seen = set()
    for tokens in method.noted:
        for states, of_first in zip(tokens.hidden_states[-2], tokens.keys, strict=True):
            crop = int((whole - states).abs().amax((1, 2)).argmin())
            torch.testing.assert_close(states, whole[crop], atol=1e-6, rtol=0)
            torch.testing.assert_close(of_first, keys[crop], atol=1e-6, rtol=0)
            seen.add(crop)
    assert seen == {0, 1, 2}
    for layer in (-1, 2):
        with pytest.raises(
            NotImplementedError, match=f"keys of layer {layer}, the vision tower runs 2 of its 3"
        ):
            tokenprune.apply(host.model, needing(keys=(layer,)), keep_ratio=0.5)
    with pytest.raises(NotImplementedError, match="needs the vision tower's keys of a crop's"):
        tokenprune.apply(after.model, needing(keys=(0,)), keep_ratio=0.5)


def test_methods_are_used_on_crops_or_on_the_host_never_both():
    crops, asked = crop_methods(), host_methods()
    assert not set(crops) & set(asked)
    assert asked == ["cdpruner", "fastv", "pyramiddrop", "sparsevlm"]
    refused = {"globalcom2": "cls_logits", "hiprune": "received"}
    refused |= {"nuwa": "hidden_states", "visionselector": "q_weight"}
    over_time = {n for n in tokenprune.list_methods() if tokenprune.method_class(n).over_time}
    known = {NO_REDUCTION, *tokenprune.list_methods()}
    assert {*crops, *asked} == known - {*refused} - over_time
    for name, needed in refused.items():
        with pytest.raises(
            ValueError, match=f"the method {name} needs {needed}.*, which this model"
        ):
            check_method(name)
    for name in over_time:
        with pytest.raises(ValueError, match=f"the method {name} compares the frames of videos"):
            check_method(name)
    for name in crops:
        check_method(name)
        assert name == NO_REDUCTION or tokenprune.method_class(name).query_agnostic
    for name in asked:
        assert not tokenprune.method_class(name).query_agnostic
        with pytest.raises(ValueError, match=f"the method {name} "):
            check_method(name)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "cdpruner", "sparsevlm"])
def test_host_methods_work_with_their_defaults_on_a_released_size(after, name):
    assert name in host_methods()
    with torch.device("meta"):
        model = GeoLlavaForConditionalGeneration(GeoLlavaConfig())
    tokenprune.apply(model, name, keep_ratio=0.5).remove()
