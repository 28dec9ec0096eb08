"""A prompt with images, as it enters the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.encoder import EncodedImages
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.hosts.tower import TowerValues
from tokenprune.hosts.videos import Videos


@dataclass(frozen=True)
class Prompt:
    """What a reduction works on.

    Attributes:
        placeholders: [B, L] bool, where visual tokens stand.
        now: [B, L] bool, False where padding.
        mask: [B, past + L], as the host was given it, or None.
        past: columns of the whole sequence that came before.
        cache: the language model's, or None.
        layouts: one per image, in the order of their placeholders.
        tower: for each image what the method needs of the tower, or None.
        ends: [B] int64, the column of each row's last prompt token.
        stopwatches: of what was read while encoding.
    """

    placeholders: Tensor
    now: Tensor
    mask: Tensor | None
    past: int
    cache: Any
    layouts: list[ImageLayout]
    tower: list[TowerValues] | None
    ends: Tensor
    stopwatches: Sequence[Stopwatch]

    def texts(self, embeddings: Tensor) -> list[Tensor]:
        """For each image the embeddings [T, D] of its prompt's other tokens."""
        words = self.now & ~self.placeholders
        rows = self.placeholders.nonzero()[:, 0].tolist()
        texts, first = [], 0
        for layout in self.layouts:
            row = rows[first]
            texts.append(embeddings[row, words[row]])
            first += layout.num_tokens
        return texts


@dataclass(frozen=True)
class Shown:
    """The images of a prompt, or its videos.

    Attributes:
        source: the adapter, or its videos.
        encoded: what the host made of them.
        placeholders: [B, L] bool, where they stand.
    """

    source: Adapter | Videos
    encoded: EncodedImages
    placeholders: Tensor


def layouts_of(shown: Sequence[Shown]) -> tuple[list[ImageLayout], list[TowerValues] | None]:
    """Layout and tower values of every image and video, in the order of their placeholders.

    Raises:
        RuntimeError: an image has another number of tokens than its size says.
        NotImplementedError: tokens of an image stand between those of a video.
    """
    places: list[tuple[int, int, int, ImageLayout, TowerValues | None]] = []
    for one in shown:
        encoded, layouts = one.encoded, layouts_by_size(one)
        rows = images_of_rows(one.placeholders.sum(1).tolist(), encoded.lengths)
        for row, numbers in enumerate(rows):
            columns: Sequence[int] = range(one.placeholders.shape[1])
            if len(shown) > 1:
                columns = one.placeholders[row].nonzero()[:, 0].tolist()
            begin = 0
            for number in numbers:
                end = begin + encoded.lengths[number]
                tower = None if encoded.tower is None else encoded.tower[number]
                layout = layouts[encoded.sizes[number]]
                places.append((row, columns[begin], columns[end - 1], layout, tower))
                begin = end
    if len(shown) > 1:
        places.sort(key=lambda place: place[:2])
        for before, after in pairwise(places):
            if before[0] == after[0] and after[1] < before[2]:
                raise NotImplementedError("tokens of an image stand between those of a video")
    values = [place[4] for place in places if place[4] is not None]
    return [place[3] for place in places], values if len(values) == len(places) else None


def layouts_by_size(shown: Shown) -> dict[Any, ImageLayout]:
    encoded = shown.encoded
    layouts = {size: shown.source.layout(size) for size in set(encoded.sizes)}
    for size, length in zip(encoded.sizes, encoded.lengths, strict=True):
        if layouts[size].num_tokens != length:
            raise RuntimeError(
                f"an image of size {size} was expected to give {layouts[size].num_tokens} "
                f"tokens, the host made {length}"
            )
    return layouts


def real_columns(mask: Tensor | None, placeholders: Tensor) -> Tensor:
    """[B, L] bool: the columns of this step that are no padding."""
    if mask is None:
        return torch.ones_like(placeholders)
    return mask[:, -placeholders.shape[1] :].bool().to(placeholders.device)


@dataclass
class LastPrompt:
    """What was ranked by last: generation without a cache passes it again, one token longer."""

    inputs: Tensor
    length: int
    ends: Tensor

    def goes_on_in(self, inputs: Tensor) -> bool:
        begun = inputs[:, : self.inputs.shape[1]]
        return inputs.shape[1] == self.length + 1 and torch.equal(begun, self.inputs)


def prompt_ends(now: Tensor, placeholders: Tensor, head: Mapping[str, Any]) -> Tensor:
    """[B] int64: the column of each row's last prompt token.

    Args:
        now: [B, L] bool, False where padding.
        placeholders: [B, L] bool.
        head: the model's arguments. An answer begins where `labels` do, after the last image; of
            several last columns that `logits_to_keep` asks for the first is the prompt's, the
            others are drafts.
    """
    columns = torch.arange(now.shape[1], device=now.device)
    num_logits = head.get("logits_to_keep") or 0
    prompt = now & (columns <= now.shape[1] - max(1, num_logits))
    labels = head.get("labels")
    if labels is not None:
        last_image = (placeholders * columns).amax(1, keepdim=True)
        answer = (labels.to(now.device) != -100) & (columns > last_image)
        prompt = prompt & (answer.cumsum(1) == 0)
    return (prompt * columns).amax(1)


def images_of_rows(tokens_per_row: list[int], lengths: list[int]) -> list[list[int]]:
    """For each row, which encoded images its placeholders stand for.

    Images come in the order of their placeholders, row by row; generation with beams repeats rows,
    not images: a row's images then stand again in each of its copies.

    Raises:
        ValueError: placeholders and image tokens do not add up.
    """
    total, encoded = sum(tokens_per_row), sum(lengths)
    copies = total // encoded if encoded else 0
    if not encoded or total % encoded or len(tokens_per_row) % copies:
        raise ValueError(
            f"the prompt has {total} placeholders for image tokens, the images have {encoded}"
        )
    rows: list[list[int]] = []
    first = 0
    for row in range(0, len(tokens_per_row), copies):
        last, missing = first, tokens_per_row[row]
        while missing > 0 and last < len(lengths):
            missing -= lengths[last]
            last += 1
        if missing:
            raise ValueError(f"the placeholders of row {row} end within an image")
        rows += [list(range(first, last))] * copies
        first = last
    return rows
