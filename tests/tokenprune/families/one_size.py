"""Families whose images all have the same number of tokens."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from ..hosts import IMAGE, PAD, TEXT, TOWER, VIDEO, Host
from .common import SLIDING, VIT, alive, counted, family, instead_of_timm, square

SIGLIP = {**TOWER, "vision_use_head": False}
SAM: dict[str, Any] = {
    "hidden_size": 32,
    "output_channels": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 128,
    "patch_size": 8,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 64,
    "initializer_range": 0.02,
}
# Its scales are those of large models; at this size attention would look everywhere alike.
GRANITE = {"attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}


def aria() -> Host:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    config = hf.AriaConfig(
        vision_config=Idefics3VisionConfig(**TOWER),
        text_config=hf.AriaTextConfig(
            **TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
        ),
        projector_patch_to_query_dict={16: 6, 64: 12},
        image_token_index=IMAGE,
    )
    return family(hf.AriaForConditionalGeneration(config), square(56))


def aya_vision() -> Host:
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**SIGLIP),
        text_config=hf.Cohere2Config(**TEXT, **SLIDING),
        image_token_index=IMAGE,
    )
    return family(hf.AyaVisionForConditionalGeneration(config), square(56))


def cohere2_vision() -> Host:
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**SIGLIP),
        alignment_intermediate_size=64,
        text_config=hf.Cohere2Config(**TEXT, **SLIDING),
        image_token_id=IMAGE,
    )
    return family(hf.Cohere2VisionForConditionalGeneration(config), square(56))


def deepseek_vl() -> Host:
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**SIGLIP),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return family(hf.DeepseekVLForConditionalGeneration(config), square(56))


def deepseek_vl_hybrid() -> Host:
    high = {**SAM, "output_channels": 16, "patch_size": 16, "num_pos_feats": 8}
    low = {**SIGLIP, "image_size": 64, "patch_size": 16}
    config = hf.DeepseekVLHybridConfig(
        vision_config=hf.SiglipVisionConfig(**low),
        high_res_vision_config=hf.SamVisionConfig(**high),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return family(
        hf.DeepseekVLHybridForConditionalGeneration(config),
        lambda counts: square(64)(counts) | square(128, "high_res_pixel_values")(counts),
    )


def fast_vlm() -> Host:
    from transformers.models.fast_vlm import modeling_fast_vlm

    config = hf.FastVlmConfig(
        vision_config=hf.TimmWrapperConfig(
            architecture="fastvit_mci3", num_labels=0, hidden_size=32
        ),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
    )
    with instead_of_timm(modeling_fast_vlm, "timm_wrapper"):
        model = hf.FastVlmForConditionalGeneration(config)
    return family(model, square(56))


def got_ocr2() -> Host:
    config = hf.GotOcr2Config(
        vision_config=SAM, text_config=hf.Qwen2Config(**TEXT), image_token_index=IMAGE
    )
    return family(hf.GotOcr2ForConditionalGeneration(config), square(128))


def pp_chart2table() -> Host:
    from transformers.models.pp_chart2table import configuration_pp_chart2table as source

    config = source.PPChart2TableConfig(
        vision_config=SAM, text_config=hf.Qwen2Config(**TEXT), image_token_index=IMAGE
    )
    return family(hf.GotOcr2ForConditionalGeneration(config), square(128))


def janus() -> Host:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 32,
        "mlp_ratio": 2.0,
    }
    drawing = {
        "embed_dim": 4,
        "num_embeddings": 16,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
        "num_hidden_layers": 1,
    }
    config = hf.JanusConfig(
        vision_config=vision,
        vq_config=drawing,
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return family(hf.JanusForConditionalGeneration(config), square(56))


def ovis2() -> Host:
    vision = {**VIT, "image_size": 56, "patch_size": 14, "vocab_size": 48, "hidden_stride": 1}
    config = hf.Ovis2Config(
        vision_config={**vision, "num_visual_indicator_tokens": 5},
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[105, 106, 107, 108, 109],
        vocab_size=128,
        hidden_size=32,
    )
    model = hf.Ovis2ForConditionalGeneration(config)
    return family(model, square(56), before=(105, 106), after=(107,))


def perception_lm() -> Host:
    """Two tiles make an image."""
    from transformers.models.perception_lm import modeling_perception_lm

    config = hf.PerceptionLMConfig(
        vision_config=hf.TimmWrapperConfig(architecture="vit_tiny", model_args={"embed_dim": 32}),
        text_config=hf.LlamaConfig(**TEXT),
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    with instead_of_timm(modeling_perception_lm, "timm_wrapper", in_rows=True):
        model = hf.PerceptionLMForConditionalGeneration(config)
    return counted(
        model, lambda counts: {"pixel_values": torch.randn(sum(counts), 2, 3, 56, 56)}, 8
    )


def qianfan_ocr() -> Host:
    vision = {**VIT, "image_size": [56, 56], "patch_size": [14, 14], "drop_path_rate": 0.0}
    config = hf.QianfanOCRConfig(
        vision_config=vision,
        text_config=hf.Qwen3Config(**TEXT, head_dim=8),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return family(hf.QianfanOCRForConditionalGeneration(config), square(56))


def video_llava() -> Host:
    """The head takes pixel_values_images, the base pixel_values."""
    config = hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    name = "pixel_values_images"
    return counted(hf.VideoLlavaForConditionalGeneration(config), square(56, name), 16, name)


def vipllava() -> Host:
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.LlamaConfig(**TEXT),
        vision_feature_layer=[-1, -2, 0],
        image_token_index=IMAGE,
    )
    return family(hf.VipLlavaForConditionalGeneration(config), square(56))


def idefics2() -> Host:
    """Images are padded to one size, those of a prompt to one number."""
    config = hf.Idefics2Config(
        vision_config={**TOWER, "image_size": 112},
        text_config=hf.MistralConfig(**TEXT, head_dim=8, sliding_window=24),
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 12,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        image_token_id=IMAGE,
    )

    def images(counts: list[int]) -> dict[str, Any]:
        pixels = torch.zeros(len(counts), max(counts), 3, 112, 112)  # zeros are no images
        seen = torch.zeros(len(counts), max(counts), 112, 112, dtype=torch.bool)
        for row, count in enumerate(counts):
            for image in range(count):
                height, width = (112, 70) if image % 2 == 0 else (56, 112)
                pixels[row, image, :, :height, :width] = torch.randn(3, height, width)
                seen[row, image, :height, :width] = True
        return {"pixel_values": pixels, "pixel_attention_mask": seen}

    model = alive(hf.Idefics2ForConditionalGeneration(config))
    return Host(model, images, real_images, crop_tokens=12)


def real_images(inputs: dict[str, Any]) -> list[None]:
    return [None] * int(inputs["pixel_attention_mask"].flatten(2).any(2).sum())


def granite_docling() -> Host:
    return docling(fine=False)


def docling(fine: bool) -> Host:
    """Tiles in any number, padded to the most in a prompt; a fine one has four times the tokens."""
    vision = {**VIT, "image_size": 112, "patch_size": 14, "scale_factor": 2}
    config = hf.GraniteDoclingConfig(
        vision_config={**vision, "deepstack_visual_indexes": [0], "out_hidden_size": 32},
        text_config={**TEXT, **GRANITE},
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )

    def images(counts: list[int]) -> dict[str, Any]:
        real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        pixels = torch.randn(*real.shape, 3, 112, 112) * real[:, :, None, None, None]
        mask = {"tile_fine_mask": torch.ones(len(counts), dtype=torch.bool)} if fine else {}
        return {"pixel_values": pixels, "pixel_attention_mask": real, **mask}

    def sizes(inputs: dict[str, Any]) -> list[None]:
        return [None] * int(inputs["pixel_attention_mask"].sum())

    model = alive(hf.GraniteDoclingForConditionalGeneration(config))
    return Host(model, images, sizes, crop_tokens=64 if fine else 16)
