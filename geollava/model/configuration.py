"""GeoLlavaConfig: every size and choice of the model, full size by default."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig, Qwen2Config
from transformers.activations import ACT2FN

from geollava.common.readable import named
from geollava.imagery import MAX_CROPS, allowed_canvases, parse_canvases
from geollava.model import published
from geollava.model.checkpoint import read_json
from geollava.model.generation_settings import TOKEN_IDS, check_ids

QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}
OWN_METHOD = "background_anchored"
NO_REDUCTION = "none"  # all tokens of a crop stay
CYCLES = ("official", "merge")
ASSIGNMENTS = ("hard", "straight_through", "soft")
DEFAULT_TOWER = "openai/clip-vit-large-patch14-336"
# Settings and parts that must be whole numbers, from the least that they may be.
COUNTS = {
    "merge_max_iters": 0,
    "video_pool_stride": 1,
    "max_crops": 1,
    "max_aspect_ratio": 1,
    "model_max_length": 1,
    "image_token_id": 0,
    "video_token_id": 0,
}
PART_COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The most that those may be which take time or memory before weights are compared with them.
MOST = {
    "num_hidden_layers": 512,
    "merge_max_iters": 1000,
    "max_crops": MAX_CROPS,
    "crop_size": 4096,
}


class GeoLlavaConfig(PreTrainedConfig):
    """Configuration of GeoLLaVA-8K (arXiv 2505.21375).

    `from_pretrained` reads our own saved form and the published one (model_type `llava_qwen`).

    Attributes:
        vision_config: the CLIP tower, ViT-L/14-336 by default.
        text_config: the Qwen2 language model, 7B by default.
        num_keep: visual tokens that remain of each crop.
        reduction_method: how they are chosen, a name of `tokenprune.list_methods()`; another than
            the model's own is a control. "none" keeps all of them, `num_keep` must say so.
        image_token_id, video_token_id: stand in `input_ids` once per visual token.
        vision_feature_layer: index into the tower's hidden states; -2 is the last layer but one.
            The anchor takes its projections from the encoder layer of the same index.
        merge_max_iters, merge_cycles: as in `tokenprune.ops.background_merge`.
        merge_assignment, merge_temperature: `assignment` and `temperature` of
            `tokenprune.ops.background_anchored`: whether the affinity head gets a gradient.
        video_pool_stride: side of the windows that video frames are average pooled by.
        encoder_chunk_size: crops that pass the tower at a time; None is the published 144, and
            16 on a CPU.
        strict: raise when vision tokens are not finite.
        vision_tower_name: the tower as published checkpoints name it.
        image_grid_pinpoints: [[width, height], ...] of the allowed canvases in pixels; None is the
            published 8K rule: at most `max_crops` crops, sides at most `max_aspect_ratio` to one.
        image_mean, image_std: per-channel normalization of crops scaled to [0, 1].
        model_max_length: tokens that the language model was trained for.
        untrained: the weights are random, and what the model says means nothing.
    """

    model_type = "geollava"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": CLIPVisionConfig,
        "text_config": Qwen2Config,
    }

    vision_config: Any = None
    text_config: Any = None
    num_keep: int = 24
    reduction_method: str = OWN_METHOD
    image_token_id: int = published.QWEN2_FREE_TOKEN_ID
    video_token_id: int = published.QWEN2_FREE_TOKEN_ID + 1
    vision_feature_layer: int = -2
    merge_max_iters: int = 12
    merge_cycles: str = "official"
    merge_assignment: str = "hard"
    merge_temperature: float = 1.0
    video_pool_stride: int = 2
    encoder_chunk_size: int | None = None
    strict: bool = True
    vision_tower_name: str = DEFAULT_TOWER
    image_grid_pinpoints: Any = None
    max_crops: int = 576
    max_aspect_ratio: int = 49
    image_mean: Any = published.CLIP_MEAN
    image_std: Any = published.CLIP_STD
    model_max_length: int = 32_768
    tie_word_embeddings: bool = False
    untrained: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = published.KNOWN_TOWERS[DEFAULT_TOWER]
        for part in ("vision_config", "text_config"):
            if not isinstance(getattr(self, part), (dict, PreTrainedConfig, type(None))):
                got = type(getattr(self, part)).__name__
                raise TypeError(f"{part} must be a dict or a configuration, got {got}")
            check_part(part, getattr(self, part))
        if isinstance(self.vision_config, dict):
            self.vision_config = CLIPVisionConfig(**self.vision_config)
        if self.text_config is None:
            self.text_config = QWEN2_7B
        if isinstance(self.text_config, dict):
            self.text_config = Qwen2Config(**self.text_config)
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises ValueError or TypeError for a setting that no model can have."""
        self.check_parts()
        for name, least in COUNTS.items():
            check_count(name, getattr(self, name), least, MOST.get(name))
        if self.encoder_chunk_size is not None:
            check_count("encoder_chunk_size", self.encoder_chunk_size, 1)
        check_channels("image_mean", self.image_mean)
        check_channels("image_std", self.image_std)
        for name in TOKEN_IDS:
            check_ids(name, getattr(self, name, None))
            check_ids(f"text_config.{name}", getattr(self.text_config, name, None))
        if self.image_grid_pinpoints is not None:
            self.canvases()
        self.check_num_keep()
        depth = self.vision_config.num_hidden_layers
        if not isinstance(self.vision_feature_layer, int):
            raise TypeError(
                "vision_feature_layer must be an int, "
                f"got {type(self.vision_feature_layer).__name__}"
            )
        if not -depth <= self.vision_feature_layer <= -1:
            raise ValueError(
                f"vision_feature_layer must be between {-depth} and -1, "
                f"got {self.vision_feature_layer}"
            )
        if not isinstance(self.vision_tower_name, str):
            raise TypeError(
                f"vision_tower_name must be a string, got {type(self.vision_tower_name).__name__}"
            )
        if self.merge_cycles not in CYCLES:
            raise ValueError(
                f"merge_cycles must be one of {', '.join(CYCLES)}, got {self.merge_cycles!r}"
            )
        if self.merge_assignment not in ASSIGNMENTS:
            raise ValueError(
                f"merge_assignment must be one of {', '.join(ASSIGNMENTS)}, "
                f"got {self.merge_assignment!r}"
            )
        if not isinstance(self.merge_temperature, (int, float)):
            raise TypeError(
                f"merge_temperature must be a number, got {type(self.merge_temperature).__name__}"
            )
        if not 0 < self.merge_temperature < math.inf:
            raise ValueError(
                f"merge_temperature must be above 0 and finite, got {self.merge_temperature}"
            )

    def check_num_keep(self) -> None:
        if isinstance(self.num_keep, bool) or not isinstance(self.num_keep, int):
            raise TypeError(f"num_keep must be an int, got {type(self.num_keep).__name__}")
        whole = self.tokens_per_crop
        if not 1 <= self.num_keep <= whole:
            raise ValueError(
                f"num_keep must be between 1 and the {whole} tokens of a crop, got {self.num_keep}"
            )
        if self.reduction_method == NO_REDUCTION and self.num_keep != whole:
            raise ValueError(
                f"num_keep must be the {whole} tokens of a crop where reduction_method is "
                f"{NO_REDUCTION}, got {self.num_keep}"
            )

    def check_parts(self) -> None:
        """The sizes of the tower and of the language model."""
        for part in ("vision_config", "text_config"):
            config = getattr(self, part)
            for name in PART_COUNTS:
                check_count(f"{part}.{name}", getattr(config, name), 1, MOST.get(name))
            if config.hidden_act not in ACT2FN:
                raise ValueError(
                    f"{part}.hidden_act must be an activation of transformers, "
                    f"got {config.hidden_act!r}"
                )
        for name in ("image_size", "patch_size"):
            check_count(f"vision_config.{name}", getattr(self.vision_config, name), 1)
        if self.vision_config.num_channels != 3:
            raise ValueError(
                f"vision_config.num_channels must be 3, got {self.vision_config.num_channels!r}"
            )
        for name in ("vocab_size", "num_key_value_heads", "max_position_embeddings"):
            check_count(f"text_config.{name}", getattr(self.text_config, name), 1)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, cols) of a crop's patch tokens."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def tokens_per_crop(self) -> int:
        """Patch tokens of a crop, before any of them leaves."""
        rows, cols = self.grid_size
        return rows * cols

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one video frame."""
        rows, cols = (side // self.video_pool_stride for side in self.grid_size)
        return rows * cols

    def canvases(self) -> list[list[int]]:
        """Allowed canvases as [width, height] in pixels, in the published order."""
        if self.image_grid_pinpoints is not None:
            return parse_canvases(self.image_grid_pinpoints, self.vision_config.image_size)
        return allowed_canvases(
            self.vision_config.image_size, self.max_crops, self.max_aspect_ratio
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """From our own saved form or the published one.

        Raises:
            ValueError: no such file, or one with a setting that no model can have; names it.
        """
        path = Path(pretrained_model_name_or_path) / "config.json"
        if path.is_file():
            kind = read_json(path).get("model_type")
            if kind not in (None, "geollava", published.PUBLISHED_MODEL_TYPE):
                raise ValueError(
                    f"{path}: model_type must be geollava or {published.PUBLISHED_MODEL_TYPE}, "
                    f"got {kind!r}"
                )
        with named(path, "the configuration cannot be used"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == published.PUBLISHED_MODEL_TYPE:
            config = published.from_published_config(config, pretrained_model_name_or_path)
        return config, kwargs


def check_part(part: str, config: Any) -> None:
    """What transformers takes as it is from a part that is still a dict: it lists the layers."""
    if isinstance(config, dict):
        depth, kind = config.get("num_hidden_layers", 1), config.get("model_type", "")
        check_count(f"{part}.num_hidden_layers", depth, 1, MOST["num_hidden_layers"])
        if not isinstance(kind, str):
            raise TypeError(f"{part}.model_type must be a string, got {type(kind).__name__}")


def check_count(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def check_channels(name: str, value: Any) -> None:
    """Three finite numbers; what is divided by is above 0."""
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in value
    )
    if not numbers or len(value) != 3:
        raise ValueError(f"{name} must be three finite numbers, got {value!r}")
    if name == "image_std" and min(value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


class PublishedConfig(GeoLlavaConfig):
    """What `AutoConfig` finds under the published model type; it becomes a `GeoLlavaConfig`."""

    model_type = published.PUBLISHED_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if config_dict.get("model_type") == cls.model_type:
            source = kwargs.get("name_or_path", "")
            config_dict = published.from_published_config(config_dict, source)
        return GeoLlavaConfig.from_dict(config_dict, **kwargs)


AutoConfig.register(GeoLlavaConfig.model_type, GeoLlavaConfig)
AutoConfig.register(PublishedConfig.model_type, PublishedConfig)
