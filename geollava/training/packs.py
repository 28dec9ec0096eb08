"""Tokenized rows -> packs, each the input of one training step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from geollava.model.processing import GeoLlavaProcessor
from geollava.training.tokens import IGNORED, Size, TokenizedRow, sample_of

OPEN_PACKS = 64  # looked at for room before a new one is begun


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

    Args:
        groups: rows that share a pack.
        processor: reads images.

    Attributes:
        encoded: by path, [C, K, D] of an image that is encoded beforehand. Where it holds any, it
            holds all of them, and samples have `vision_features` in place of pixels.
    """

    def __init__(
        self, groups: Sequence[Sequence[TokenizedRow]], processor: GeoLlavaProcessor
    ) -> None:
        self.groups, self.processor = groups, processor
        self.encoded: dict[str, Tensor] = {}

    @property
    def sizes(self) -> list[Size]:
        """Tokens of each pack."""
        return [
            Size(
                sum(row.size.tokens for row in group),
                sum(row.size.visual_tokens for row in group),
            )
            for group in self.groups
        ]

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.groups))

    @property
    def images(self) -> list[str]:
        """The path of every image, once."""
        paths = (path for group in self.groups for row in group for path in row.images)
        return list(dict.fromkeys(paths))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return join([self.sample(row) for row in self.groups[index]])

    def sample(self, row: TokenizedRow) -> dict[str, Any]:
        image_token_id = self.processor.image_token_id
        sample: dict[str, Any] = sample_of(row.tokens, image_token_id, row.visual_tokens)
        if row.images and self.encoded:
            sample["vision_features"] = torch.cat([self.encoded[path] for path in row.images])
        elif row.images:
            try:
                sample |= self.processor.image_processor(list(row.images))
            except ValueError as error:
                raise ValueError(f"the row with id {row.id}: {error}") from error
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
