"""GeoLlavaConfig: every size and choice of the model, full size by default."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig, Qwen2Config

from geollava import checkpoint
from geollava.imagery import allowed_canvases, parse_canvases

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
ASSIGNMENTS = ("hard", "straight_through", "soft")
DEFAULT_TOWER = "openai/clip-vit-large-patch14-336"


class GeoLlavaConfig(PreTrainedConfig):
    """Configuration of GeoLLaVA-8K (arXiv 2505.21375).

    `from_pretrained` reads our own saved form and the published one (model_type `llava_qwen`).

    Attributes:
        vision_config: the CLIP tower, ViT-L/14-336 by default.
        text_config: the Qwen2 language model, 7B by default.
        num_keep: visual tokens that remain of each crop.
        reduction_method: how they are chosen, a name of `tokenprune.list_methods()`; another than
            the model's own is a control.
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
    reduction_method: str = "background_anchored"
    image_token_id: int = checkpoint.QWEN2_FREE_TOKEN_ID
    video_token_id: int = checkpoint.QWEN2_FREE_TOKEN_ID + 1
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
    image_mean: Any = checkpoint.CLIP_MEAN
    image_std: Any = checkpoint.CLIP_STD
    model_max_length: int = 32_768
    tie_word_embeddings: bool = False
    untrained: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = checkpoint.KNOWN_TOWERS[DEFAULT_TOWER]
        if isinstance(self.vision_config, dict):
            self.vision_config = CLIPVisionConfig(**self.vision_config)
        if self.text_config is None:
            self.text_config = QWEN2_7B
        if isinstance(self.text_config, dict):
            self.text_config = Qwen2Config(**self.text_config)
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises ValueError for a setting that no model can have."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        if isinstance(self.num_keep, bool) or not isinstance(self.num_keep, int):
            raise TypeError(f"num_keep must be an int, got {type(self.num_keep).__name__}")
        if not 1 <= self.num_keep <= side * side:
            raise ValueError(
                f"num_keep must be between 1 and the {side * side} tokens of a crop, "
                f"got {self.num_keep}"
            )
        depth = self.vision_config.num_hidden_layers
        if not -depth <= self.vision_feature_layer <= -1:
            raise ValueError(
                f"vision_feature_layer must be between {-depth} and -1, "
                f"got {self.vision_feature_layer}"
            )
        if self.merge_assignment not in ASSIGNMENTS:
            raise ValueError(
                f"merge_assignment must be one of {', '.join(ASSIGNMENTS)}, "
                f"got {self.merge_assignment!r}"
            )
        if not 0 < self.merge_temperature < math.inf:
            raise ValueError(
                f"merge_temperature must be above 0 and finite, got {self.merge_temperature}"
            )
        if self.encoder_chunk_size is not None and self.encoder_chunk_size < 1:
            raise ValueError(
                f"encoder_chunk_size must be at least 1, got {self.encoder_chunk_size}"
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, cols) of a crop's patch tokens."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

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
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == checkpoint.PUBLISHED_MODEL_TYPE:
            config = checkpoint.from_published_config(config, pretrained_model_name_or_path)
        return config, kwargs


class PublishedConfig(GeoLlavaConfig):
    """What `AutoConfig` finds under the published model type; it becomes a `GeoLlavaConfig`."""

    model_type = checkpoint.PUBLISHED_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if config_dict.get("model_type") == cls.model_type:
            source = kwargs.get("name_or_path", "")
            config_dict = checkpoint.from_published_config(config_dict, source)
        return GeoLlavaConfig.from_dict(config_dict, **kwargs)


AutoConfig.register(GeoLlavaConfig.model_type, GeoLlavaConfig)
AutoConfig.register(PublishedConfig.model_type, PublishedConfig)
