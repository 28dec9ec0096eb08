"""Families whose images have a size in pixels, or crops in any number."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from ..hosts import END, IMAGE, PINPOINTS, START, TEXT, TOWER, VIDEO, Host, anyres
from .common import MOE, SLIDING, VIT, alive, family, sized, types
from .one_size import GRANITE, SAM

PIXTRAL = {**VIT, "image_size": 112, "patch_size": 14}


def mistral3() -> Host:
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**PIXTRAL),
        text_config=hf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
        image_token_index=IMAGE,
    )
    return family(hf.Mistral3ForConditionalGeneration(config), sized(14))


def lighton_ocr() -> Host:
    config = hf.LightOnOcrConfig(
        vision_config=hf.PixtralVisionConfig(**PIXTRAL),
        text_config=hf.Qwen3Config(**TEXT, head_dim=8),
        image_token_id=IMAGE,
    )
    return family(hf.LightOnOcrForConditionalGeneration(config), sized(14))


def llava_next_video() -> Host:
    config = hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return anyres(alive(hf.LlavaNextVideoForConditionalGeneration(config)))


def crops(side: int, local: int) -> Any:
    """An overview of each image, and `local` crops of every other one."""

    def images(counts: list[int]) -> dict[str, Any]:
        number = sum(counts)
        more = [local if i % 2 == 0 else 0 for i in range(number)]
        return {
            "pixel_values": torch.randn(number, 3, side, side),
            "pixel_values_local": torch.randn(sum(more), 3, side, side),
            "num_local_patches": more,
        }

    return images


def step3p7() -> Host:
    text = {
        **TEXT,
        **MOE,
        **SLIDING,
        "head_dim": 8,
        "share_expert_dim": 16,
        "num_sliding_attention_heads": 4,
        "mlp_layer_types": ["dense", "sparse"],
    }
    vision = {**PIXTRAL, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    del vision["intermediate_size"]
    config = hf.Step3p7Config(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return family(hf.Step3p7ForConditionalGeneration(config), crops(112, 2))


def deepseek_ocr2() -> Host:
    """144 queries per crop, however small; a separator closes each image."""
    sam = {**SAM, "output_channels": 8, "downsample_channels": [16, 32]}
    encoder = {**VIT, "num_key_value_heads": 4, "vocab_size": 8}
    text = {
        **TEXT,
        **MOE,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", "sparse"],
    }
    config = hf.DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder},
        text_config=text,
        image_token_id=IMAGE,
    )
    return family(hf.DeepseekOcr2ForConditionalGeneration(config), crops(128, 1))


CODES: dict[str, Any] = {
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}


def emu3() -> Host:
    """Images become words of the vocabulary, 104 to 119."""
    vision = {**CODES, "latent_channels": 4, "codebook_size": 16, "embed_dim": 4, "hidden_size": 32}
    words = {f"<|visual token {i:06d}|>": 104 + i for i in range(16)}
    config = hf.Emu3Config(
        vq_config=vision,
        text_config={**TEXT, "attention_dropout": 0.0},
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 126, **words},
    )
    return family(hf.Emu3ForConditionalGeneration(config), sized(2))


def apertus1p5() -> Host:
    """Images and sound become words of the vocabulary."""
    from transformers.models.wavtokenizer import configuration_wavtokenizer as source

    audio = source.WavTokenizerEncoderConfig(
        num_filters=4,
        upsampling_ratios=[2, 2],
        num_lstm_layers=1,
        hidden_size=16,
        codebook_size=16,
        codebook_dim=16,
        decoder_hidden_size=32,
        decoder_intermediate_size=32,
        decoder_num_layers=1,
    )
    config = hf.Apertus1p5Config(
        vision_config={**CODES, "codebook_size": 64, "embed_dim": 8, "resolution": 16},
        text_config={**TEXT, "vocab_size": 300},
        audio_config=audio,
        image_token_id=IMAGE,
        audio_token_id=104,
        image_token_offset=130,
        audio_token_offset=194,
    )
    return family(hf.Apertus1p5ForConditionalGeneration(config), sized(2))


def molmo2() -> Host:
    """An overview, and one crop or two side by side; a token is pooled from 2 x 2 patches."""
    tower = {**VIT, "num_key_value_heads": 4, "head_dim": 8}
    pooling = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 64,
        "text_hidden_size": 32,
        "vision_feature_layer": [1, 0],
    }
    text = {**TEXT, "head_dim": 8, "additional_vocab_size": 8, "rope_scaling_layers": [0]}
    config = hf.Molmo2Config(
        vision_config={**tower, "image_size": [56, 56], "patch_size": 14},
        adapter_config=pooling,
        text_config=text,
        image_patch_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    block = torch.tensor([0, 1, 4, 5])  # patches of a crop's first token, of 4 in a row

    def images(counts: list[int]) -> dict[str, Any]:
        grids, pooled, crops = [], [], 0
        for image in range(sum(counts)):
            across = 1 + image % 2
            grids.append([2, 2, 2, 2 * across])
            for crop, width in ((crops, 2), (crops + 1, 2 * across)):
                pooled += [
                    16 * (crop + col // 2) + 8 * row + 2 * (col % 2) + block
                    for row in range(2)
                    for col in range(width)
                ]
            crops += 1 + across
        return {
            "pixel_values": torch.randn(crops, 16, 3 * 14**2),
            "image_token_pooling": torch.stack(pooled),
            "image_grids": torch.tensor(grids),
        }

    return family(hf.Molmo2ForConditionalGeneration(config), images, extra=types)


def granite4_vision() -> Host:
    """Features of three layers of the tower are added in four layers, zeros are placed."""
    config = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**{**TOWER, "hidden_size": 64}, vision_use_head=False),
        text_config={**TEXT, **GRANITE, "num_hidden_layers": 4},
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        downsample_rate="2/4",
        deepstack_layer_map=[[-2, 0], [-1, 2]],
        spatial_target_layers=[1, 3, 2, 1],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        image_token_index=IMAGE,
    )
    model = alive(hf.Granite4VisionForConditionalGeneration(config))
    return anyres(model, features=lambda output: output.deepstack_features[0][1])
