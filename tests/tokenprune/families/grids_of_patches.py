"""Families whose images come as a list of patches, with the grid of each (`image_grid_thw`)."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from ..hosts import END, IMAGE, START, TEXT, VIDEO, Host
from .common import DEEPSTACK, MERGING, MOE, MROPE, SLIDING, VIT, family, grids, types

MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
GLM_MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 105,
    "video_end_token_id": 106,
}
WINDOWED = {**MERGING, "window_size": 56, "fullatt_block_indexes": [1]}
AUDIO: dict[str, Any] = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 16,
    "max_source_positions": 64,
    "n_window": 8,
    "output_dim": 32,
}
PATCH, TWO_FRAMES, LARGE = 3 * 14**2, 3 * 2 * 14**2, 3 * 2 * 16**2


def cohere_compass() -> Host:
    text: dict[str, Any] = {**TEXT, **SLIDING, "logit_scale": 1.0}
    text["rope_parameters"] = {kind: dict(MROPE) for kind in text["layer_types"]}
    config = hf.CohereCompassConfig(vision_config=DEEPSTACK, text_config=text, **MARKS)
    return family(hf.CohereCompassForConditionalGeneration(config), grids(LARGE), extra=types)


def cosmos3_edge() -> Host:
    config = hf.Cosmos3EdgeConfig(
        vision_config={**VIT, "patch_size": 14, "num_patches": 64},
        text_config={**TEXT, "head_dim": 8, "rope_parameters": MROPE},
        projector_hidden_size=64,
        **MARKS,
    )
    return family(hf.Cosmos3EdgeForConditionalGeneration(config), grids(PATCH), extra=types)


def cosmos3_omni() -> Host:
    text = hf.Qwen3VLTextConfig(**TEXT, head_dim=8, rope_parameters=MROPE)
    config = hf.Cosmos3OmniConfig(vision_config=DEEPSTACK, text_config=text, **MARKS)
    return family(hf.Cosmos3OmniForConditionalGeneration(config), grids(LARGE), extra=types)


def qwen3_vl_moe() -> Host:
    text = {**TEXT, "head_dim": 8, "rope_parameters": MROPE, "moe_intermediate_size": 16}
    config = hf.Qwen3VLMoeConfig(
        vision_config=DEEPSTACK,
        text_config={**text, "num_experts": 4, "num_experts_per_tok": 2},
        **MARKS,
    )
    return family(hf.Qwen3VLMoeForConditionalGeneration(config), grids(LARGE), extra=types)


def qwen2_5_omni_thinker() -> Host:
    config = hf.Qwen2_5OmniThinkerConfig(
        vision_config=WINDOWED,
        audio_config=AUDIO,
        text_config={**TEXT, "rope_parameters": MROPE},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=104,
        audio_start_token_id=105,
        audio_end_token_id=106,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return family(hf.Qwen2_5OmniThinkerForConditionalGeneration(config), grids(TWO_FRAMES))


def qwen3_omni_moe_thinker() -> Host:
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as source

    text = {
        **TEXT,
        "head_dim": 8,
        "rope_parameters": {**MROPE, "mrope_interleaved": True},
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    config = source.Qwen3OmniMoeThinkerConfig(
        vision_config=DEEPSTACK,
        audio_config={**AUDIO, "n_window_infer": 16, "downsample_hidden_size": 8},
        text_config=text,
        audio_token_id=104,
        audio_start_token_id=105,
        **MARKS,
    )
    return family(hf.Qwen3OmniMoeThinkerForConditionalGeneration(config), grids(LARGE))


def exaone4_5() -> Host:
    config = hf.Exaone4_5_Config(
        vision_config={**WINDOWED, "num_key_value_heads": 2},
        text_config=hf.Exaone4Config(**TEXT, **SLIDING),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return family(hf.Exaone4_5_ForConditionalGeneration(config), grids(TWO_FRAMES))


def hyperclovax_vision_v2() -> Host:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    config = hf.HyperCLOVAXVisionV2Config(
        vision_config=Qwen2_5_VLVisionConfig(**WINDOWED),
        text_config=hf.HyperCLOVAXConfig(**TEXT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return family(hf.HyperCLOVAXVisionV2ForConditionalGeneration(config), grids(TWO_FRAMES))


def ernie4_5_vl_moe() -> Host:
    """Visual tokens and the marks around them have experts of their own."""
    text = {
        **TEXT,
        "rope_parameters": MROPE,
        "mlp_layer_types": ["dense", "sparse"],
        "moe_intermediate_size": [16, 8],
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    }
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config=MERGING,
        text_config=text,
        image_token_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
        video_token_id=VIDEO,
    )
    model = hf.Ernie4_5_VLMoeForConditionalGeneration(config)
    seen = torch.tensor([IMAGE, START, END])
    return family(
        model,
        grids(PATCH),
        extra=lambda ids: types(ids) | {"moe_mm_token_type_ids": torch.isin(ids, seen).int()},
    )


def glm(config_class: Any, model_class: Any, kind: str = "", **text: Any) -> Host:
    vision = {**MERGING, "image_size": 112}
    rope = {**MROPE, "partial_rotary_factor": 1.0}
    config = config_class(
        vision_config=vision | ({"model_type": f"{kind}_vision"} if kind else {}),
        text_config={**TEXT, "rope_parameters": rope, **text}
        | ({"model_type": f"{kind}_text"} if kind else {}),
        **GLM_MARKS,
    )
    return family(model_class(config), grids(TWO_FRAMES), extra=types)


def glm4v() -> Host:
    return glm(hf.Glm4vConfig, hf.Glm4vForConditionalGeneration)


def glm46v() -> Host:
    return glm(hf.Glm46VConfig, hf.Glm46VForConditionalGeneration, "glm4v")


def glmga() -> Host:
    return glm(hf.GlmgaConfig, hf.Glm46VForConditionalGeneration, "glm4v")


def glm4v_moe() -> Host:
    return glm(hf.Glm4vMoeConfig, hf.Glm4vMoeForConditionalGeneration, **MOE)


def glm_ocr() -> Host:
    return glm(hf.GlmOcrConfig, hf.GlmOcrForConditionalGeneration, head_dim=8)


def hunyuan_vl() -> Host:
    """Features hold a begin, a newline after each row, and an end; positions have four axes."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
    config = hf.HunYuanVLConfig(
        vision_config={**VIT, "patch_size": 14, "max_image_size": 112, "out_hidden_size": 32},
        text_config={**TEXT, "head_dim": 16, "rope_parameters": rope},
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=105,
    )
    return family(hf.HunYuanVLForConditionalGeneration(config), grids(PATCH), extra=types)


