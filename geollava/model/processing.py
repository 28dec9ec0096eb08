"""Images, video frames and text -> the model's inputs, every placeholder in its exact count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    ProcessorMixin,
)

from geollava import imagery
from geollava.common.readable import named, quiet_panics, reason_of
from geollava.model import checkpoint
from geollava.model.configuration import MOST, GeoLlavaConfig, check_channels, check_count
from geollava.model.templates import bounded_templates

# What a `GeoLlavaImageProcessor` is made of, and saved as.
OPTIONS = (
    "crop_size",
    "image_grid_pinpoints",
    "max_crops",
    "max_aspect_ratio",
    "do_normalize",
    "include_thumbnail",
    "resize",
    "image_mean",
    "image_std",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<video>"

# The format the published model was trained with (qwen_1_5), marks of images before the text.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def flatten(images: Any) -> list[Any]:
    """One image, a list, or a list per prompt -> a flat list."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in flatten(entry)]
    return [images]


class GeoLlavaImageProcessor(BaseImageProcessor):
    """Images -> crops, with the published model's grid choice and pixels.

    Args:
        crop_size: side of a crop in pixels.
        image_grid_pinpoints: [[width, height], ...] of the allowed canvases; None is the 8K rule.
        max_crops, max_aspect_ratio: the rule's limits.
        do_normalize: return normalized float32 instead of uint8, which the model normalizes itself.
        include_thumbnail: put the whole image, squashed into one crop, before the crops.
        resize: "pillow", to the bit as published, or "fast"; see `imagery.crop_rows`.
        image_mean, image_std: per channel, for values scaled to [0, 1].
    """

    model_input_names = ["pixel_values", "num_crops"]  # noqa: RUF012

    def __init__(
        self,
        crop_size: int = 336,
        image_grid_pinpoints: Any = None,
        max_crops: int = 576,
        max_aspect_ratio: int = 49,
        do_normalize: bool = False,
        include_thumbnail: bool = False,
        resize: str = "pillow",
        image_mean: Sequence[float] = checkpoint.CLIP_MEAN,
        image_std: Sequence[float] = checkpoint.CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.crop_size = crop_size
        self.image_grid_pinpoints = image_grid_pinpoints
        self.max_crops = max_crops
        self.max_aspect_ratio = max_aspect_ratio
        self.do_normalize = do_normalize
        self.include_thumbnail = include_thumbnail
        self.resize = resize
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @classmethod
    def from_config(cls, config: GeoLlavaConfig, **kwargs: Any) -> GeoLlavaImageProcessor:
        """The processor that a model's configuration asks for."""
        options = {
            "crop_size": config.vision_config.image_size,
            "image_grid_pinpoints": config.image_grid_pinpoints,
            "max_crops": config.max_crops,
            "max_aspect_ratio": config.max_aspect_ratio,
            "image_mean": config.image_mean,
            "image_std": config.image_std,
        }
        return cls(**(options | kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """From our own saved form, or from a published checkpoint's `config.json`."""
        folder = checkpoint.resolve_folder(pretrained_model_name_or_path, weights=False)
        path = folder / "preprocessor_config.json"
        saved = saved_options(folder, path.name)
        if not saved:
            path = folder / "processor_config.json"
            saved = saved_options(folder, path.name).get("image_processor", {})
        if not saved:
            config = GeoLlavaConfig.from_pretrained(folder)
            with named(folder / "config.json", "no image processor can be made of it"):
                processor = cls.from_config(config, **kwargs)
                processor.check()
            return processor
        if not isinstance(saved, dict):
            raise ValueError(f"{path}: image_processor must be an object, got {saved!r}")
        saved = {name: value for name, value in saved.items() if name in OPTIONS}
        with named(path, "the image processor cannot be made of it"):
            processor = cls(**(saved | kwargs))
            processor.check()
        return processor

    def check(self) -> None:
        """Raises ValueError or TypeError for an option that no image can be cut by."""
        for name in ("crop_size", "max_crops", "max_aspect_ratio"):
            check_count(name, getattr(self, name), 1, MOST.get(name))
        if self.resize not in imagery.RESIZE_MODES:
            modes = ", ".join(imagery.RESIZE_MODES)
            raise ValueError(f"resize must be one of {modes}, got {self.resize!r}")
        check_channels("image_mean", self.image_mean)
        check_channels("image_std", self.image_std)
        self.canvases()

    def canvases(self) -> list[list[int]]:
        """Allowed canvases as [width, height] in pixels."""
        if self.image_grid_pinpoints is not None:
            return imagery.parse_canvases(self.image_grid_pinpoints, self.crop_size)
        return imagery.allowed_canvases(self.crop_size, self.max_crops, self.max_aspect_ratio)

    def select_canvas(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the canvas for an image of that size."""
        return imagery.select_canvas(width, height, self.canvases())

    def crop_rows(self, scene: imagery.Scene) -> Iterator[Tensor]:
        """A scene's crops, a row of the canvas at a time: [cols, 3, crop_size, crop_size] uint8."""
        canvas = self.select_canvas(*scene.size)
        return imagery.crop_rows(scene, canvas, self.crop_size, self.resize)

    def cut(self, image: Any) -> Tensor:
        """One image -> [C, 3, crop_size, crop_size] uint8 row by row, thumbnail first if any."""
        scene, side = imagery.as_scene(image), self.crop_size
        canvas = self.select_canvas(*scene.size)
        crops = imagery.all_crops(scene, canvas, side, self.resize)
        if not self.include_thumbnail:
            return crops
        squashed = imagery.resized(scene, (side, side), self.resize)
        return torch.cat([imagery.cut_crops(np.asarray(squashed), side), crops])

    def cut_frame(self, frame: Any) -> Tensor:
        """One frame -> [1, 3, crop_size, crop_size] uint8: shorter side fitted, center cut out."""
        frame, side = imagery.to_rgb(frame), self.crop_size
        width, height = frame.size
        shorter = min(width, height)
        resized = frame.resize(
            (int(side * width / shorter), int(side * height / shorter)), Image.Resampling.BICUBIC
        )
        left, top = (resized.width - side) // 2, (resized.height - side) // 2
        middle = resized.crop((left, top, left + side, top + side))
        return imagery.cut_crops(np.asarray(middle), side)

    def finish(self, crops: Iterable[Tensor]) -> Tensor:
        pixels = torch.cat(list(crops))
        if self.do_normalize:
            return imagery.normalize_crops(pixels, self.image_mean, self.image_std)
        return pixels

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Images -> `pixel_values` [sum of crops, 3, h, w] uint8 and `num_crops` [images] int64.

        Args:
            images: one image or a list; Pillow images, paths, uint8 arrays [H, W, 3] or tensors
                [3, H, W].
        """
        check_return_tensors(kwargs.pop("return_tensors", "pt"))
        if kwargs:
            raise TypeError(f"GeoLlavaImageProcessor does not take {', '.join(sorted(kwargs))}")
        crops = [self.cut(image) for image in flatten(images)]
        if not crops:
            raise ValueError("images must hold at least one image, got none")
        num_crops = torch.tensor([len(part) for part in crops])
        return BatchFeature({"pixel_values": self.finish(crops), "num_crops": num_crops})


class GeoLlavaProcessor(ProcessorMixin):
    """Image processor, tokenizer and chat template of one model.

    Args:
        image_processor: a `GeoLlavaImageProcessor`.
        tokenizer: the language model's; `<image>` and `<video>` are added to it as marks.
        num_keep: visual tokens that stand for one crop.
        tokens_per_frame: visual tokens that stand for one video frame.
        chat_template: instead of the published format.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_keep: int = 24,
        tokens_per_frame: int = 144,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_keep = num_keep
        self.tokens_per_frame = tokens_per_frame
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        # Prompts of a batch end together, so that generation continues each of them.
        tokenizer.padding_side = "left"
        tokenizer.add_tokens([IMAGE_TOKEN, VIDEO_TOKEN], special_tokens=True)
        self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """From our own saved form, or from a published checkpoint with its tokenizer.

        Raises:
            ValueError: no checkpoint, no tokenizer, or one that numbers `<image>` differently.
        """
        folder = checkpoint.resolve_folder(pretrained_model_name_or_path, weights=False)
        images = GeoLlavaImageProcessor.from_pretrained(folder)
        tokenizer = load_tokenizer(folder)
        saved = saved_options(folder, "processor_config.json")
        if saved:
            template = folder / "chat_template.jinja"
            options: dict[str, Any] = {}
            with named(folder / "processor_config.json", "the processor cannot be made of it"):
                for name in ("num_keep", "tokens_per_frame"):
                    check_count(name, saved.get(name), 1)
                    options[name] = saved[name]
            if template.is_file():
                with named(template, "the chat template cannot be read"):
                    options["chat_template"] = template.read_text(encoding="utf-8")
            return cls(images, tokenizer, **(options | kwargs))
        config = GeoLlavaConfig.from_pretrained(folder)
        options = {"num_keep": config.num_keep, "tokens_per_frame": config.tokens_per_frame}
        processor = cls(images, tokenizer, **(options | kwargs))
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"{folder}: the tokenizer numbers {IMAGE_TOKEN} {processor.image_token_id}, "
                f"config.json says image_token_id = {config.image_token_id}"
            )
        return processor

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Prompts and their images -> the model's inputs.

        Args:
            images: images in the order of the `<image>` marks over all prompts, flat or per prompt.
            text: a prompt or a list of prompts, with one `<image>` or `<video>` per image or video.
            videos: a list of videos, each a list of frames.
            kwargs: for the tokenizer. Prompts are padded on the left to one length by default.

        Returns:
            `input_ids` and `attention_mask` [B, L]; with images `pixel_values` and `num_crops`;
            with videos `pixel_values_videos`.

        Raises:
            ValueError: marks and images differ in number.
        """
        if text is None:
            raise ValueError("text must be a prompt or a list of prompts, got None")
        check_return_tensors(kwargs.pop("return_tensors", "pt"))
        prompts = [text] if isinstance(text, str) else list(text)
        data: dict[str, Any] = {}
        num_crops: list[int] = []
        if images is not None:
            data |= self.image_processor(images)
            num_crops = data["num_crops"].tolist()
        video_lengths: list[int] = []
        if videos is not None:
            frames = [
                [self.image_processor.cut_frame(frame) for frame in video] for video in videos
            ]
            data["pixel_values_videos"] = self.image_processor.finish(
                frame for video in frames for frame in video
            )
            video_lengths = [len(video) * self.tokens_per_frame for video in frames]
        return BatchFeature(self.tokenize(prompts, num_crops, video_lengths, **kwargs) | data)

    def tokenize(
        self,
        prompts: list[str],
        num_crops: Sequence[int],
        video_lengths: Sequence[int] = (),
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Prompts about images of so many crops -> `input_ids` and `attention_mask` [B, L].

        Args:
            num_crops: of each image, in the order of the `<image>` marks.
            video_lengths: visual tokens of each video, in the order of the `<video>` marks.
            kwargs: for the tokenizer.
        """
        prompts = expand_marks(prompts, IMAGE_TOKEN, [self.num_keep * n for n in num_crops])
        prompts = expand_marks(prompts, VIDEO_TOKEN, video_lengths)
        kwargs.setdefault("padding", len(prompts) > 1)
        try:
            with quiet_panics():
                tokens = self.tokenizer(prompts, return_tensors="pt", **kwargs)
        except (ValueError, TypeError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # of the tokenizers library: a panic, or no kind at all
            raise ValueError(
                f"{self.tokenizer.name_or_path}: the tokenizer cannot take this text: "
                f"{reason_of(error)}"
            ) from error
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As every processor's; ValueError where the template takes longer than ten seconds."""
        with bounded_templates():
            return super().apply_chat_template(*args, **kwargs)

    def build_prompt(self, question: str, *, num_images: int = 1) -> str:
        """The published chat format with `num_images` marks before the question.

        Raises:
            ValueError: the chat template does not parse, or does what the sandbox refuses.
        """
        marks = [{"type": "image"}] * num_images
        content = [*marks, {"type": "text", "text": question}]
        source = Path(self.tokenizer.name_or_path)
        file = source / "chat_template.jinja"
        with named(file if file.is_file() else source, "the chat template cannot be used"):
            return self.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )

    def check_template(self) -> None:
        """Raises ValueError for a chat template that does not mark an image once."""
        prompt = self.build_prompt("?")
        images, videos = prompt.count(IMAGE_TOKEN), prompt.count(VIDEO_TOKEN)
        if (images, videos) != (1, 0):
            raise ValueError(
                f"{self.tokenizer.name_or_path}: the chat template must write one {IMAGE_TOKEN} "
                f"for an image, got {images} of it and {videos} {VIDEO_TOKEN}"
            )

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "num_crops",
            "pixel_values_videos",
        ]


def expand_marks(prompts: list[str], mark: str, lengths: Sequence[int]) -> list[str]:
    """Each mark, over all prompts in order, becomes as many marks as its image has tokens."""
    found = sum(prompt.count(mark) for prompt in prompts)
    if found != len(lengths):
        kind = mark.strip("<>")
        raise ValueError(
            f"text must hold one {mark} per {kind}: expected {len(lengths)}, got {found}"
        )
    remaining = iter(lengths)
    expanded = []
    for prompt in prompts:
        first, *rest = prompt.split(mark)
        expanded.append(first + "".join(mark * next(remaining) + piece for piece in rest))
    return expanded


def check_return_tensors(value: str | None) -> None:
    if value not in (None, "pt"):
        raise ValueError(f"return_tensors must be 'pt', got {value!r}")


def saved_options(folder: Path, name: str) -> dict[str, Any]:
    """One file of our own saved form; nothing where it is absent or the checkpoint is published.

    A published checkpoint may hold its tower's settings under the same name.
    """
    path, config = folder / name, folder / "config.json"
    if not path.is_file():
        return {}
    if config.is_file():
        model_type = checkpoint.read_json(config).get("model_type")
        if model_type == checkpoint.PUBLISHED_MODEL_TYPE:
            return {}
    return checkpoint.read_json(path)


def load_tokenizer(folder: Path) -> Any:
    names = TOKENIZER_FILES[:3]
    if not any((folder / name).is_file() for name in names):
        raise ValueError(f"{folder} must hold the tokenizer ({' or '.join(names)}), found none")
    found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for path in found:
        content = checkpoint.read_json(path)
        if path.name == "tokenizer_config.json":
            check_tokenizer_config(path, content)
    for path in folder.glob("*.jinja"):
        with named(path, "the chat template cannot be read"):
            path.read_text(encoding="utf-8")
    with named(found[0] if found else folder, "the tokenizer cannot be loaded"), quiet_panics():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check_tokenizer_config(path: Path, content: dict[str, Any]) -> None:
    """What transformers takes as it is, whatever its type."""
    length, kind = content.get("model_max_length", 1), content.get("tokenizer_class", "")
    if not isinstance(length, (int, float)):
        raise ValueError(f"{path}: model_max_length must be a number, got {length!r}")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: tokenizer_class must be a string, got {kind!r}")


AutoProcessor.register(GeoLlavaConfig, GeoLlavaProcessor)
