"""Tiny random checkpoints with their processors, as vLLM and transformers both read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tests.tokenprune.checkpoint import MARKS, byte_tokenizer

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TOKENIZER = byte_tokenizer(
    (*MARKS, "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>")
)
NAMES = TOKENIZER.get_vocab()
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": NAMES["<|endoftext|>"],
    "eos_token_id": NAMES["<|im_end|>"],
    "pad_token_id": NAMES["<|endoftext|>"],
}
TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
MERGING: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": TEXT["hidden_size"],
    "patch_size": 14,
}
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 448 * 448}  # of Qwen's images
PINPOINTS = [[112, 224], [224, 112], [224, 224]]
CROP = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
QWEN = {
    "image_token_id": NAMES["<|image_pad|>"],
    "video_token_id": NAMES["<|video_pad|>"],
    "vision_start_token_id": NAMES["<|vision_start|>"],
    "vision_end_token_id": NAMES["<|vision_end|>"],
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}IMAGE{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llava() -> tuple[Any, Any]:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=64),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=NAMES["<image>"],
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(**CROP),
        TOKENIZER,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=64),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=NAMES["<image>"],
        image_grid_pinpoints=PINPOINTS,
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(**CROP, image_grid_pinpoints=PINPOINTS),
        TOKENIZER,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    size = {"height": 112, "width": 112}
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=NAMES["<image>"],
        video_token_index=NAMES["<video>"],
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        TOKENIZER,
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen_images(patch: int = 14) -> Any:
    return hf.Qwen2VLImageProcessor(patch_size=patch, **PIXELS)


def qwen2_vl() -> tuple[Any, Any]:
    vision = {"depth": 3, "embed_dim": 64, "num_heads": 2, "hidden_size": TEXT["hidden_size"]}
    config = hf.Qwen2VLConfig(
        vision_config={**vision, "mlp_ratio": 2, "patch_size": 14},
        text_config=TEXT | {"rope_parameters": dict(MROPE)},
        **QWEN,
    )
    processor = hf.Qwen2VLProcessor(
        qwen_images(), TOKENIZER, hf.Qwen2VLVideoProcessor(patch_size=14)
    )
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = MERGING | {"depth": 3, "window_size": 56, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision, text_config=TEXT | {"rope_parameters": dict(MROPE)}, **QWEN
    )
    processor = hf.Qwen2_5_VLProcessor(
        qwen_images(), TOKENIZER, hf.Qwen2VLVideoProcessor(patch_size=14)
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


DEEPSTACK = MERGING | {
    "depth": 4,
    "patch_size": 16,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [0, 2],
}
INTERLEAVED = {"rope_parameters": MROPE | {"mrope_interleaved": True}, "head_dim": 32}


def qwen3_vl() -> tuple[Any, Any]:
    config = hf.Qwen3VLConfig(vision_config=DEEPSTACK, text_config=TEXT | INTERLEAVED, **QWEN)
    processor = hf.Qwen3VLProcessor(qwen_images(16), TOKENIZER, hf.Qwen3VLVideoProcessor())
    return hf.Qwen3VLForConditionalGeneration(config), processor


def qwen3_vl_moe() -> tuple[Any, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    experts |= {"norm_topk_prob": True}  # as real ones say; transformers does it always
    config = hf.Qwen3VLMoeConfig(
        vision_config=DEEPSTACK, text_config=TEXT | INTERLEAVED | experts, **QWEN
    )
    return hf.Qwen3VLMoeForConditionalGeneration(config), qwen3_vl()[1]


def internvl() -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_tokenizer((*MARKS, "<img>", "</img>", "<IMG_CONTEXT>"), named)
    config = hf.InternVLConfig(
        vision_config=TOWER | {"image_size": [112, 112], "patch_size": [14, 14]},
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    size = {"height": 112, "width": 112}
    cuts = {"size": size, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(**cuts),
        tokenizer,
        hf.InternVLVideoProcessor(size=size),
        image_seq_length=16,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def idefics3_parts() -> tuple[Any, Any, Any]:
    """(tokenizer, the vision tower's settings, image processor)"""
    rows = [f"<row_{row + 1}_col_{col + 1}>" for row in range(6) for col in range(6)]
    marks = (*MARKS, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows)
    images = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 112}}
    return byte_tokenizer(marks), TOWER, images


def idefics3() -> tuple[Any, Any]:
    tokenizer, tower, images = idefics3_parts()
    config = hf.Idefics3Config(
        vision_config=tower,
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(**images), tokenizer, image_seq_len=16
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    tokenizer, tower, images = idefics3_parts()
    config = hf.SmolVLMConfig(
        vision_config=tower,
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**images),
        tokenizer,
        hf.SmolVLMVideoProcessor(**images),
        image_seq_len=16,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    lines = ["\n" * number for number in range(1, 5)]  # vLLM looks for them
    tokenizer = byte_tokenizer((*MARKS, *named.values(), *lines), named)
    text = {"head_dim": 32, "query_pre_attn_scalar": 32, "layer_types": ["full_attention"] * 3}
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**TEXT, **text, tie_word_embeddings=False),
        mm_tokens_per_image=16,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        tie_word_embeddings=False,
    )
    images = hf.Gemma3ImageProcessor(size={"height": 112, "width": 112})
    processor = hf.Gemma3Processor(images, tokenizer, image_seq_length=16)
    return hf.Gemma3ForConditionalGeneration(config), processor


CHECKPOINTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
}
NOT_SERVED = {"gemma3": gemma3}


def image_of(name: str) -> str:
    """How an image stands in a prompt."""
    if name.startswith("qwen"):
        return QWEN_IMAGE
    return {"internvl": "<IMG_CONTEXT>", "gemma3": "<start_of_image>"}.get(name, "<image>")


# vLLM's features differ from transformers' in the sixth digit. With these seeds no method has to
# choose between tokens that are closer than ten times that.
SEEDS = {"internvl": 1, "llava_next": 2}  # 0 for the others


def write(name: str, folder: Path, seed: int | None = None) -> Path:
    """Model and processor, random, alive enough that little changes matter."""
    seed = SEEDS.get(name, 0) if seed is None else seed
    torch.manual_seed(seed)
    model, processor = (CHECKPOINTS | NOT_SERVED)[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1:
                scale = 1 if "embed_tokens" in key else 1.2 / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    processor.chat_template = TEMPLATE.replace("IMAGE", image_of(name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if name.startswith(("llava", "gemma3")):
        nest_tower(folder / "model.safetensors")
    if name.endswith("moe"):
        transpose_experts(folder / "model.safetensors")
    return folder


def nest_tower(file: Path) -> None:
    """CLIP's and SigLIP's weights by the names of earlier transformers, as vLLM looks for them."""
    weights = load_file(file)
    for key in list(weights):
        before, tower, after = key.partition("vision_tower.")
        if tower and not after.startswith("vision_model."):
            weights[f"{before}{tower}vision_model.{after}"] = weights.pop(key)
    save_file(weights, file, metadata={"format": "pt"})


def transpose_experts(file: Path) -> None:
    """Experts' weights as released ones lie, which transformers turns when it loads them."""
    weights = load_file(file)
    for key, weight in weights.items():
        if ".experts." in key:
            weights[key] = weight.transpose(1, 2).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
