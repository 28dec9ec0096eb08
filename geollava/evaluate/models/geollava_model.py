"""Our model as an evaluation asks it: an image is encoded once, its prefix read once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from geollava.answering import overlay
from geollava.answering.answer import SceneTokens, check_pair, check_words, encode_scene
from geollava.evaluate.models import controls
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.imagery import Scene
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import CACHE_NAME
from geollava.model.processing import IMAGE_TOKEN, expand_marks
from geollava.model.token_reduction import check_method


class GeoLlavaAnswerer(Answerer):
    """Our model. Crops are encoded once per image, and the words before the questions read once."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        check_pair(model, processor)
        self.name, self.model, self.processor = name, model, processor
        self.tokenizer = processor.tokenizer
        self.own = model.config.reduction_method, model.config.num_keep
        self.own_max_crops = processor.image_processor.max_crops
        self.reduce(None, None)

    def reduce(self, method: str | None, num_keep: int | None) -> None:
        config: GeoLlavaConfig = self.model.config
        method, num_keep = method or self.own[0], num_keep or self.own[1]
        if method == controls.SMALLER_IMAGE and config.image_grid_pinpoints is not None:
            raise NotImplementedError(f"{method} needs a model without a list of canvases")
        config.num_keep = num_keep
        config.check()
        whole = config.grid_size[0] * config.grid_size[1]
        used, config.num_keep = controls.method_of(method, num_keep, whole)
        check_method(used, also=controls.NAMES)
        self.method, self.num_keep = method, num_keep
        self.share = num_keep / whole
        config.reduction_method, self.processor.num_keep = used, config.num_keep

    @torch.inference_mode()
    def see(self, scenes: Sequence[Scene]) -> Seen:
        tokens = [self.encode(scene) for scene in scenes]
        masks = [controls.remaining(self.method, part.kept, self.num_keep) for part in tokens]
        features = [
            self.model.project(part.kept.features)[mask.flatten()]
            for part, mask in zip(tokens, masks, strict=True)
        ]
        return Seen(
            content=SeenByGeoLlava(features),
            crops=sum(part.crops for part in tokens),
            tokens_before=sum(part.kept.assignment.numel() for part in tokens),
            tokens_after=sum(map(len, features)),  # empty slots too: the language model reads them
        )

    def encode(self, scene: Scene) -> SceneTokens:
        images = self.processor.image_processor
        images.max_crops = self.own_max_crops
        if self.method == controls.SMALLER_IMAGE:
            width, height = images.select_canvas(*scene.size)
            crops = width * height // images.crop_size**2
            images.max_crops = max(2, int(crops * self.share))  # one alone is no canvas
        return encode_scene(self.model, self.processor, scene)

    def overlay(self, scene: Scene) -> Image.Image:
        tokens = self.encode(scene)
        mask = controls.remaining(self.method, tokens.kept, self.num_keep)
        kept = replace(tokens.kept, valid=tokens.kept.valid & mask)
        return overlay.draw(scene, kept, tokens.canvas_size)

    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Tensor:
        """[L] token ids."""
        return self.tokenize(prompt, list(map(len, seen.content.features)), max_new_tokens)

    def tokenize(self, prompt: str, lengths: list[int], max_new_tokens: int) -> Tensor:
        """[L] token ids of a prompt about images of so many visual tokens each."""
        text = self.processor.build_prompt(prompt, num_images=len(lengths))
        (text,) = expand_marks([text], IMAGE_TOKEN, lengths)
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"][0]
        limit = self.model.config.text_config.max_position_embeddings
        if len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"{sum(lengths)} visual tokens make a prompt of {len(ids)}; it and "
                f"{max_new_tokens} new ones must fit the model's {limit} positions: keep fewer"
            )
        check_words(self.model, self.processor, ids)
        return ids

    @torch.inference_mode()
    def ask(self, seen: Seen, prepared: list[Tensor], max_new_tokens: int) -> list[Reply]:
        content, device = seen.content, self.model.device
        start = content.start(prepared[0], self.model.config.image_token_id)
        ends = [ids[start:] for ids in prepared]
        length = max(map(len, ends))
        # Padding stands between what all prompts share and what they do not.
        ids = prepared[0].new_full((len(ends), start + length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        ids[:, :start], mask[:, :start] = prepared[0][:start], 1
        for row, end in enumerate(ends):
            ids[row, start + length - len(end) :] = end
            mask[row, start + length - len(end) :] = 1
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "eos_token_id": self.tokenizer.eos_token_id,
        }
        if start:
            if content.cache is None:
                embeds = self.model.embed_prompt(
                    inputs["input_ids"][:1, :start], torch.cat(content.features)
                )
                prefix = self.model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
                content.cache = getattr(prefix, CACHE_NAME)
            cache = copy.deepcopy(content.cache)
            if len(ends) > 1:
                cache.batch_repeat_interleave(len(ends))
            inputs[CACHE_NAME] = cache
        return self.generate(inputs, start + length, max_new_tokens)

    def protocol(self, *, blind: bool) -> dict[str, Any]:
        config = self.model.config
        return {
            "model": self.name,
            "weights": self.weights,
            "architecture": config.model_type,
            "untrained": config.untrained,
            "prompt": self.processor.build_prompt("{question}", num_images=not blind),
            "method": self.method,
            "num_keep": self.num_keep,
            "tokens_per_crop": config.num_keep,
            "crop_size": config.vision_config.image_size,
            "max_crops": self.own_max_crops,
            "resize": self.processor.image_processor.resize,
            "attention": self.model.config._attn_implementation,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }


@dataclass
class SeenByGeoLlava:
    """Projected tokens [T, text width] of each image; the language model's cache of everything up
    to the last of them, once there is one."""

    features: list[Tensor]
    cache: Any = None

    def start(self, ids: Tensor, image_token_id: int) -> int:
        """How many tokens all prompts about these images share: up to the last visual one."""
        if not self.features:
            return 0
        return int((ids == image_token_id).nonzero()[-1]) + 1
