"""The model: transformers' CLIP and Qwen2, with token reduction between them.

Modules carry the names of published checkpoints, so that a released state dict is ours as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
    Qwen2Model,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from geollava.common.readable import named
from geollava.model import checkpoint, generation_settings, published
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.projector import build_projector
from geollava.model.token_reduction import AffinityHead, check_method
from geollava.model.vision import (
    CHUNK_SIZE,
    CPU_CHUNK_SIZE,
    VisualEncoding,
)
from geollava.model.vision_tower import VisionTower
from tokenprune.hosts.compat import CACHE_NAMES, Call

__all__ = [
    "CACHE_NAME",
    "CHUNK_SIZE",
    "CPU_CHUNK_SIZE",
    "GeoLlavaForConditionalGeneration",
    "GeoLlavaModel",
    "GeoLlavaOutput",
]

# Inputs that belong to the prompt: read once, before the first new token.
PROMPT_INPUTS = (
    "pixel_values",
    "num_crops",
    "pixel_values_videos",
    "vision_features",
    "image_features",
    "video_features",
    "num_copies",
)
CACHE_NAME = Call.of(Qwen2Model.forward).cache_name  # as this transformers calls it


@dataclass
class GeoLlavaOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, and what the images became.

    Attributes:
        image_features: [sum of crops * num_keep, text width], what stands for the images.
    """

    image_features: Tensor | None = None


class GeoLlavaModel(Qwen2Model):
    """Qwen2 with the vision tower and the projector beside its layers, as published names say."""

    def __init__(self, config: GeoLlavaConfig) -> None:
        super().__init__(config.text_config)
        self.vision_tower = VisionTower(config.vision_config, config.vision_feature_layer)
        self.mm_projector = build_projector(
            config.vision_config.hidden_size, config.text_config.hidden_size
        )


