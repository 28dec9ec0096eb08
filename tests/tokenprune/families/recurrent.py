"""Families whose language models have recurrent or convolutional layers beside attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from ..hosts import END, IMAGE, START, TEXT, VIDEO, Host
from .common import DEEPSTACK, MROPE, VIT, family, grids, types
from .grids_of_patches import LARGE, MARKS, PATCH

MERGED = {name: DEEPSTACK[name] for name in DEEPSTACK if name != "deepstack_visual_indexes"}
DELTA: dict[str, Any] = {
    **TEXT,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {**MROPE, "partial_rotary_factor": 0.5},
}


def qwen3_5() -> Host:
    config = hf.Qwen3_5Config(vision_config=MERGED, text_config=DELTA, **MARKS)
    return family(hf.Qwen3_5ForConditionalGeneration(config), grids(LARGE), extra=types)


def qwen3_5_moe() -> Host:
    experts = {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    config = hf.Qwen3_5MoeConfig(vision_config=MERGED, text_config={**DELTA, **experts}, **MARKS)
    return family(hf.Qwen3_5MoeForConditionalGeneration(config), grids(LARGE), extra=types)


def lfm2_vl() -> Host:
    text = {**TEXT, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(**VIT, patch_size=14, num_patches=64),
        text_config=hf.Lfm2Config(**text),
        image_token_id=IMAGE,
        projector_hidden_size=32,
    )
    return family(hf.Lfm2VlForConditionalGeneration(config), padded_patches)


def padded_patches(counts: list[int]) -> dict[str, Any]:
    """Rows of patches, one for each image, padded to the longest."""
    chosen = [(8, 6), (4, 8), (4, 4), (10, 6)]
    shapes = torch.tensor([chosen[i % len(chosen)] for i in range(sum(counts))])
    lengths = shapes.prod(1)
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    return {
        "pixel_values": torch.randn(*real.shape, PATCH) * real[:, :, None],
        "spatial_shapes": shapes,
        "pixel_attention_mask": real.int(),
    }


def lfm3_vl() -> Host:
    """Convolutions, and windows shorter than the prompts, in one language model."""
    text = {**TEXT, "num_hidden_layers": 3, "head_dim": 8, "sliding_window": 8}
    text["layer_types"] = ["conv", "sliding_attention", "full_attention"]
    vision = {**VIT, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    config = hf.Lfm3VlConfig(
        vision_config=vision, text_config=text, projector_hidden_size=32, **MARKS
    )
    return family(hf.Lfm3VlForConditionalGeneration(config), grids(LARGE))


MINICPM: dict[str, Any] = {
    "vision_config": {**VIT, "image_size": 112, "patch_size": 14},
    "text_config": hf.Qwen3_5TextConfig(**DELTA),
    "insert_layer_id": 0,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
}


def in_one_strip(counts: list[int]) -> dict[str, Any]:
    """The patches of all images side by side in one picture, one patch high."""
    chosen = [(8, 4), (4, 8), (4, 4), (8, 8)]
    sizes = torch.tensor([chosen[i % len(chosen)] for i in range(sum(counts))])
    patches = int(sizes.prod(1).sum())
    return {"pixel_values": torch.randn(1, 3, 14, 14 * patches), "target_sizes": sizes}


def minicpm_ocr() -> Host:
    config = hf.MiniCPMOcrConfig(**MINICPM)
    return family(hf.MiniCPMOcrForConditionalGeneration(config), in_one_strip)


def minicpmv4_6() -> Host:
    config = hf.MiniCPMV4_6Config(**MINICPM, downsample_mode="4x")
    return family(hf.MiniCPMV4_6ForConditionalGeneration(config), in_one_strip)


def minicpmv4_7() -> Host:
    """Positions on a canvas of three axes, which marks around the crops lay out."""
    config = hf.MiniCPMV4_7Config(
        **MINICPM,
        downsample_mode="4x",
        image_start_id=START,
        image_end_id=END,
        slice_start_id=105,
        slice_end_id=106,
        newline_id=107,
    )
    return family(hf.MiniCPMV4_7ForConditionalGeneration(config), in_one_strip, extra=types)


def nemotron_h_omni() -> Host:
    """No rotary positions: its layers know the order by their states, and by who sees whom."""
    text: dict[str, Any] = {**TEXT, "head_dim": 8, "layer_types": LAYERS}
    del text["num_hidden_layers"]
    text |= {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2}
    text |= {"moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16}
    text |= {"n_routed_experts": 4, "chunk_size": 8}
    vision = {**VIT, "patch_size": 14, "image_size": 112, "max_img_size": 112}
    del vision["intermediate_size"]
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=hf.RadioConfig(**vision, video_temporal_patch_size=2, dtype="float32"),
        text_config=hf.NemotronHConfig(**text),
        projector_hidden_size=32,
        vision_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return family(hf.NemotronH_Omni_Reasoning_V3(config), of_two_sides)


LAYERS = ["linear_attention", "moe", "full_attention", "mlp"]


def of_two_sides(counts: list[int]) -> dict[str, Any]:
    given = grids(PATCH)(counts)
    return {"pixel_values": given["pixel_values"], "image_grid_hw": given["image_grid_thw"][:, 1:]}
