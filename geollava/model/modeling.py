"""The model: transformers' CLIP and Qwen2, with token reduction between them.

Modules carry the names of published checkpoints, so that a released state dict is ours as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_activations
from transformers import (
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
    Qwen2Model,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from geollava.common.readable import named
from geollava.imagery import normalize_crops
from geollava.model import checkpoint, generation_settings, published, sharding
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.projector import build_projector, pool_frames
from geollava.model.token_reduction import (
    AffinityHead,
    ReducedTokens,
    check_method,
    reading_attention,
    reduce_tokens,
)
from geollava.model.vision_tower import VisionTower
from tokenprune.hosts.compat import CACHE_NAMES, Call

# Inputs that belong to the prompt: read once, before the first new token.
PROMPT_INPUTS = (
    "pixel_values",
    "num_crops",
    "pixel_values_videos",
    "image_features",
    "video_features",
)
CACHE_NAME = Call.of(Qwen2Model.forward).cache_name  # as this transformers calls it
# Crops that pass the tower at a time, as published; more than 16 take longer on a CPU.
CHUNK_SIZE, CPU_CHUNK_SIZE = 144, 16


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


class GeoLlavaForConditionalGeneration(PreTrainedModel, GenerationMixin):
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
        **kwargs: Any,
    ) -> GeoLlavaOutput:
        """One pass: crops -> vision tokens -> kept tokens -> language model.

        Args:
            input_ids: [B, L] with `config.image_token_id` once per kept visual token (`num_crops`
                times `num_keep` for each image) and `config.video_token_id` once per pooled one.
            pixel_values: [sum of crops, 3, h, w] of all images in the order of their marks, uint8
                or normalized floating point, on any device.
            num_crops: [number of images]; checked against `pixel_values` where given.
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

        Raises:
            ValueError: the placeholders do not fit the crops; shapes; vision tokens that are not
                finite (in strict mode).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")

        unused = None
        if pixel_values is not None:
            check_num_crops(num_crops, pixel_values)
        if self.training and sharding.is_sharded(self):
            image_features, unused = self.encode_in_step(pixel_values)
        elif pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        elif vision_features is not None:
            image_features = self.project(vision_features)
        if pixel_values_videos is not None:
            video_features = self.get_video_features(pixel_values_videos)
        if input_ids is not None:
            inputs_embeds = self.embed_prompt(input_ids, image_features, video_features)
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

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[C, 3, h, w] crops -> [C * num_keep, text width], ready for the language model."""
        return self.project(self.encode_crops(pixel_values).features)

    def encode_in_step(self, pixel_values: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(features, those of blank crops): as many crops as the process that has most of them."""
        crops = 0 if pixel_values is None else len(pixel_values)
        blank = sharding.blank_crops(crops, self.device)
        if crops + blank == 0:
            return None, None
        side = self.config.vision_config.image_size
        if pixel_values is None:
            pixel_values = torch.empty(0, 3, side, side, dtype=torch.uint8)
        padded = torch.cat([pixel_values, pixel_values.new_zeros(blank, 3, side, side)])
        features = self.get_image_features(padded)
        own = crops * self.config.num_keep
        return features[:own] if crops else None, features[own:]

    def project(self, vision_features: Tensor) -> Tensor:
        """Kept tokens of C crops, [C, K, D] -> [C * K, text width]."""
        weight: Tensor = self.model.mm_projector[0].weight  # type: ignore[assignment]
        return self.model.mm_projector(vision_features.to(weight)).flatten(0, 1)

    @property
    def chunk_size(self) -> int:
        """Crops that pass the tower at a time."""
        if self.config.encoder_chunk_size is not None:
            return self.config.encoder_chunk_size
        return CPU_CHUNK_SIZE if self.device.type == "cpu" else CHUNK_SIZE

    def encode_crops(
        self,
        pixel_values: Tensor | Iterable[Tensor],
        progress: Callable[[int], None] | None = None,
    ) -> ReducedTokens:
        """Crops -> the kept vision tokens of each; of every other token nothing stays.

        Args:
            pixel_values: [C, 3, h, w], which passes `chunk_size` crops at a time, or chunks of
                such; uint8 or normalized floating point, on any device. Each chunk is moved to
                the model's device and normalized there.
            progress: called with the number of crops done so far.
        """
        if isinstance(pixel_values, Tensor):
            self.check_pixels(pixel_values)
            pixel_values = pixel_values.split(self.chunk_size)
        parts, done = [], 0
        for chunk in pixel_values:
            self.check_pixels(chunk)
            if self.model.gradient_checkpointing and self.training:
                # Of a chunk only pixels and kept tokens stay; even one input per layer would be
                # 15 GB for an 8K image in bfloat16.
                kept = checkpoint_activations(self.encode_chunk, chunk, use_reentrant=False)
            else:
                kept = self.encode_chunk(chunk)
            parts.append(kept)
            done += len(chunk)
            if progress is not None:
                progress(done)
        return ReducedTokens.cat(parts)

    def encode_chunk(self, pixel_values: Tensor) -> ReducedTokens:
        """Crops that fit the memory at once -> their kept vision tokens."""
        tower = self.model.vision_tower
        with reading_attention(tower.anchor, self.config) as attention:
            vision_tokens = tower(self.prepare_pixels(pixel_values))
        return reduce_tokens(vision_tokens, self.reghead, tower.anchor, self.config, attention())

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """[F, 3, h, w] frames -> [F * tokens per frame, text width]: projected, then pooled."""
        self.check_pixels(pixel_values_videos)
        parts = []
        for chunk in pixel_values_videos.split(self.chunk_size):
            vision_tokens = self.model.vision_tower(self.prepare_pixels(chunk))
            projected = self.model.mm_projector(vision_tokens[:, 1:])
            parts.append(
                pool_frames(projected, self.config.grid_size, self.config.video_pool_stride)
            )
        return torch.cat(parts).flatten(0, 1)

    def prepare_pixels(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            return normalize_crops(pixels, self.config.image_mean, self.config.image_std)
        return pixels

    def check_pixels(self, pixels: Tensor) -> None:
        side = self.config.vision_config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side) or len(pixels) == 0:
            raise ValueError(
                f"pixel_values must be [crops, 3, {side}, {side}] with at least one crop, "
                f"got {list(pixels.shape)}"
            )
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise TypeError(
                f"pixel_values must be uint8 or normalized floating point, got {pixels.dtype}"
            )

    def embed_prompt(
        self,
        input_ids: Tensor,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> Tensor:
        """[B, L] ids -> [B, L, text width], with features at their placeholders, in order."""
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
            given = 0 if features is None else len(features)
            if placeholders != given:
                raise ValueError(
                    f"input_ids must hold one {name} placeholder (id "
                    f"{getattr(self.config, f'{name}_token_id')}) per visual token: "
                    f"expected {given}, got {placeholders}"
                )
            if features is not None:
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
        """Beams and samples share one encoding: pixels are encoded here, features are repeated."""
        expanded = {}
        if expand_size > 1 and input_ids is not None:
            prompt = {name: model_kwargs.pop(name, None) for name in PROMPT_INPUTS}
            if prompt["pixel_values"] is not None:
                check_num_crops(prompt["num_crops"], prompt["pixel_values"])
                prompt["image_features"] = self.get_image_features(prompt["pixel_values"])
            if prompt["pixel_values_videos"] is not None:
                prompt["video_features"] = self.get_video_features(prompt["pixel_values_videos"])
            for name in ("image", "video"):
                features = prompt[f"{name}_features"]
                if features is not None:
                    mask = input_ids == getattr(self.config, f"{name}_token_id")
                    rows = features.split(mask.sum(1).tolist())
                    expanded[f"{name}_features"] = torch.cat(
                        [row for row in rows for _ in range(expand_size)]
                    )
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, model_kwargs | expanded

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


def check_num_crops(num_crops: Tensor | None, pixel_values: Tensor) -> None:
    if num_crops is not None and int(torch.as_tensor(num_crops).sum()) != len(pixel_values):
        raise ValueError(
            f"num_crops must add up to the {len(pixel_values)} crops of pixel_values, "
            f"got {torch.as_tensor(num_crops).tolist()}"
        )


AutoModelForImageTextToText.register(GeoLlavaConfig, GeoLlavaForConditionalGeneration)
