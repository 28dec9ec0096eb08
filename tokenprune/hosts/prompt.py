"""A prompt with images, as it enters the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.encoder import EncodedImages
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.hosts.tower import TowerValues


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


def layouts_of(
    adapter: Adapter, encoded: EncodedImages, placeholders: Tensor
) -> tuple[list[ImageLayout], list[TowerValues] | None]:
    """Layout and tower values of every image that the placeholders stand for, in their order.

    Raises:
        RuntimeError: an image has another number of tokens than its size says.
    """
    order = images_of_rows(placeholders.sum(1).tolist(), encoded.lengths)
    layouts = {size: adapter.layout(size) for size in set(encoded.sizes)}
    for number in order:
        layout = layouts[encoded.sizes[number]]
        if layout.num_tokens != encoded.lengths[number]:
            raise RuntimeError(
                f"an image of size {encoded.sizes[number]} was expected to give "
                f"{layout.num_tokens} tokens, the host made {encoded.lengths[number]}"
            )
    tower = encoded.tower
    return (
        [layouts[encoded.sizes[number]] for number in order],
        None if tower is None else [tower[number] for number in order],
    )


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


def images_of_rows(tokens_per_row: list[int], lengths: list[int]) -> list[int]:
    """Which encoded image each run of placeholders stands for.

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
    order: list[int] = []
    first = 0
    for row in range(0, len(tokens_per_row), copies):
        last, missing = first, tokens_per_row[row]
        while missing > 0 and last < len(lengths):
            missing -= lengths[last]
            last += 1
        if missing:
            raise ValueError(f"the placeholders of row {row} end within an image")
        order += list(range(first, last)) * copies
        first = last
    return order
