"""Questions -> prompts as token ids, checked before an image is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from geollava.common.readable import storable

if TYPE_CHECKING:
    from torch import Tensor

Turn = tuple[str, str]  # a question and its answer


def check_question(question: str) -> None:
    """Raises ValueError for one that says nothing, or that UTF-8 cannot write."""
    if not question.strip():
        raise ValueError("the question must say something, it is empty")
    if question != storable(question):
        raise ValueError(f"the question must be text that UTF-8 can write, got {question!a}")


def prompt_ids(
    model: Any,
    processor: Any,
    question: str,
    lengths: Sequence[int],
    max_new_tokens: int,
    history: Sequence[Turn] = (),
) -> Tensor:
    """[L] int64 on the CPU: the prompt of a question, an image mark once per visual token.

    Args:
        lengths: visual tokens of each image, in order.
        max_new_tokens: room that must be left for the answer.
        history: what was asked and answered before, about the same images.

    Raises:
        ValueError: a prompt that the model cannot take.
    """
    prompt = processor.build_prompt(question, num_images=len(lengths), history=history)
    ids: Tensor = processor.tokenize([prompt], lengths)["input_ids"][0]
    check_words(model, processor, ids)
    limit = model.config.text_config.max_position_embeddings
    if len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"{sum(lengths):,} visual tokens make a prompt of {len(ids):,}; it and "
            f"{max_new_tokens:,} new ones must fit the model's {limit:,} positions: keep fewer "
            "tokens"
        )
    return ids


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
