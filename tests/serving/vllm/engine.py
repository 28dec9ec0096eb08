"""The same prompts, asked of vLLM and of transformers with `tokenprune.apply`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tokenprune

from .checkpoints import NAMES, image_of

NEW_TOKENS = 12
IMAGE_TOKENS = {NAMES[mark] for mark in ("<image>", "<|image_pad|>")}
SHAPES = {
    "landscape": [(224, 168)],
    "tall": [(112, 336)],
    "two": [(336, 112), (140, 140)],
    "none": [],
}
BASE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "enforce_eager": True,
    "seed": 0,
    "block_size": 32,
    "disable_log_stats": False,
}


@dataclass(frozen=True)
class Prompt:
    text: str
    images: tuple[Any, ...] = ()

    def request(self, budget: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As vLLM takes it."""
        request: dict[str, Any] = {"prompt": self.text}
        if self.images:
            request["multi_modal_data"] = {"image": list(self.images)}
        if budget is not None:
            request["mm_processor_kwargs"] = {"tokenprune": dict(budget)}
        return request


@dataclass(frozen=True)
class Reply:
    """Greedy.

    Attributes:
        length: of the prompt in the language model.
        ids, logprobs: of the new tokens.
        cached: tokens of the prompt that were found in the prefix cache.
        visual: columns of the prompt's visual tokens; vLLM alone says so.
    """

    length: int
    ids: list[int]
    logprobs: list[float]
    cached: int = 0
    visual: tuple[int, ...] = ()

    def image_holds(self, column: int) -> bool:
        """Whether an image, of a prompt with one, has begun before a column and goes on there."""
        return bool(self.visual) and self.visual[0] < column <= self.visual[-1]


def picture(seed: int, width: int, height: int) -> Any:
    """Smooth noise."""
    numbers = np.random.default_rng(seed)
    coarse = numbers.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def prompts(name: str, shapes: Sequence[str] = tuple(SHAPES)) -> list[Prompt]:
    made = []
    for shape in shapes:
        images = tuple(picture(len(shape) + i, *size) for i, size in enumerate(SHAPES[shape]))
        shown = "".join(f"Picture {i}: {image_of(name)}" for i in range(len(images)))
        made.append(
            Prompt(
                f"<|im_start|>user\n{shown}What is here?<|im_end|>\n<|im_start|>assistant\n", images
            )
        )
    return made


def positions_of(name: str) -> str:
    """Those of `apply` that vLLM has: it numbers the columns of hosts without mRoPE itself."""
    return "original" if name.startswith("qwen") else "compact"


def given(method: str, **budget: Any) -> dict[str, Any]:
    """The options of a server."""
    return {"hf_overrides": {"tokenprune": {"method": method, **budget}}}


def open_engine(folder: Path, **options: Any) -> Any:
    from vllm import LLM

    return LLM(model=str(folder), **{**BASE, **options})


def ask(
    engine: Any, requests: Sequence[dict[str, Any]], new_tokens: int = NEW_TOKENS
) -> list[Reply]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, logprobs=1)
    replies = []
    for output in engine.generate(list(requests), sampling, use_tqdm=False):
        (made,) = output.outputs
        ids = list(made.token_ids)
        logprobs = [step[token].logprob for step, token in zip(made.logprobs, ids, strict=True)]
        prompt = output.prompt_token_ids
        visual = tuple(column for column, token in enumerate(prompt) if token in IMAGE_TOKENS)
        cached = output.num_cached_tokens or 0
        replies.append(Reply(len(prompt), ids, logprobs, cached, visual))
    return replies


def served(
    folder: Path, asked: Sequence[Prompt], budget: Mapping[str, Any] | None = None, **options: Any
) -> list[Reply]:
    """All prompts at once, of an engine with these options."""
    return ask(open_engine(folder, **options), [prompt.request(budget) for prompt in asked])


def applied(
    folder: Path,
    asked: Sequence[Prompt],
    method: str | tokenprune.Method | None = None,
    new_tokens: int = NEW_TOKENS,
    **options: Any,
) -> list[Reply]:
    """Prompt by prompt, of transformers; `options` are those of `apply`."""
    import transformers as hf

    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    if method is None:
        return [whole(model, processor, prompt, new_tokens) for prompt in asked]
    replies = []
    for prompt in asked:
        with tokenprune.apply(model, method, **options) as handle:
            reply = whole(model, processor, prompt, new_tokens)
            report = handle.report() if prompt.images else None
        gone = 0 if report is None else sum(report.tokens_before) - sum(report.tokens_after)
        replies.append(Reply(reply.length - gone, reply.ids, reply.logprobs))
    return replies


def whole(model: Any, processor: Any, prompt: Prompt, new_tokens: int) -> Reply:
    inputs = processor(text=[prompt.text], images=list(prompt.images) or None, return_tensors="pt")
    # vLLM cuts each image into crops, also where a prompt holds several.
    inputs.pop("batch_num_images", None)
    output = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    length = inputs["input_ids"].shape[1]
    ids = output.sequences[0, length:].tolist()
    logprobs = [
        step[0].float().log_softmax(-1)[token].item()
        for step, token in zip(output.logits, ids, strict=True)
    ]
    return Reply(length, ids, logprobs)


def differences(replies: Sequence[Reply], expected: Sequence[Reply]) -> list[str]:
    """What tells two lists of replies apart: nothing where they are equal within 1e-4."""
    found = []
    for number, (one, other) in enumerate(zip(replies, expected, strict=True)):
        if one.length != other.length:
            found.append(f"{number}: {one.length} tokens in the prompt, expected {other.length}")
        if one.ids != other.ids:
            found.append(f"{number}: {one.ids}, expected {other.ids}")
        gap = max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))
        if gap > 1e-4:
            found.append(f"{number}: log-probabilities differ by {gap:.1e}")
    return found
