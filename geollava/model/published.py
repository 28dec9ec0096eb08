"""The published form of a checkpoint (model_type llava_qwen): into `GeoLlavaConfig`, and out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict

from geollava.common.outputs import folder_written_whole
from geollava.common.readable import named, quiet_panics
from geollava.model.checkpoint import find_file, read_json
from tokenprune.hub import offline

PUBLISHED_MODEL_TYPE = "llava_qwen"

# Towers that published checkpoints name; a known one needs no download for its configuration.
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What a language model's part of a published config.json may hold, as Qwen2Config names it.
TEXT_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
)
# Qwen2's tokenizer ends at 151,645; the rows of the embedding beyond it are unused.
QWEN2_FREE_TOKEN_ID = 151_646


def free_token_id(source: str | Path, vocab_size: int) -> int:
    """An id for `<image>` that no text has: the tokenizer's own if it has one, else its next."""
    if (path := find_file(source, "tokenizer.json")) is not None:
        from tokenizers import Tokenizer

        read_json(path)
        with named(path, "the tokenizer cannot be loaded"), quiet_panics():
            tokenizer = Tokenizer.from_file(str(path))
        known = tokenizer.token_to_id("<image>")
        return known if known is not None else tokenizer.get_vocab_size(with_added_tokens=True)
    return QWEN2_FREE_TOKEN_ID if vocab_size > QWEN2_FREE_TOKEN_ID else vocab_size


def from_published_config(published: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """A published `config.json` (model_type llava_qwen) -> the arguments of `GeoLlavaConfig`.

    Args:
        published: its content.
        source: the folder or hub name that it comes from, where tower and tokenizer may lie.

    Raises:
        ValueError: a setting that this model does not have, named with its value.
    """
    merge_type = str(published.get("mm_patch_merge_type"))
    match = re.fullmatch(r"unires_max(\d+)", merge_type)
    if match is None:
        raise ValueError(
            f"mm_patch_merge_type must be unires_max and the tokens per crop, got {merge_type}"
        )
    if published.get("mm_projector_type") != "mlp2x_gelu":
        raise ValueError(
            f"mm_projector_type must be mlp2x_gelu, got {published.get('mm_projector_type')}"
        )
    vision_config, image_mean, image_std = tower_config(published.get("mm_vision_tower"), source)
    image_token_id = free_token_id(source, published["vocab_size"])
    return {
        "architectures": ["GeoLlavaForConditionalGeneration"],
        "dtype": published.get("dtype", published.get("torch_dtype")),
        "vision_config": vision_config,
        "text_config": {key: published[key] for key in TEXT_KEYS if key in published},
        "tie_word_embeddings": published.get("tie_word_embeddings", False),
        "num_keep": int(match.group(1)),
        "vision_feature_layer": published.get("mm_vision_select_layer", -2),
        "video_pool_stride": published.get("mm_spatial_pool_stride", 2),
        "vision_tower_name": published.get("mm_vision_tower"),
        "image_grid_pinpoints": published.get("image_grid_pinpoints"),
        "image_mean": image_mean,
        "image_std": image_std,
        "image_token_id": image_token_id,
        "video_token_id": image_token_id + 1,
        "bos_token_id": published.get("bos_token_id"),
        "eos_token_id": published.get("eos_token_id"),
        "pad_token_id": published.get("pad_token_id"),
        "model_max_length": published.get("tokenizer_model_max_length", 32_768),
    }


def tower_config(
    name: str | None, source: str | Path
) -> tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]:
    """(vision config, image mean, image std) of the tower that a published config names."""
    if not name:
        raise ValueError("mm_vision_tower must name the vision tower, got none")
    if name in KNOWN_TOWERS:
        return dict(KNOWN_TOWERS[name]), CLIP_MEAN, CLIP_STD
    # A folder inside the checkpoint, any other folder, or a hub name.
    path = find_file(source, f"{name}/config.json") or find_file(name, "config.json")
    if path is None:
        raise ValueError(
            f"the vision tower {name} is neither in {source}, nor a folder, nor on the hub"
            + (f", which {variable} forbids to ask" if (variable := offline()) else "")
        )
    config = read_json(path)
    normalization = find_file(source, f"{name}/preprocessor_config.json") or find_file(
        name, "preprocessor_config.json"
    )
    preprocessor = read_json(normalization) if normalization is not None else {}
    return (
        config.get("vision_config", config),
        tuple(preprocessor.get("image_mean", CLIP_MEAN)),
        tuple(preprocessor.get("image_std", CLIP_STD)),
    )


def to_published_config(config: Any, tower_name: str) -> dict[str, Any]:
    """`GeoLlavaConfig` -> a published `config.json`.

    Raises:
        ValueError: a setting that the published form cannot say.
    """
    if config.reduction_method != "background_anchored":
        raise ValueError(
            "the published form knows only background_anchored, "
            f"got reduction_method = {config.reduction_method!r}"
        )
    if config.merge_assignment == "soft":
        raise ValueError(
            "the published form knows only hard assignments, got merge_assignment = 'soft'"
        )
    text = config.text_config.to_dict()
    published = {key: text[key] for key in TEXT_KEYS if key in text}
    published["rope_theta"] = config.text_config.rope_parameters["rope_theta"]
    return published | {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": PUBLISHED_MODEL_TYPE,
        "torch_dtype": str(config.dtype).removeprefix("torch.") if config.dtype else "float32",
        "tie_word_embeddings": config.tie_word_embeddings,
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": config.canvases(),
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_patch_merge_type": f"unires_max{config.num_keep}",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": config.video_pool_stride,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": tower_name,
        "tokenizer_model_max_length": config.model_max_length,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }


def save_published(model: Any, folder: str | Path, *, max_shard_size: str = "5GB") -> None:
    """Writes a model as a published checkpoint: `llava_qwen` config and the published tensor names.

    The folder appears whole or not at all.

    Args:
        model: a `GeoLlavaForConditionalGeneration`.
        folder: must not exist yet, or be empty.

    Raises:
        ValueError: the folder holds something.
    """
    with folder_written_whole(Path(folder)) as partial:
        write_published(model, partial, max_shard_size=max_shard_size)


def write_published(model: Any, folder: Path, *, max_shard_size: str = "5GB") -> None:
    """`save_published` into a folder that is there."""
    config = model.config
    tower_name = config.vision_tower_name
    known = tower_name in KNOWN_TOWERS
    published = to_published_config(config, tower_name if known else "vision_tower")
    (folder / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    if not known:
        tower = folder / "vision_tower"
        tower.mkdir()
        config.vision_config.to_json_file(tower / "config.json", use_diff=False)
        normalization = {"image_mean": config.image_mean, "image_std": config.image_std}
        (tower / "preprocessor_config.json").write_text(
            json.dumps(normalization) + "\n", encoding="utf-8"
        )
    state = model.state_dict()
    if config.tie_word_embeddings:
        # The writer keeps one name of a shared tensor, and not always the one that readers need.
        state.pop("lm_head.weight", None)
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size)
    if model.generation_config is not None:  # it says which token ends a reply
        model.generation_config.save_pretrained(folder)
