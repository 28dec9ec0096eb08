"""Families whose layers attend to a number of columns that an indexer has ranked best."""

from __future__ import annotations

from typing import Any

import transformers as hf

from ..hosts import IMAGE, TEXT, VIDEO, Host
from .any_size import PIXTRAL
from .common import MOE, MROPE, VIT, family, grids, sized, types

# So few columns that most of a prompt is not attended to, ranked by so many heads that none tie.
INDEXED: dict[str, Any] = {
    **TEXT,
    **MOE,
    "index_topk": 12,
    "index_head_dim": 16,
    "index_n_heads": 16,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "mlp_layer_types": ["dense", "sparse", "dense"],
    "num_hidden_layers": 3,
}


def hy_v4_vl() -> Host:
    """Features hold a newline after each row; the last layer takes the columns of another."""
    config = hf.HYV4VLConfig(
        vision_config={**VIT, "patch_size": 14, "max_image_size": 112, "out_hidden_size": 32},
        text_config={
            **INDEXED,
            "rope_parameters": MROPE,
            "indexer_types": ["full", "full", "shared"],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return family(hf.HYV4VLForConditionalGeneration(config), grids(3 * 14**2), extra=types)


def dots3_note() -> Host:
    """Layers with a window beside those with an indexer."""
    text = {
        **INDEXED,
        "head_dim": 16,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "sliding_window": 16,
        "shared_experts_intermediate_size": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    }
    vision = {
        **VIT,
        "patch_size": 14,
        "mlp_layer_types": ["dense", "dense"],
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
    }
    audio = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "feature_size": 16,
        "downsample_hidden_size": 8,
        "adapter_input_size": 16,
        "adapter_out_dim": 32,
    }
    config = hf.Dots3NoteConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=104,
    )
    return family(hf.Dots3NoteForConditionalGeneration(config), grids(3 * 14**2))


def mistral_large4() -> Host:
    """A layer without rotary positions, and one that attends to keys of the layer before."""
    config = hf.MistralLarge4Config(
        vision_config=hf.PixtralVisionConfig(**PIXTRAL),
        text_config={
            **INDEXED,
            "no_rope_layers": [1, 0, 1],
            "kv_source_layers": [0, 1, 0],
            "indexer_types": ["full", "full", "full"],
        },
        image_token_index=IMAGE,
    )
    return family(hf.MistralLarge4ForConditionalGeneration(config), sized(28))