def kimi_k25() -> Host:
    text = {
        **TEXT,
        **MOE,
        "num_key_value_heads": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    config = hf.Kimi_K25Config(
        vision_config={**VIT, "patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8},
        text_config=hf.DeepseekV3Config(**text),
        projection_hidden_size=32,
        **MARKS,
    )
    return family(hf.Kimi_K25ForConditionalGeneration(config), grids(PATCH, (3, 14, 14)))


def muse(config_class: Any, model_class: Any, text: dict[str, Any], **more: Any) -> Host:
    places = {"pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = config_class(
        vision_config={**VIT, "patch_size": 14, **places},
        text_config={
            **TEXT,
            **SLIDING,
            "head_dim": 8,
            "output_multiplier": 1.0,
            "rope_parameters": rope,
            **text,
        },
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **more,
    )
    return family(model_class(config), grids(TWO_FRAMES))


def muse_glimmer() -> Host:
    return muse(hf.MuseGlimmerConfig, hf.MuseGlimmerForConditionalGeneration, {})


def muse_spark() -> Host:
    text = {
        "moe_intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 16,
    }
    audio = {
        "patch_sizes": [4, 2],
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "out_hidden_size": 32,
    }
    return muse(
        hf.MuseSparkConfig,
        hf.MuseSparkForConditionalGeneration,
        text,
        audio_config=audio,
        audio_token_id=104,
    )


def paddleocr_vl() -> Host:
    config = hf.PaddleOCRVLConfig(
        vision_config={**VIT, "image_size": 112, "patch_size": 14},
        text_config={**TEXT, "head_dim": 8, "rope_parameters": MROPE},
        **MARKS,
    )
    model = hf.PaddleOCRVLForConditionalGeneration(config)
    return family(model, grids(PATCH, (3, 14, 14)), extra=types)


def video_llama_3() -> Host:
    config = hf.VideoLlama3Config(
        vision_config={**VIT, "patch_size": 14},
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )

    def images(counts: list[int]) -> dict[str, Any]:
        given = grids(PATCH)(counts)
        sizes = torch.ones(len(given["image_grid_thw"]), dtype=torch.long)
        return {**given, "image_merge_sizes": sizes}

    return family(hf.VideoLlama3ForConditionalGeneration(config), images)
