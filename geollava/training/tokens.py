"""Rows -> token ids with labels on the answers. Each text is tokenized once.

Tokens are kept with one mark for each image, 5 bytes each, in a mapped file: the system drops from
memory what no pack uses. A mark becomes its image's visual tokens when a sample is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geollava.model.processing import IMAGE_TOKEN, GeoLlavaProcessor
from geollava.training.rows import TrainingRow

IGNORED = -100  # a label that asks for no loss
TOKEN = np.dtype([("id", np.uint32), ("answer", np.bool_)])  # answer: the loss asks for it

Tokens = NDArray[np.void]  # [T] of TOKEN


@dataclass(frozen=True)
class Size:
    """Tokens of a row: all of them, and those that stand for images."""

    tokens: int
    visual_tokens: int


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A row as packs use it: its words are tokens.

    Attributes:
        id: the row's own.
        images: a path for each image, in the order of their marks.
        visual_tokens: of each image.
        tokens: [T] of `TOKEN`, one mark for each image.
    """

    id: str
    images: tuple[str, ...]
    visual_tokens: tuple[int, ...]
    tokens: Tokens

    @property
    def size(self) -> Size:
        visual_tokens = sum(self.visual_tokens)
        return Size(len(self.tokens) - len(self.images) + visual_tokens, visual_tokens)


def tokenize(processor: GeoLlavaProcessor, turns: Sequence[tuple[str, str]]) -> Tokens:
    """[T] of `TOKEN` of a conversation: each answer and the mark that ends it are asked for.

    Args:
        turns: (question, answer) pairs, an `<image>` in a question for each of its images.

    Raises:
        ValueError: the chat template writes other marks than the questions hold.
    """
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    pieces: list[str] = []
    rendered = ""
    for end in range(1, len(messages), 2):
        for count, prompt in ((end, True), (end + 1, False)):
            text = processor.apply_chat_template(
                messages[:count], add_generation_prompt=prompt, tokenize=False
            )
            pieces.append(text[len(rendered) :])
            rendered = text

    ids: list[int] = []
    answers: list[bool] = []
    for index, piece in enumerate(pieces):
        is_answer = index % 2 == 1
        words = piece.rstrip("\n") if is_answer else piece
        for text, asked in ((words, is_answer), (piece[len(words) :], False)):
            new = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += new
            answers += [asked] * len(new)
    tokens = np.empty(len(ids), TOKEN)
    tokens["id"], tokens["answer"] = ids, answers
    marks = sum(question.count(IMAGE_TOKEN) for question, _ in turns)
    marks_in(tokens, processor.image_token_id, marks)
    return tokens


def marks_in(tokens: Tokens, image_token_id: int, images: int) -> NDArray[np.bool_]:
    """[T], True where a mark stands.

    Raises:
        ValueError: they are not one for each image.
    """
    marks = tokens["id"] == image_token_id
    if (found := int(marks.sum())) != images:
        raise ValueError(
            f"text must hold one {IMAGE_TOKEN} per image: expected {images}, got {found}"
        )
    return marks


def tokenize_rows(
    processor: GeoLlavaProcessor, rows: Iterable[tuple[TrainingRow, Sequence[int]]]
) -> list[TokenizedRow]:
    """Rows with the number of crops of each of their images -> rows whose tokens lie in a file.

    The file has no name: nothing is left of it when the process ends, however it ends.
    """
    headers = []
    ends = [0]
    with TemporaryFile() as file:
        for row, crops in rows:
            tokens = tokenize(processor, row.turns)
            file.write(tokens.tobytes())
            ends.append(ends[-1] + len(tokens))
            visual_tokens = tuple(count * processor.num_keep for count in crops)
            headers.append((row.id, row.images, visual_tokens))
        file.flush()
        mapped = np.asarray(np.memmap(file, TOKEN, mode="r"))
    return [
        TokenizedRow(*header, mapped[start:end])
        for header, start, end in zip(headers, ends[:-1], ends[1:], strict=True)
    ]


def sample_of(
    tokens: Tokens, image_token_id: int, visual_tokens: Sequence[int]
) -> dict[str, Tensor]:
    """`input_ids` and `labels` [L] of a conversation, each mark in its exact count.

    Args:
        visual_tokens: of each image, in the order of their marks.

    Raises:
        ValueError: there are more or fewer marks than images.
    """
    ids = tokens["id"].astype(np.int64)
    counts = np.ones(len(ids), np.int64)
    counts[marks_in(tokens, image_token_id, len(visual_tokens))] = visual_tokens
    labels = np.where(tokens["answer"], ids, IGNORED)
    return {
        "input_ids": torch.from_numpy(ids.repeat(counts)),
        "labels": torch.from_numpy(labels.repeat(counts)),
    }
