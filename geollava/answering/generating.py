"""Prompts -> the model's most likely replies, in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TextStreamer,
)

import tokenprune
from geollava.answering.encoding import SceneTokens
from geollava.answering.prefix import Prefix
from geollava.answering.reduction import Reduction
from geollava.common.readable import named, quiet_panics
from geollava.model.modeling import CACHE_NAME


@dataclass(frozen=True)
class Reply:
    """A model's words, and the probability that it gave to the first of them.

    Attributes:
        tokens: visual ones that were left for this question, where it chose them itself.
    """

    text: str
    confidence: float
    tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """A reply, and what it took.

    Attributes:
        text: the model's words.
        confidence: probability that the model gave to the first token of its answer.
        crops: that the scene was cut into.
        tokens_before, tokens_after: visual tokens of all crops, before and after the reduction.
        seconds: per stage, of this question alone and of what was done first for it.
    """

    text: str
    confidence: float
    crops: int
    tokens_before: int
    tokens_after: int
    seconds: dict[str, float] = field(default_factory=dict)


class FirstProbability(LogitsProcessor):
    """Changes nothing; notes how probable the most likely first token is."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.values:
            best = scores.float().softmax(1).amax(1)
            self.values = [round(value, 4) for value in best.tolist()]
        return scores


class Listened(TextStreamer):
    """Hands on the text of one reply while it is written, in pieces that end with whole words.

    Args:
        listen: takes each piece; what it raises ends the reply.
    """

    def __init__(self, tokenizer: Any, listen: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.listen = listen

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.listen(text)


class OnReply(LogitsProcessor):
    """A processor that sees the reply alone, as one of embeddings does."""

    def __init__(self, processor: LogitsProcessor, prompt_length: int) -> None:
        self.processor, self.prompt_length = processor, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.processor(input_ids[:, self.prompt_length :], scores)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Any],
    prompt_length: int,
    max_new_tokens: int,
    processors: Sequence[LogitsProcessor] = (),
    **options: Any,
) -> list[Reply]:
    """Greedy replies of any model of transformers.

    Args:
        inputs: of `model.generate`.
        prompt_length: tokens at the start of what it returns that are not the reply's.
        processors, options: for `model.generate`, too.
    """
    first, stop = FirstProbability(), tokenizer.eos_token_id
    generated = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        logits_processor=LogitsProcessorList([*processors, first]),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=False,
        **options,
    )
    with (
        named(tokenizer.name_or_path, "the tokenizer cannot write the answer"),
        quiet_panics(),
    ):
        texts = tokenizer.batch_decode(generated[:, prompt_length:], skip_special_tokens=True)
    return [
        Reply(text.strip(), confidence)
        for text, confidence in zip(texts, first.values, strict=True)
    ]


def of_the_reply(settings: GenerationConfig, prompt_length: int) -> list[LogitsProcessor]:
    """What a checkpoint says against repetition, of words of the reply: the published evaluation
    gives embeddings to `generate`, which then knows no word of the prompt."""
    found: list[LogitsProcessor] = []
    if settings.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    return [OnReply(processor, prompt_length) for processor in found]


def reply_to(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    prefix: Prefix | None = None,
    images: Mapping[str, Tensor] | None = None,
    listen: Callable[[str], None] | None = None,
) -> list[Reply]:
    """The most likely reply to each prompt, all in one batch.

    Args:
        prompts: [L] token ids of each.
        prefix: what all of them begin with, read before; None is nothing.
        images: inputs of the model for the image marks, where no prefix holds them.
        listen: see `Listened`; of one prompt alone.
    """
    start = 0 if prefix is None else len(prefix.ids)
    ends = [ids[start:] for ids in prompts]
    length = max(map(len, ends))
    # Padding stands between what all prompts share and what they do not.
    ids = prompts[0].new_full((len(ends), start + length), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    ids[:, :start], mask[:, :start] = prompts[0][:start], 1
    for row, end in enumerate(ends):
        ids[row, start + length - len(end) :] = end
        mask[row, start + length - len(end) :] = 1
    inputs: dict[str, Any] = {
        **(images or {}),
        "input_ids": ids.to(model.device),
        "attention_mask": mask.to(model.device),
        "eos_token_id": tokenizer.eos_token_id,
    }
    if prefix is not None:
        inputs[CACHE_NAME] = prefix.cache(len(ends))
    return generate(
        model,
        tokenizer,
        inputs,
        start + length,
        max_new_tokens,
        of_the_reply(model.generation_config, start + length),
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        cache_implementation=None,
        streamer=None if listen is None else Listened(tokenizer, listen),
    )


def reduced_reply(
    model: Any,
    tokenizer: Any,
    prompt: Tensor,
    max_new_tokens: int,
    scenes: Sequence[SceneTokens],
    reduction: Reduction,
    listen: Callable[[str], None] | None = None,
) -> Reply:
    """The most likely reply to a prompt [L], with visual tokens that are chosen for it.

    Args:
        scenes: what the model kept of each image, before the question was read.
        listen: see `Listened`.
    """
    assert reduction.asked_method is not None
    assert reduction.asked_keep is not None
    if any(scene.shown is not None for scene in scenes):
        raise NotImplementedError(
            f"{reduction.asked_method} chooses among all tokens that crops keep, some are left out"
        )
    images = {
        "vision_features": torch.cat([scene.kept.features for scene in scenes]),
        "num_crops": torch.tensor([scene.canvas.crops for scene in scenes]),
    }
    ratio = reduction.asked_keep / reduction.num_keep
    with tokenprune.apply(model, reduction.asked_method, keep_ratio=ratio) as handle:
        (reply,) = reply_to(
            model, tokenizer, [prompt], max_new_tokens, images=images, listen=listen
        )
        return replace(reply, tokens=sum(handle.report().tokens_after))
