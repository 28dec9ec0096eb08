"""Families of Google's Gemma."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from ..hosts import END, IMAGE, START, TEXT, TOWER, VIDEO, Host
from .common import SLIDING, VIT, Images, family, instead_of_timm, square, types

# Layers that share the keys of one before, embeddings for each layer, a window beside full layers.
SHARING: dict[str, Any] = {
    **TEXT,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
}
MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": 104,
    "boi_token_id": START,
    "eoi_token_id": END,
    "boa_token_id": 105,
    "eoa_token_index": 106,
}


def shieldgemma2() -> Host:
    config = hf.ShieldGemma2Config(
        text_config={**TEXT, **SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8},
        vision_config={**TOWER, "image_size": 112, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return family(
        hf.Gemma3ForConditionalGeneration(config),
        square(112),
        extra=lambda ids: {"token_type_ids": (ids == IMAGE).int()},
    )


def gemma3n() -> Host:
    """The image token lies in the vision vocabulary, beyond the text's."""
    from transformers.models.gemma3n import modeling_gemma3n

    image, end = 119, 118
    text = {
        **SHARING,
        "vocab_size_per_layer_input": 118,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    }
    audio = {
        "vocab_size": 4,
        "vocab_offset": 124,
        "input_feat_size": 16,
        "hidden_size": 32,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 1,
        "sscp_conv_channel_size": [4, 4],
    }
    config = hf.Gemma3nConfig(
        text_config=text,
        vision_config={"hidden_size": 32, "vocab_size": 6, "vocab_offset": 118},
        audio_config=audio,
        vision_soft_tokens_per_image=16,
        audio_soft_tokens_per_image=4,
        image_token_id=image,
        audio_token_id=125,
        boi_token_id=START,
        eoi_token_id=end,
        boa_token_id=105,
        eoa_token_id=124,
    )
    with instead_of_timm(modeling_gemma3n, "gemma3n_vision"):
        model = hf.Gemma3nForConditionalGeneration(config)
    return family(
        model,
        square(56),
        image=image,
        after=(end,),
        extra=lambda ids: {"token_type_ids": (ids == image).long()},
    )


def patches(width: int, unit: int) -> Images:
    """Patches [images, most, width] with their (x, y), -1 where padding; `unit`² make a token."""
    chosen = [(3, 2), (2, 2), (3, 4)]

    def images(counts: list[int]) -> dict[str, Any]:
        sizes = [chosen[i % len(chosen)] for i in range(sum(counts))]
        places = torch.full((len(sizes), 12 * unit**2, 2), -1)
        for one, (cols, rows) in zip(places, sizes, strict=True):
            axes = torch.arange(cols * unit), torch.arange(rows * unit)
            grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).reshape(-1, 2)
            one[: len(grid)] = grid
        pixels = torch.rand(*places.shape[:2], width) * (places >= 0).all(-1, keepdim=True)
        return {"pixel_values": pixels, "image_position_ids": places}

    return images


def gemma4() -> Host:
    vision = {
        **VIT,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    text = {
        **SHARING,
        "global_head_dim": 8,
        "vocab_size_per_layer_input": 128,
        "use_bidirectional_attention": "vision",
    }
    config = hf.Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **MARKS)
    model = hf.Gemma4ForConditionalGeneration(config)
    return family(model, patches(3 * 4**2, 2), extra=types)


def gemma4_unified() -> Host:
    vision = {
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 32,
        "mm_posemb_size": 64,
        "output_proj_dims": 32,
    }
    text = {**TEXT, **SLIDING, "head_dim": 8, "global_head_dim": 8}
    config = hf.Gemma4UnifiedConfig(
        text_config=text, vision_config=vision, audio_config=None, **MARKS
    )
    model = hf.Gemma4UnifiedForConditionalGeneration(config)
    return family(model, patches(3 * 8**2, 1), extra=types)
