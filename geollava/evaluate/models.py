"""Loaded models that answer prompts about images: ours, or any of transformers."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune
from geollava import overlay
from geollava.answer import SceneTokens, check_pair, encode_scene, load
from geollava.checkpoint import PUBLISHED_MODEL_TYPE, read_json, resolve_folder
from geollava.configuration import GeoLlavaConfig
from geollava.evaluate.answerer import Answerer, Reply, Seen
from geollava.imagery import Scene
from geollava.token_reduction import check_method

# A control that reduces no token: the image is shrunk to as many crops as give the same number.
SMALLER_IMAGE = "smaller_image"
BLOCKS, BLOCK = 64, 2**16  # of a weight file, that tell one training's result from another's


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
        method, config.num_keep = method or self.own[0], num_keep or self.own[1]
        config.check()
        self.method, self.num_keep, self.share = method, config.num_keep, 1.0
        if method == SMALLER_IMAGE:
            if self.processor.image_processor.image_grid_pinpoints is not None:
                raise NotImplementedError(f"{method} needs a model without a list of canvases")
            whole = config.grid_size[0] * config.grid_size[1]
            self.share = config.num_keep / whole
            method, config.num_keep = "uniform", whole
        check_method(method)
        config.reduction_method, self.processor.num_keep = method, config.num_keep

    @torch.inference_mode()
    def see(self, scenes: Sequence[Scene]) -> Seen:
        tokens = [self.encode(scene) for scene in scenes]
        features = [self.model.project(part.kept) for part in tokens]
        return Seen(
            content=SeenByGeoLlava(features, [part.crops for part in tokens]),
            crops=sum(part.crops for part in tokens),
            tokens_before=sum(part.kept.assignment.numel() for part in tokens),
            tokens_after=sum(int(part.kept.valid.sum()) for part in tokens),
        )

    def encode(self, scene: Scene) -> SceneTokens:
        images = self.processor.image_processor
        images.max_crops = self.own_max_crops
        if self.method == SMALLER_IMAGE:
            width, height = images.select_canvas(*scene.size)
            crops = width * height // images.crop_size**2
            images.max_crops = max(2, int(crops * self.share))  # one alone is no canvas
        return encode_scene(self.model, self.processor, scene)

    def overlay(self, scene: Scene) -> Image.Image:
        tokens = self.encode(scene)
        return overlay.draw(scene, tokens.kept, tokens.canvas_size)

    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Tensor:
        """[L] token ids."""
        crops = seen.content.crops
        text = self.processor.build_prompt(prompt, num_images=len(crops))
        ids = self.processor.tokenize([text], crops)["input_ids"][0]
        limit = self.model.config.text_config.max_position_embeddings
        if len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"{sum(crops)} crops make a prompt of {len(ids)} tokens; it and {max_new_tokens} "
                f"new ones must fit the model's {limit} positions: keep fewer tokens"
            )
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
                content.cache = self.model(
                    inputs_embeds=embeds, use_cache=True, logits_to_keep=1
                ).past_key_values
            inputs["past_key_values"] = copy.deepcopy(content.cache)
            if len(ends) > 1:
                inputs["past_key_values"].batch_repeat_interleave(len(ends))
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
    """Projected tokens [crops * num_keep, text width] of each image; the language model's cache
    of everything up to the last of them, once there is one."""

    features: list[Tensor]
    crops: list[int]
    cache: Any = None

    def start(self, ids: Tensor, image_token_id: int) -> int:
        """How many tokens all prompts about these images share: up to the last visual one."""
        if not self.crops:
            return 0
        return int((ids == image_token_id).nonzero()[-1]) + 1


class TransformersAnswerer(Answerer):
    """A vision-language model of transformers, by its own processor and chat template."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not getattr(processor, "chat_template", None):
            raise ValueError(f"{name}: the processor must have a tokenizer and a chat template")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.name, self.model, self.processor = name, model, processor
        self.tokenizer = tokenizer
        self.method: str | None = None
        self.num_keep: int | None = None
        self.handle: Any = None

    def reduce(self, method: str | None, num_keep: int | None) -> None:
        if (method is None) != (num_keep is None):
            raise ValueError(
                f"a model of transformers needs a method and a number of tokens to keep, or "
                f"neither; got {method} and {num_keep}"
            )
        if self.handle is not None:
            self.handle.remove()
        self.handle = None
        if method is not None:
            self.handle = tokenprune.apply(self.model, method, num_keep=num_keep)
        self.method, self.num_keep = method, num_keep

    def see(self, scenes: Sequence[Scene]) -> Seen:
        return Seen([scene.read_image(0, scene.size[1], 1) for scene in scenes])

    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> list[dict[str, Any]]:
        """A conversation."""
        images = [{"type": "image", "image": image} for image in seen.content]
        return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]

    @torch.inference_mode()
    def ask(self, seen: Seen, prepared: list[Any], max_new_tokens: int) -> list[Reply]:
        inputs = self.processor.apply_chat_template(
            prepared,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(prepared) > 1},
        ).to(self.model.device, self.model.dtype)
        return self.generate(dict(inputs), inputs["input_ids"].shape[1], max_new_tokens)

    def protocol(self, *, blind: bool) -> dict[str, Any]:
        marks = [] if blind else [{"type": "image"}]
        message = [{"role": "user", "content": [*marks, {"type": "text", "text": "{question}"}]}]
        return {
            "model": self.name,
            "weights": self.weights,
            "architecture": self.model.config.model_type,
            "prompt": self.processor.apply_chat_template(
                message, add_generation_prompt=True, tokenize=False
            ),
            "method": self.method,
            "num_keep": self.num_keep,
            "attention": self.model.config._attn_implementation,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }


def open_model(
    name: str,
    method: str | None,
    num_keep: int | None,
    device: str,
    dtype: str,
    attention: str | None = None,
) -> Answerer:
    """The model of a folder or hub name, reduced as asked.

    Args:
        attention: the implementation, as transformers names it; None is its choice.

    Raises:
        ValueError: no such model, method, attention, or a device that is not there.
    """
    folder = resolve_folder(name)
    config = read_json(folder / "config.json")
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    answerer: Answerer
    if config.get("model_type") in (GeoLlavaConfig.model_type, PUBLISHED_MODEL_TYPE):
        answerer = GeoLlavaAnswerer(name, *load(str(folder), None, device, dtype))
    else:
        device = "cpu" if device == "auto" else device
        dtype = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
            )
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{name} cannot be loaded: {reason}") from error
        answerer = TransformersAnswerer(name, model.to(device).eval(), processor)
    if attention is not None:
        try:
            answerer.model.set_attn_implementation(attention)
        except (ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"no attention {attention!r} here: {reason}") from error
    answerer.weights = digest_of(folder)
    answerer.reduce(method, num_keep)
    return answerer


def digest_of(folder: Path) -> str:
    """Tells checkpoints apart without reading them whole: a sample of every weight file."""
    known = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        known.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(BLOCK, size // BLOCKS)):
                file.seek(start)
                known.update(file.read(BLOCK))
    return known.hexdigest()[:16]
