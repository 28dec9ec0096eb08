"""One question to one image, step by step: what `geollava ask` runs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from geollava.answering.streaming import ahead, crops_within, in_chunks
from geollava.common.readable import named, quiet_panics, storable
from geollava.imagery import Scene, as_scene
from geollava.model.checkpoint import resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor
from geollava.model.token_reduction import ReducedTokens, check_method

Item = TypeVar("Item")


@dataclass
class SceneTokens:
    """What the model keeps of a scene, whatever is asked about it.

    Attributes:
        kept: the kept vision tokens, crops row by row.
        canvas_size: (width, height) in pixels of the canvas that the image was fitted to.
    """

    kept: ReducedTokens
    canvas_size: tuple[int, int]

    @property
    def crops(self) -> int:
        return len(self.kept.assignment)


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
    """Wall-clock seconds per stage, in the order they began; a stage within another is not its."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self._timed(name):
            try:
                yield
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

    def waits(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time that each of them has to be waited for is the stage's."""
        iterator = iter(items)
        while True:
            with self._timed(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start, outer = time.perf_counter(), self._within
        self._within = 0.0
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] += elapsed - self._within
            self._within = outer + elapsed


def load(
    folder: str,
    num_keep: int | None,
    device: str,
    dtype: str,
    method: str | None = None,
) -> tuple[GeoLlavaForConditionalGeneration, GeoLlavaProcessor]:
    """Model and processor of a checkpoint; the weights are checked before the tokenizer is read.

    Args:
        folder: of the checkpoint, or its hub name.
        num_keep: instead of the checkpoint's own.
        device, dtype: "auto" is the GPU where there is one, and bfloat16 there.
        method: of token reduction, instead of the checkpoint's own.

    Raises:
        ValueError: no such checkpoint, device or method.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device} is not available: {str(error).strip().splitlines()[0]}"
        ) from error
    if dtype == "auto":
        dtype = "float32" if target.type == "cpu" else "bfloat16"

    checkpoint = resolve_folder(folder)
    config = GeoLlavaConfig.from_pretrained(checkpoint)
    if num_keep is not None:
        config.num_keep = num_keep
        config.check()
    if method is not None:
        check_method(method)
        config.reduction_method = method
    network = GeoLlavaForConditionalGeneration.from_pretrained(
        checkpoint, config=config, dtype=getattr(torch, dtype)
    )
    processor = GeoLlavaProcessor.from_pretrained(checkpoint, num_keep=config.num_keep)
    processor.check_template()  # before any image is read
    return network.to(target).eval(), processor


def answer(
    model: GeoLlavaForConditionalGeneration,
    processor: GeoLlavaProcessor,
    image: Any,
    question: str,
    *,
    max_new_tokens: int = 128,
    memory_budget: int | None = None,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Answer:
    """Asks a model about an image.

    Args:
        image: a scene, or what `imagery.as_scene` makes one of.
        max_new_tokens: length limit of the answer.
        memory_budget: bytes that encoding may take beside the weights. Without one the model's
            `chunk_size` crops are encoded at a time; on a CPU never more, which would be slower.
        stopwatch: is given the stages "crop" (waiting for crops), "encode" (tower and token
            reduction) and "answer".
        progress: called with (crops done, crops in all) after every chunk.

    Raises:
        ValueError: an empty question; more tokens than the model can take; placeholders of the
            processor and the model that differ; vision tokens that are not finite; a budget that
            does not hold one crop; a damaged file.
    """
    stopwatch = stopwatch or Stopwatch()
    scene = as_scene(image)
    canvas = processor.image_processor.select_canvas(*scene.size)
    side = processor.image_processor.crop_size
    inputs = ask_for(
        model, processor, question, canvas[0] // side * (canvas[1] // side), max_new_tokens
    )
    tokens = encode_scene(
        model,
        processor,
        scene,
        memory_budget=memory_budget,
        stopwatch=stopwatch,
        progress=progress,
    )
    with stopwatch.stage("answer"):
        text = generate(model, processor, tokens, inputs, max_new_tokens)
    return Answer(
        text=text,
        canvas_size=tokens.canvas_size,
        crops=tokens.crops,
        tokens_before=tokens.kept.assignment.numel(),
        tokens_after=tokens.kept.keep_indices.numel(),
        kept=tokens.kept,
    )


@torch.inference_mode()
def encode_scene(
    model: GeoLlavaForConditionalGeneration,
    processor: GeoLlavaProcessor,
    scene: Scene,
    *,
    memory_budget: int | None = None,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SceneTokens:
    """Reads, cuts, encodes and reduces a scene, a chunk of crops at a time.

    While a chunk is encoded the next is read; of each only the kept tokens stay. Arguments as of
    `answer`.
    """
    stopwatch = stopwatch or Stopwatch()
    images = processor.image_processor
    canvas = images.select_canvas(*scene.size)
    crops = canvas[0] // images.crop_size * (canvas[1] // images.crop_size)
    size = model.chunk_size
    if memory_budget is not None:
        within = crops_within(memory_budget, model.config, model.dtype)
        size = min(size, within) if model.device.type == "cpu" else within
    chunks = ahead(in_chunks(images.crop_rows(scene), size, pin=model.device.type == "cuda"))
    report = (lambda done: progress(done, crops)) if progress else None
    with stopwatch.stage("encode"):
        kept = model.encode_crops(stopwatch.waits("crop", chunks), progress=report)
    return SceneTokens(kept, canvas)


def ask_for(
    model: GeoLlavaForConditionalGeneration,
    processor: GeoLlavaProcessor,
    question: str,
    crops: int,
    max_new_tokens: int,
) -> dict[str, Tensor]:
    """The question as `input_ids` and `attention_mask` [1, L], checked before anything is read."""
    if not question.strip():
        raise ValueError("the question must say something, it is empty")
    if question != storable(question):
        raise ValueError(f"the question must be text that UTF-8 can write, got {question!a}")
    check_pair(model, processor)
    inputs = processor.tokenize([processor.build_prompt(question)], [crops])
    check_words(model, processor, inputs["input_ids"])
    limit = model.config.text_config.max_position_embeddings
    length = inputs["input_ids"].shape[1]
    if length + max_new_tokens > limit:
        raise ValueError(
            f"{crops} crops of {model.config.num_keep} tokens make a prompt of {length}; it and "
            f"{max_new_tokens} new ones must fit the model's {limit} positions: keep fewer tokens"
        )
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


@torch.inference_mode()
def generate(
    model: GeoLlavaForConditionalGeneration,
    processor: GeoLlavaProcessor,
    tokens: SceneTokens,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
) -> str:
    """The model's most likely answer to a question that `ask_for` prepared."""
    embeds = model.embed_prompt(
        inputs["input_ids"], image_features=model.project(tokens.kept.features)
    )
    generated = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    source = processor.tokenizer.name_or_path
    with named(source, "the tokenizer cannot write the answer"), quiet_panics():
        return str(processor.tokenizer.decode(generated[0], skip_special_tokens=True)).strip()


def check_pair(model: Any, processor: Any) -> None:
    """The processor must mark images as the model expects them."""
    for name in ("image_token_id", "video_token_id"):
        expected, got = getattr(model.config, name), getattr(processor, name)
        if expected != got:
            source = processor.tokenizer.name_or_path or "the processor"
            raise ValueError(f"{source}: the tokenizer must have {name} = {expected}, got {got}")


def check_words(model: Any, processor: Any, input_ids: Tensor) -> None:
    """Every id must be one of the model's words or a mark of images."""
    config = model.config
    marks = (input_ids == config.image_token_id) | (input_ids == config.video_token_id)
    largest = int(input_ids.masked_fill(marks, 0).max())
    if largest >= config.text_config.vocab_size:
        source = processor.tokenizer.name_or_path or "the processor"
        raise ValueError(
            f"{source}: the tokenizer must number words below the model's "
            f"{config.text_config.vocab_size}, got {largest}"
        )


def peak_memory_mib() -> int:
    """The process's largest resident size so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10
