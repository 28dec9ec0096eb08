"""Rows -> token ids with labels on the answers -> packs, each the input of one training step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from geollava.model.processing import IMAGE_TOKEN, GeoLlavaProcessor, expand_marks

IGNORED = -100  # a label that asks for no loss
OPEN_PACKS = 64  # looked at for room before a new one is begun


@dataclass(frozen=True)
class Size:
    """Tokens of a row: all of them, and those that stand for images."""

    tokens: int
    visual_tokens: int


def tokenize(
    processor: GeoLlavaProcessor, conversations: Sequence[dict[str, str]], crops: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation; labels ask for each answer and the mark that ends it.

    Args:
        crops: number of crops of each image, in the order of their marks.
    """
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in conversations]
    pieces: list[str] = []
    rendered = ""
    for end in range(1, len(messages), 2):
        for count, prompt in ((end, True), (end + 1, False)):
            text = processor.apply_chat_template(
                messages[:count], add_generation_prompt=prompt, tokenize=False
            )
            pieces.append(text[len(rendered) :])
            rendered = text
    pieces = expand_marks(pieces, IMAGE_TOKEN, [count * processor.num_keep for count in crops])

    ids: list[int] = []
    labels: list[int] = []
    for index, piece in enumerate(pieces):
        is_answer = index % 2 == 1
        words = piece.rstrip("\n") if is_answer else piece
        for text, counts in ((words, is_answer), (piece[len(words) :], False)):
            new = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += new
            labels += new if counts else [IGNORED] * len(new)
    return ids, labels


def count_crops(processor: GeoLlavaProcessor, size: tuple[int, int]) -> int:
    """Crops of an image of (width, height) pixels."""
    images = processor.image_processor
    width, height = images.select_canvas(*size)
    return (width // images.crop_size) * (height // images.crop_size)


def measure(processor: GeoLlavaProcessor, row: dict[str, Any], crops: Sequence[int]) -> Size:
    """The size of a row; its images are not read."""
    ids, _ = tokenize(processor, row["conversations"], [0] * len(crops))
    visual_tokens = sum(crops) * processor.num_keep
    return Size(len(ids) + visual_tokens, visual_tokens)


def pack(
    sizes: Sequence[Size], visual_tokens: int | None, limit: int, seed: int
) -> list[list[int]]:
    """Groups of rows that share a sequence, the same for the same seed.

    Args:
        visual_tokens: most of a group; a row that has more is a group of its own, and so is every
            row where it is None.
        limit: most tokens of a group.
    """
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    if visual_tokens is None:
        return [[index] for index in order]
    groups: list[list[int]] = []
    filled: list[Size] = []
    for index in order:
        size = sizes[index]
        for place in range(max(0, len(groups) - OPEN_PACKS), len(groups)):
            total = Size(
                filled[place].tokens + size.tokens,
                filled[place].visual_tokens + size.visual_tokens,
            )
            if total.tokens <= limit and total.visual_tokens <= visual_tokens:
                groups[place].append(index)
                filled[place] = total
                break
        else:
            groups.append([index])
            filled.append(size)
    return groups


class Packs(Dataset):
    """Groups of rows as the model's inputs; images are read when their pack's turn comes.

    Attributes:
        tokens: of each group, visual and text.
    """

    def __init__(
        self,
        rows: Any,
        crops: Sequence[Sequence[int]],
        groups: Sequence[Sequence[int]],
        processor: GeoLlavaProcessor,
        tokens: Sequence[int] = (),
    ) -> None:
        self.rows, self.crops, self.groups, self.processor = rows, crops, groups, processor
        self.tokens = tokens
        self.encoded: dict[str, Tensor] = {}

    def encode(
        self,
        encode_crops: Callable[[Tensor], Tensor],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Puts images through the tower once, so that samples hold `vision_features`, not pixels.

        Args:
            encode_crops: [C, 3, h, w] uint8 -> [C, K, D].
            progress: called with (images done, images in all).
        """
        rows = sorted({row for group in self.groups for row in group})
        paths = list(dict.fromkeys(path for row in rows for path in self.rows[row]["image"]))
        for done, path in enumerate(paths, 1):
            self.encoded[path] = encode_crops(
                self.processor.image_processor([path])["pixel_values"]
            )
            if progress is not None:
                progress(done, len(paths))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return join([self.sample(row) for row in self.groups[index]])

    def sample(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        ids, labels = tokenize(self.processor, row["conversations"], self.crops[index])
        sample: dict[str, Any] = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        if row["image"] and self.encoded:
            sample["vision_features"] = torch.cat([self.encoded[path] for path in row["image"]])
        elif row["image"]:
            try:
                sample |= self.processor.image_processor(row["image"])
            except ValueError as error:
                raise ValueError(f"the row with id {row['id']}: {error}") from error
        return sample


def join(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> one sequence in which each is blind to the others.

    Args:
        samples: `input_ids` and `labels` [L], with images `pixel_values` and `num_crops`, or
            `vision_features`.

    Returns:
        `input_ids` and `position_ids` [1, sum of L], positions starting anew with each sample,
        which is how transformers tells them apart; `logits_to_keep` [M], the places that answers
        are predicted from, and `shift_labels` [1, M], the answers: no logit is computed elsewhere.
    """
    labels = torch.cat([sample["labels"] for sample in samples])
    following = torch.cat([labels[1:], labels.new_full((1,), IGNORED)])
    places = (following != IGNORED).nonzero().flatten()
    positions = [torch.arange(len(sample["input_ids"])) for sample in samples]
    batch: dict[str, Any] = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
        "position_ids": torch.cat(positions)[None],
        "logits_to_keep": places,
        "labels": following[places][None],
        "shift_labels": following[places][None],
        "use_cache": False,
    }
    for name in ("pixel_values", "num_crops", "vision_features"):
        parts: list[Tensor] = [sample[name] for sample in samples if name in sample]
        if parts:
            batch[name] = torch.cat(parts)
    return batch


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A step's input is one pack."""
    (only,) = batch
    return only