class GeoLlavaForConditionalGeneration(VisualEncoding, PreTrainedModel, GenerationMixin):
    """GeoLLaVA-8K (arXiv 2505.21375): very large images and text in, text out."""

    config_class = GeoLlavaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("CLIPEncoderLayer", "Qwen2DecoderLayer")
    _skip_keys_device_placement = CACHE_NAMES
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: GeoLlavaConfig) -> None:
        super().__init__(config)
        check_method(config.reduction_method)
        self.model = GeoLlavaModel(config)
        self.reghead = AffinityHead(config.vision_config.hidden_size)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        num_crops: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        vision_features: Tensor | None = None,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Any = None,
        num_copies: int = 1,
        **kwargs: Any,
    ) -> GeoLlavaOutput:
        """One pass: crops -> vision tokens -> kept tokens -> language model.

        Args:
            input_ids: [B, L] with `config.image_token_id` once per kept visual token (`num_crops`
                times `num_keep` for each image) and `config.video_token_id` once per pooled one.
            pixel_values: [sum of crops, 3, h, w] of all images in the order of their marks, uint8
                or normalized floating point, on any device.
            num_crops: [number of images]; checked where given.
            attention_mask: [B, L], 0 at padding.
            cache, past_key_values: what was read before, a transformers `Cache`, by the name that
                transformers has for it from 5.24 on or by its former one.
            inputs_embeds: [B, L, text width] instead of `input_ids`, visual tokens included.
            pixel_values_videos: [sum of frames, 3, h, w], each frame one crop.
            vision_features: [C, K, D], the features that `encode_crops` kept, instead of
                `pixel_values`; the projector still runs, and learns.
            image_features, video_features: what `get_image_features` or `get_video_features` made
                of the pixels, instead of them.
            labels: [B, L], -100 where no loss is wanted.
            logits_to_keep: logits of the last so many positions only; 0 is all.
            num_copies: rows of `input_ids` that follow each other and show the same images: beams.

        Raises:
            ValueError: the placeholders do not fit the crops; shapes; vision tokens that are not
                finite (in strict mode).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")

        image_features, unused = self.read_images(
            pixel_values, num_crops, vision_features, image_features
        )
        if pixel_values_videos is not None:
            video_features = self.get_video_features(pixel_values_videos)
        if input_ids is not None:
            inputs_embeds = self.embed_prompt(input_ids, image_features, video_features, num_copies)
            if unused is not None:  # no effect, but the backward pass gathers weights for it too
                inputs_embeds = inputs_embeds + 0 * unused.sum()
        elif image_features is not None or video_features is not None:
            raise ValueError("pixels are placed by input_ids, got inputs_embeds beside them")

        outputs = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: past_key_values if cache is None else cache},
            **kwargs,
        )
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, last])
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return GeoLlavaOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def embed_prompt(
        self,
        input_ids: Tensor,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
        num_copies: int = 1,
    ) -> Tensor:
        """[B, L] ids -> [B, L, text width], with features at their placeholders, in order.

        Each `num_copies` rows that follow each other have the same features.
        """
        is_image = input_ids == self.config.image_token_id
        is_video = input_ids == self.config.video_token_id
        # Placeholder ids may lie beyond the vocabulary: they are marks, not words.
        words = input_ids.masked_fill(is_image | is_video, 0)
        embeds = self.get_input_embeddings()(words)
        for name, mask, features in (
            ("image", is_image, image_features),
            ("video", is_video, video_features),
        ):
            placeholders = int(mask.sum())
            given = 0 if features is None else num_copies * len(features)
            if placeholders != given:
                raise ValueError(
                    f"input_ids must hold one {name} placeholder (id "
                    f"{getattr(self.config, f'{name}_token_id')}) per visual token: "
                    f"expected {given}, got {placeholders}"
                )
            if features is not None:
                if num_copies > 1:
                    rows = features.split(mask[::num_copies].sum(1).tolist())
                    features = torch.cat([row for row in rows for _ in range(num_copies)])
                embeds = embeds.masked_scatter(mask[..., None], features.to(embeds))
        return embeds

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PROMPT_INPUTS:
                inputs.pop(name, None)
            # Whatever the model says is a word, also where its id marks images in a prompt.
            words = inputs.pop("input_ids", None)
            if words is not None:
                inputs["inputs_embeds"] = self.get_input_embeddings()(words)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams and samples share one encoding: rows are repeated, images are not."""
        images = {name: model_kwargs.pop(name) for name in PROMPT_INPUTS if name in model_kwargs}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, model_kwargs | images | {"num_copies": expand_size}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Loads a published checkpoint as it is, or our own saved form.

        Args:
            pretrained_model_name_or_path: folder or hub name, with safetensors weights.
            config: instead of the checkpoint's own.
            kwargs: as transformers takes them: `dtype`, `device_map`, `attn_implementation`, ...

        Raises:
            ValueError: no checkpoint there; a pickle; missing, extra or misshapen tensors, by name.
        """
        hub_options = {
            name: kwargs.pop(name)
            for name in ("cache_dir", "force_download", "local_files_only", "revision", "token")
            if name in kwargs
        }
        folder = checkpoint.resolve_folder(pretrained_model_name_or_path, **hub_options)
        if config is None:
            config = GeoLlavaConfig.from_pretrained(folder)
        if (adapter := folder / "adapter_config.json").is_file():
            # transformers would load it too, from a pickle if need be.
            raise ValueError(f"{adapter}: a checkpoint must hold whole weights, got an adapter too")
        if (settings := folder / "generation_config.json").is_file():
            generation_settings.check_generation(settings)
        with named(folder / "config.json", "no model can be made of it"):
            expected = expected_tensors(cls, config)
        checkpoint.check_tensors(folder, *expected)
        return super().from_pretrained(folder, *args, config=config, **kwargs)

    def save_published(self, folder: str | Path, *, max_shard_size: str = "5GB") -> None:
        """Writes the published form; `save_pretrained` writes our own. See `checkpoint`."""
        published.save_published(self, folder, max_shard_size=max_shard_size)


def expected_tensors(
    model_class: type[GeoLlavaForConditionalGeneration], config: GeoLlavaConfig
) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Shapes of all tensors of such a model, and the tied names, which may be absent."""
    with torch.device("meta"):
        state = model_class(config).state_dict()
    tied = frozenset(model_class._tied_weights_keys) if config.tie_word_embeddings else frozenset()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, tied


AutoModelForImageTextToText.register(GeoLlavaConfig, GeoLlavaForConditionalGeneration)
