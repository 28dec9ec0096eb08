"""Checkpoints as files: finding them, checking every tensor, and the published form in and out.

The modules of `modeling.py` carry the published tensor names, so a released checkpoint's tensors
are ours as they are; only `config.json` differs between the two forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from geollava.common.outputs import folder_written_whole
from geollava.common.readable import FileError, named, quiet_panics

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
# What transformers takes from a generation_config.json as it is, whatever its type.
GENERATION_SETTINGS: dict[Any, tuple[tuple[str, ...], str]] = {
    bool: (
        (
            "do_sample",
            "use_cache",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "output_logits",
            "return_dict_in_generate",
            "renormalize_logits",
            "remove_invalid_values",
        ),
        "true or false",
    ),
    int: (
        (
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "num_beams",
            "num_beam_groups",
            "num_return_sequences",
            "no_repeat_ngram_size",
            "top_k",
        ),
        "a whole number",
    ),
    (int, float): (
        (
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "guidance_scale",
            "max_time",
        ),
        "a number",
    ),
}
MAX_BEAMS = 64
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CONFIG_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")
# As JSON escapes it. Whole pairs have such a half too, and are text.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What reading from a hub raises when it, or the file, is not there.
HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
# Tensors that older checkpoints carry although they are computed, never learned.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
# Qwen2's tokenizer ends at 151,645; the rows of the embedding beyond it are unused.
QWEN2_FREE_TOKEN_ID = 151_646


def resolve_folder(name_or_path: str | Path, *, weights: bool = True, **hub_options: Any) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub name after downloading it.

    Args:
        weights: download the weights too, not only what configures and tokenizes.
        hub_options: for `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: neither a folder nor a hub name that can be reached; says which.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in CONFIG_FILES):
            raise ValueError(f"{folder} must hold a checkpoint's config.json, found none")
        return folder
    if folder.exists():
        raise ValueError(f"a checkpoint must be a folder or a hub name, got the file {folder}")
    if not HUB_NAME.fullmatch(str(name_or_path)):
        raise ValueError(f"a checkpoint must be a folder or a hub name, {folder} does not exist")
    try:
        patterns = ["*.json", "*.txt", "*.jinja"] + ["*.safetensors"] * weights
        return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **hub_options))
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name_or_path} is not a folder here, and the hub does not give it: {reason}"
        ) from error


def find_file(source: str | Path, name: str) -> Path | None:
    """One file of a checkpoint, local or on the hub, or None where it has no such file."""
    path = Path(source) / name
    if path.is_file():
        return path
    if Path(source).exists() or not HUB_NAME.fullmatch(str(source)):
        return None
    try:
        return Path(hf_hub_download(str(source), name))
    except HUB_ERRORS:
        return None


def read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} must be a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} must hold a JSON object, got {type(content).__name__}")
    if SURROGATE.search(text):
        with named(path, "its text must be such that UTF-8 can write it"):
            json.dumps(content, ensure_ascii=False).encode()
    return content


def check_generation(path: Path) -> None:
    """A `generation_config.json` that transformers can generate with.

    Raises:
        ValueError: a setting of another type or beyond its range; names the file.
    """
    from transformers import GenerationConfig  # late: transformers imports this package

    content = read_json(path)
    for kind, (names, what) in GENERATION_SETTINGS.items():
        for name in names:
            value = content.get(name)
            good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if value is not None and not good:
                raise FileError(f"{path}: {name} must be {what}, got {value!r}")
    for name in ("num_beams", "num_return_sequences", "num_beam_groups"):
        if not 1 <= (content.get(name) or 1) <= MAX_BEAMS:
            raise FileError(
                f"{path}: {name} must be between 1 and {MAX_BEAMS}, got {content[name]}"
            )
    with named(path, "the model cannot generate with it"):
        for name in TOKEN_IDS:
            check_ids(name, content.get(name))
        GenerationConfig.from_dict(content).validate()


def check_ids(name: str, value: Any) -> None:
    """A token's id, a list of ids, or None."""
    for number in value if isinstance(value, list) else [value]:
        good = isinstance(number, int) and not isinstance(number, bool)
        if number is not None and not (good and -1 <= number < 2**31):
            raise ValueError(f"{name} must be a token's id, got {number!r}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or many.

    Raises:
        ValueError: none, one of an index is missing or lies elsewhere, or only pickles, which are
            refused.
    """
    index = folder / "model.safetensors.index.json"
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        files: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) for name in files):
            raise ValueError(f"{index}: weight_map must name a file for each tensor")
        names = sorted(set(files))
        outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
        if outside:
            raise ValueError(
                f"{index}: weight_map must name files in the checkpoint's folder, "
                f"got {', '.join(outside[:3])}"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise ValueError(
                f"{index} names files that are missing: {', '.join(missing) or 'none'}"
            )
        return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(
        path.name for path in folder.glob("*.pt*")
    )
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as a pickle ({', '.join(pickles)}), which can run code "
            "when it is opened and is not loaded. Convert it to safetensors: "
            "from safetensors.torch import save_file; "
            f"save_file(torch.load('{pickles[0]}', weights_only=True), 'model.safetensors')"
        )
    raise ValueError(f"{folder} must hold model.safetensors or its index, found neither")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint, read from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} must be a complete safetensors file: {error}") from error
    return shapes


def check_tensors(
    folder: Path, expected: Mapping[str, tuple[int, ...]], optional: frozenset[str] = frozenset()
) -> None:
    """Every expected tensor is there in its shape, and no other.

    Raises:
        ValueError: names the missing, extra and misshapen tensors.
    """
    stored = {
        name: shape for name, shape in stored_shapes(folder).items() if not COMPUTED.search(name)
    }
    problems = [
        f"missing {name}" for name in expected if name not in stored and name not in optional
    ]
    problems += [f"extra {name}" for name in stored if name not in expected]
    problems += [
        f"misshapen {name}: expected {list(expected[name])}, got {list(shape)}"
        for name, shape in stored.items()
        if name in expected and shape != tuple(expected[name])
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" * (len(problems) > 8))
        raise ValueError(f"{folder} does not fit its config.json: {shown}")


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
    (folder / "config.json").write_text(json.dumps(published, indent=2) + "\n")
    if not known:
        tower = folder / "vision_tower"
        tower.mkdir()
        config.vision_config.to_json_file(tower / "config.json", use_diff=False)
        normalization = {"image_mean": config.image_mean, "image_std": config.image_std}
        (tower / "preprocessor_config.json").write_text(json.dumps(normalization) + "\n")
    state = model.state_dict()
    if config.tie_word_embeddings:
        # The writer keeps one name of a shared tensor, and not always the one that readers need.
        state.pop("lm_head.weight", None)
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size)
