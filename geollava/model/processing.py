"""Images, video frames and text -> the model's inputs, every placeholder in its exact count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from geollava.common.readable import named, quiet_panics, reason_of
from geollava.model import checkpoint
from geollava.model.configuration import GeoLlavaConfig, check_count
from geollava.model.image_processing import (
    GeoLlavaImageProcessor,
    check_return_tensors,
    saved_options,
)
from geollava.model.templates import bounded_templates
from geollava.model.tokenizing import load_tokenizer

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
        image_lengths = [self.num_keep * crops for crops in num_crops]
        return BatchFeature(self.tokenize(prompts, image_lengths, video_lengths, **kwargs) | data)

    def tokenize(
        self,
        prompts: list[str],
        image_lengths: Sequence[int],
        video_lengths: Sequence[int] = (),
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Prompts -> `input_ids` and `attention_mask` [B, L], a mark for each visual token.

        Args:
            image_lengths: visual tokens of each image, in the order of the `<image>` marks.
            video_lengths: of each video, in the order of the `<video>` marks.
            kwargs: for the tokenizer.
        """
        prompts = expand_marks(prompts, IMAGE_TOKEN, image_lengths)
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

    def build_prompt(
        self,
        question: str,
        *,
        num_images: int = 1,
        history: Sequence[tuple[str, str]] = (),
    ) -> str:
        """The published chat format with `num_images` marks before the first question.

        Args:
            history: questions and answers before this question.

        Raises:
            ValueError: the chat template does not parse, or does what the sandbox refuses.
        """
        marks: list[dict[str, str]] = [{"type": "image"}] * num_images
        messages: list[dict[str, Any]] = []
        for asked, answered in (*history, (question, None)):
            content = [*([] if messages else marks), {"type": "text", "text": asked}]
            messages.append({"role": "user", "content": content})
            if answered is not None:
                messages.append({"role": "assistant", "content": answered})
        source = Path(self.tokenizer.name_or_path)
        file = source / "chat_template.jinja"
        with named(file if file.is_file() else source, "the chat template cannot be used"):
            return self.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

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


AutoProcessor.register(GeoLlavaConfig, GeoLlavaProcessor)
