"""Every type of hosts that is listed as supported, on a tiny model; and models that are refused."""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tokenprune
from tokenprune.hosts.families.qwen_vl import QwenVL
from tokenprune.hosts.listing import Host as Listed
from tokenprune.hosts.mechanisms import MECHANISMS, REASONS
from tokenprune.hosts.registry import find_adapter, known_adapters
from tokenprune.hosts.tested import release_for, results

from .families import FAMILIES, departing
from .families.common import family, square
from .families.one_size import docling
from .families.proof import BATCH, KEEP, METHOD, ONE, PROOFS
from .hosts import IMAGE, TEXT, TOWER, Host

LISTED = {host.model_type: host for host in tokenprune.list_hosts()}
RELEASE = str(hf.__version__)
# Their layers are ones that methods between layers may enter; others refuse them by name.
IN_LAYERS = (
    *("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"),
    *("granite_docling", "llava_next_video", "molmo2", "qianfan_ocr"),
)


@functools.cache
def build(name: str) -> Host:
    if name not in LISTED:
        pytest.skip(f"transformers {RELEASE} has no {name}")
    if RELEASE in results()[0] and not LISTED[name].supported:
        pytest.skip(f"{name} is listed as not supported on transformers {RELEASE}")
    torch.manual_seed(0)
    return FAMILIES[name]()


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("what", PROOFS)
def test_a_listed_host_is_the_masked_model(name, what):
    host = build(name)
    torch.manual_seed(0)
    PROOFS[what](host)


@pytest.mark.skipif(RELEASE not in results()[0], reason="no results of this release")
def test_what_is_listed_is_what_was_tested():
    for name, listed in LISTED.items():
        if not listed.supported:
            continue
        adapter = find_adapter(build(name).model)
        positions = "several axes" if adapter.positions_need_grid else "one axis"
        kind = type(adapter).__name__
        offers = tuple(sorted(adapter.offers))
        assert listed == Listed(name, True, kind, positions, listed.video, None, offers)
        assert not listed.video or adapter.videos is not None


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_no_host_has_a_text_tower(name):
    """So "text" is what the language model embeds, see `VisionTokens.text`."""
    assert not any(hasattr(module, "get_text_features") for module in build(name).model.modules())


def test_every_type_has_a_result_or_a_reason():
    assert len(LISTED) >= 60
    newest, hosts = results()[0][-1], results()[1]
    assert set(hosts) <= set(FAMILIES)
    for name in FAMILIES:  # none is left out on the newest
        assert newest in hosts[name].transformers, name
    for host in LISTED.values():
        assert host.supported == (host.reason is None)
        assert host.supported or host.reason
    assert not set(MECHANISMS) & set(hosts)
    assert set(MECHANISMS.values()) <= set(REASONS)


def test_results_are_those_of_the_release_before():
    releases = results()[0]
    assert release_for("4.0.0") == releases[0]
    assert release_for("99.0.0.dev0") == releases[-1]
    assert release_for(releases[-1]) == releases[-1]


# -- towers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, one in known_adapters().items() if one is QwenVL and name in FAMILIES]
)
def test_attention_comes_in_the_order_of_features(name):
    """Patches of one token, when they change, change its feature and its place in the tower."""
    host = build(name)
    adapter = find_adapter(host.model)
    images = host.images([2])
    sizes = [tuple(map(int, grid)) for grid in images["image_grid_thw"]]
    states: list[torch.Tensor] = []
    hook = adapter.attention_layer.register_forward_pre_hook(
        lambda module, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )

    def encoded(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states.clear()
        given = {"pixel_values": pixels, "image_grid_thw": images["image_grid_thw"]}
        with torch.no_grad():
            output = adapter.model.get_image_features(**given, return_dict=True)
        return torch.cat(list(output.pooler_output)), states[-1].flatten(0, -2)

    plain, before = encoded(images["pixel_values"])
    merge = adapter.merge_size**2
    for token in range(0, len(plain), 3):
        pixels = images["pixel_values"].clone()
        pixels[merge * token : merge * (token + 1)] *= -5
        features, after = encoded(pixels)
        assert int((features - plain).norm(dim=1).argmax()) == token
        moved = torch.cat(adapter.token_attention((after - before).norm(dim=1)[None], sizes))
        assert int(moved.argmax()) == token
    hook.remove()


@pytest.mark.parametrize("name", IN_LAYERS)
def test_tokens_leave_between_layers(name):
    host = build(name)
    method = tokenprune.get_method("fastv", layer=1)
    report = tokenprune.verify(host.model, host.inputs(BATCH), method=method, keep_ratio=KEEP)
    assert report.ok, report


@pytest.mark.skipif("granite_docling" not in LISTED, reason="not in this release")
@pytest.mark.parametrize("what", PROOFS)
def test_fine_tiles_are_the_masked_model(what):
    torch.manual_seed(0)
    PROOFS[what](docling(fine=True))


def test_tokens_of_a_resampler_stand_for_no_place():
    model = build("idefics2").model
    for name in ("fastervlm", "spatial_pool"):
        with pytest.raises(NotImplementedError, match="of a resampler stand for no place"):
            tokenprune.apply(model, name, keep_ratio=0.5)


# -- the generic adapter -----------------------------------------------------------------------


class OnTheSpotConfig(hf.LlavaConfig):
    model_type = "made_on_the_spot"


class OnTheSpotModel(hf.LlavaModel):
    config_class = OnTheSpotConfig


def on_the_spot(kind: type = OnTheSpotModel, text: Any = None) -> Host:
    """A host of a type that nobody has heard of."""
    torch.manual_seed(0)
    config = OnTheSpotConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=text or hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.model = kind(config)
    return family(model, square(56))


def test_a_new_family_needs_no_file(caplog):
    host = on_the_spot()
    with caplog.at_level(logging.WARNING, "tokenprune"):
        for proof in PROOFS.values():
            proof(host)
    warnings = [one.message for one in caplog.records if one.name == "tokenprune"]
    assert len(warnings) == 1
    assert "'made_on_the_spot'" in warnings[0]
    assert "never tested" in warnings[0]
    assert "tokenprune.verify" in warnings[0]
    with tokenprune.apply(host.model, "divprune", num_keep=5) as handle:
        assert handle.retained_count([16, 16]) == [5, 5]
        with pytest.raises(NotImplementedError, match="known only when it is encoded"):
            handle.retained_count([(56, 56)])


class Moody(OnTheSpotModel):
    @functools.wraps(hf.LlavaModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        moods = {"moods": [torch.ones(kwargs["input_ids"].shape)]}
        return super().forward(*args, **kwargs, **moods)


class Flat(OnTheSpotModel):
    def get_image_features(self, pixel_values: Any, **kwargs: Any) -> Any:
        features = super().get_image_features(pixel_values, **kwargs).pooler_output
        return BaseModelOutputWithPooling(pooler_output=torch.cat(list(features)))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Moody, None, "Qwen2Model is called with moods, which may have the prompt's columns"),
        (Flat, None, "the tokens of all images in one row"),
    ],
)
def test_what_would_be_wrong_raises_in_the_forward(kind, text, message):
    host = on_the_spot(kind, text)
    with (
        tokenprune.apply(host.model, "divprune", keep_ratio=0.5),
        pytest.raises(NotImplementedError, match=message),
    ):
        host.model(**host.inputs(ONE))


