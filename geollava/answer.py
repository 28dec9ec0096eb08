"""One question to one image, step by step: what `geollava ask` runs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from geollava.imagery import as_scene
from geollava.modeling import GeoLlavaForConditionalGeneration
from geollava.processing import GeoLlavaProcessor
from geollava.token_reduction import ReducedTokens


@dataclass
class Answer:
    """What came out, and what it took.

    Attributes:
        text: the model's answer.
        canvas_size: (width, height) in pixels of the canvas that the image was fitted to.
        crops: crops that the canvas was cut into.
        tokens_before, tokens_after: visual tokens of all crops, before and after the reduction.
        kept: the kept vision tokens, for overlays.
    """

    text: str
    canvas_size: tuple[int, int]
    crops: int
    tokens_before: int
    tokens_after: int
    kept: ReducedTokens


@dataclass
class Stopwatch:
    """Wall-clock seconds per stage, in the order they ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@torch.inference_mode()
def answer(
    model: GeoLlavaForConditionalGeneration,
    processor: GeoLlavaProcessor,
    image: Any,
    question: str,
    *,
    max_new_tokens: int = 128,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Answer:
    """Asks a model about an image.

    Args:
        image: a scene, or what `imagery.as_scene` makes one of.
        max_new_tokens: length limit of the answer.
        stopwatch: is given the stages "crop", "encode" (tower and token reduction) and "answer".
        progress: called with (crops done, crops in all) during encoding.

    Raises:
        ValueError: an empty question; more tokens than the model can take; placeholders of the
            processor and the model that differ; vision tokens that are not finite.
    """
    if not question.strip():
        raise ValueError("the question must say something, it is empty")
    check_pair(model, processor)
    stopwatch = stopwatch or Stopwatch()
    scene = as_scene(image)

    with stopwatch.stage("crop"):
        canvas_size = processor.image_processor.select_canvas(*scene.size)
        inputs = processor(images=[scene], text=processor.build_prompt(question))
        crops = int(inputs["num_crops"].sum())
        input_ids = inputs["input_ids"].to(model.device)
        attention_mask = inputs["attention_mask"].to(model.device)
    limit = model.config.text_config.max_position_embeddings
    length = input_ids.shape[1]
    if length + max_new_tokens > limit:
        raise ValueError(
            f"{crops} crops of {model.config.num_keep} tokens make a prompt of {length}; it and "
            f"{max_new_tokens} new ones must fit the model's {limit} positions: keep fewer tokens"
        )

    with stopwatch.stage("encode"):
        report = (lambda done: progress(done, crops)) if progress else None
        kept = model.encode_crops(inputs["pixel_values"], progress=report)

    with stopwatch.stage("answer"):
        embeds = model.embed_prompt(input_ids, image_features=model.project(kept))
        generated = model.generate(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        text = processor.tokenizer.decode(generated[0], skip_special_tokens=True).strip()

    return Answer(
        text=text,
        canvas_size=canvas_size,
        crops=crops,
        tokens_before=kept.assignment.numel(),
        tokens_after=kept.keep_indices.numel(),
        kept=kept,
    )


def check_pair(model: Any, processor: Any) -> None:
    """The processor must mark images as the model expects them."""
    for name in ("image_token_id", "video_token_id"):
        expected, got = getattr(model.config, name), getattr(processor, name)
        if expected != got:
            raise ValueError(f"the tokenizer must have {name} = {expected}, got {got}")


def peak_memory_mib() -> int:
    """The process's largest resident size so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10
