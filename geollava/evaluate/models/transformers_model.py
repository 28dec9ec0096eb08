"""Any vision-language model of transformers, by its own processor and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import tokenprune
from geollava.answering.generating import generate
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.imagery import Scene
from geollava.model.templates import bounded_templates


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
        inputs = self.render(
            prepared,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(prepared) > 1},
        ).to(self.model.device, self.model.dtype)
        length = inputs["input_ids"].shape[1]
        replies = generate(self.model, self.tokenizer, dict(inputs), length, max_new_tokens)
        return [Reply(**vars(reply)) for reply in replies]

    def render(self, conversation: Any, **options: Any) -> Any:
        with bounded_templates():
            return self.processor.apply_chat_template(
                conversation, add_generation_prompt=True, **options
            )

    def protocol(self, *, blind: bool) -> dict[str, Any]:
        marks = [] if blind else [{"type": "image"}]
        message = [{"role": "user", "content": [*marks, {"type": "text", "text": "{question}"}]}]
        return {
            "model": self.name,
            "weights": self.weights,
            "architecture": self.model.config.model_type,
            "prompt": self.render(message, tokenize=False),
            "method": self.method,
            "num_keep": self.num_keep,
            "attention": self.model.config._attn_implementation,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