def chunked() -> Any:
    more = {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2}
    return hf.Llama4TextConfig(**TEXT, **more, attention_chunk_size=16, no_rope_layers=[1, 0])


def test_chunked_attention_is_refused():
    host = on_the_spot(text=chunked())
    with pytest.raises(NotImplementedError, match="chunked attention counts columns"):
        tokenprune.apply(host.model, "divprune", keep_ratio=0.5)


def test_unknown_layers_and_lost_conventions_are_refused():
    def refused(change: Any, message: str) -> None:
        host = on_the_spot()
        change(host.model.model)
        with pytest.raises(NotImplementedError, match=f"no adapter for .*{message}"):
            tokenprune.apply(host.model, "divprune", keep_ratio=0.5)

    def new_layers(model: Any) -> None:
        model.language_model.config.layer_types = ["full_attention", "astral_attention"]

    def look_across(model: Any) -> None:
        model.language_model.layers[0].cross_attn = nn.Identity()

    def forget_placeholders(model: Any) -> None:
        model.get_placeholder_mask = None

    def forget_positions(model: Any) -> None:
        del model.language_model.rotary_emb

    def forget_layers(model: Any) -> None:
        model.language_model = nn.Linear(2, 2)

    refused(new_layers, r"not known here \(astral_attention\)")
    refused(look_across, "by cross-attention")
    refused(forget_placeholders, "get_placeholder_mask")
    refused(forget_positions, "no rotary positions")
    refused(forget_layers, "does not call a language model")


def test_what_the_generic_adapter_does_not_know_is_refused():
    model = on_the_spot().model
    for name, why in (
        ("fastervlm", "needs attention of the tower"),
        ("fastv", "works between layers"),
        ("spatial_pool", "uses the grid"),
    ):
        with pytest.raises(NotImplementedError, match=why):
            tokenprune.apply(model, name, keep_ratio=0.5)
    with pytest.raises(NotImplementedError, match="positions='compact' is proven only"):
        tokenprune.apply(model, "divprune", keep_ratio=0.5, positions="compact")


# -- a family that keeps none of the conventions -----------------------------------------------


def test_a_family_without_conventions_needs_a_small_file(tmp_path, monkeypatch, caplog):
    torch.manual_seed(0)
    host = departing.departing()
    with pytest.raises(NotImplementedError, match=r"no adapter for .*'departing'"):
        tokenprune.apply(host.model, METHOD(), keep_ratio=KEEP)
    info = tmp_path / "departing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: departing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[tokenprune.adapters]\ndeparting = {departing.__name__}:Departing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING, "tokenprune"):
        for proof in PROOFS.values():
            proof(host)
    assert not caplog.records
    grid = "spatial_pool"  # a method that the generic adapter refuses
    report = tokenprune.verify(host.model, host.inputs(BATCH), method=grid, keep_ratio=KEEP)
    assert report.ok, report
    assert len(inspect.getsource(departing.Departing).splitlines()) < 60


# -- types that are refused ---------------------------------------------------------------------


def test_a_type_that_is_listed_as_refused_is_refused():
    host = on_the_spot()
    host.model.config.model_type = host.model.model.config.model_type = "git"
    with pytest.raises(NotImplementedError, match=REASONS["no placeholders"]):
        tokenprune.apply(host.model, "divprune", keep_ratio=0.5)
