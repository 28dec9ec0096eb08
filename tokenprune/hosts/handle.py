"""Handle: a reduction in effect, what it did, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied, Outcome
from tokenprune.hosts.hooks import HostHooks
from tokenprune.hosts.images import count_of
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.reduced import ReducedGrids, ReducedImages
from tokenprune.hosts.videos import Videos
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens


@dataclass(frozen=True)
class Report:
    """What the last forward with images did.

    Attributes:
        tokens_before, tokens_after: per image, or per crop: see `unit`. Rows that stand for no
            token are among the latter.
        merged: per image, tokens averaged into one that remains.
        dropped: per image, tokens of which nothing remains.
        seconds_reducing: time spent on reading attention, scoring, selecting and shortening.
        kv_cache_bytes_saved: by the shorter prompt, over all layers and rows.
        unit: "crop" where the host does not say which crops are one image's, else "image".
    """

    tokens_before: list[int]
    tokens_after: list[int]
    merged: list[int]
    dropped: list[int]
    seconds_reducing: float
    kv_cache_bytes_saved: int
    unit: str = "image"

    def __str__(self) -> str:
        lines = [f"{self.unit:>5} {'tokens':>8} {'kept':>8} {'merged':>8} {'dropped':>8}"]
        columns = (self.tokens_before, self.tokens_after, self.merged, self.dropped)
        rows = list(zip(*columns, strict=True))
        for number, row in enumerate(rows):
            lines.append(f"{number:>5}" + "".join(f" {value:>8,}" for value in row))
        if len(rows) > 1:
            lines.append("  all" + "".join(f" {sum(column):>8,}" for column in columns))
        lines.append(
            f"{1e3 * self.seconds_reducing:,.1f} ms reducing, "
            f"{self.kv_cache_bytes_saved / 2**20:,.1f} MiB of KV cache saved"
        )
        return "\n".join(lines)


class Handle:
    """A reduction in effect. A context manager; `remove()` does the same.

    What it tells is the calling thread's: several may run the model side by side.
    """

    def __init__(self, adapter: Adapter, applied: Applied, hooks: HostHooks) -> None:
        self._adapter, self._applied, self._hooks = adapter, applied, hooks

    @property
    def method(self) -> Method:
        return self._applied.method

    @property
    def budget(self) -> Budget:
        """The tokens that an image keeps."""
        return self._applied.budget

    @property
    def kept_positions(self) -> list[Tensor]:
        """After a prefill, for each row the int64 positions in the original sequence that remain.

        Without padding at its ends; logits have these columns. Rows that a method makes of several
        tokens in the layers stand where their center stood. Those that are no single token's, as
        VisionZip's class token, take the columns of the image's last dropped tokens; those made
        before the projector lie there in the method's own order. `last` says which tokens were
        kept.
        """
        return list(self._applied.last.kept_positions)

    def __enter__(self) -> Handle:
        if not self._hooks.holds(self._applied):
            raise RuntimeError("this handle was removed; apply again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Undoes everything; the model is what it was. A second call does nothing.

        A cache that was filled before goes on rightly without the handle.
        """
        self._hooks.leave(self._applied)

    def align(self, labels: Tensor, fill: int = -100) -> Tensor:
        """Labels, or anything with a column per token of the prompt, for the logits that came out.

        Args:
            labels: [B, L] of the whole prompt that went through the model last, in this thread.
            fill: where rows are padded.

        Returns:
            [B, L'], a column for each of the logits.

        Raises:
            ValueError: labels of another shape.
        """
        columns = self._applied.last.columns
        if columns is None:
            return labels
        if tuple(labels.shape) != tuple(columns.keep.shape):
            raise ValueError(
                f"labels must be {list(columns.keep.shape)}, as the prompt was, "
                f"got {list(labels.shape)}"
            )
        return columns.take(labels, fill)

    def retained_count(
        self,
        sizes: Iterable[Any],
        batch_num_images: Sequence[int] | None = None,
        *,
        videos: bool = False,
    ) -> list[int]:
        """How many tokens images or videos will keep, known before any of them is encoded.

        Args:
            sizes: one entry per image: the number of its placeholders, or its size as the model is
                given it: (frames, rows, cols) of `image_grid_thw` for Qwen-VL or (height, width)
                of the resized image, (height, width) of `image_sizes` for LLaVA-NeXT and
                -OneVision. Hosts whose images all have the same number of tokens take any entry.
            batch_num_images: images in each prompt, as the processor gives them; LLaVA-OneVision
                shows an image that is not alone in its prompt in fewer tokens.
            videos: the sizes are those of videos: (frames, rows, cols) of `video_grid_thw` for
                Qwen-VL, the number of frames for LLaVA-OneVision and LLaVA-NeXT-Video; (frames,
                tokens) elsewhere.

        Returns:
            One number per image.

        Raises:
            ValueError: `batch_num_images` does not add up to the sizes.
            NotImplementedError: videos that the host does not reduce, or a method that keeps a
                number of tokens that depends on the image.
        """
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
        if batch_num_images is not None:
            if sum(map(int, batch_num_images)) != len(sizes):
                raise ValueError(
                    f"batch_num_images must add up to the {len(sizes)} sizes, "
                    f"got {[int(count) for count in batch_num_images]}"
                )
            sizes = self._adapter.sizes_in_prompts(sizes, batch_num_images)
        source = self._adapter.videos if videos else self._adapter
        if source is None:
            raise NotImplementedError(
                f"{type(self._adapter).__name__} reduces no videos, got their sizes"
            )
        method = self._applied.method
        return [count_of(self.budget, self._layout(size, source), method) for size in sizes]

    def _layout(self, size: Any, source: Adapter | Videos) -> ImageLayout:
        if isinstance(size, Integral) or (isinstance(size, Tensor) and size.ndim == 0):
            if isinstance(source, Adapter):
                return ImageLayout.one_grid(1, int(size))
            return source.layout(int(size))
        size = None if size is None else tuple(int(value) for value in size)
        return source.layout(size)

    @property
    def last(self) -> ReducedTokens | list[ReducedTokens] | None:
        """The tokens of the last forward with images: [B images, ...].

        A list where images differ in size or in how many of their tokens remain, or consist of
        several grids; None before any came. Features of methods before the projector are projected.
        """
        outcome = self._applied.last.outcome
        if outcome is None:
            return None
        results = [result for group in outcome.images.grids for result in group.results]
        return results[0] if len(results) == 1 else results

    def report(self) -> Report:
        """What the last forward with images did.

        Raises:
            RuntimeError: no images came yet.
        """
        outcome = self.outcome()
        images = outcome.images
        merged = per_image(images, lambda group: group.merged)
        extra = per_image(images, lambda group: torch.full_like(group.merged, group.num_extra))
        before, after = images.tokens_before, images.tokens_after
        counts = zip(before, after, merged, extra, strict=True)
        return Report(
            tokens_before=before,
            tokens_after=after,
            merged=merged,
            dropped=[total - (kept - rows) - joined for total, kept, joined, rows in counts],
            seconds_reducing=sum(stopwatch.seconds for stopwatch in outcome.stopwatches),
            kv_cache_bytes_saved=outcome.cache_bytes_saved,
            unit=self._adapter.unit,
        )

    def outcome(self) -> Outcome:
        """All that is known of the last forward with images, for tools that look closer.

        Raises:
            RuntimeError: no images came yet.
        """
        outcome = self._applied.last.outcome
        if outcome is None:
            raise RuntimeError("no images have come through the model yet, there is no report")
        return outcome


def per_image(images: ReducedImages, of_grid: Callable[[ReducedGrids], Tensor]) -> list[int]:
    """`of_grid` [G] int64 of each group of grids, summed for each image."""
    owner = torch.repeat_interleave(
        torch.arange(len(images.tokens_before)), torch.tensor(images.tokens_before)
    )
    totals = torch.zeros(len(images.tokens_before), dtype=torch.int64)
    for group in images.grids:
        totals.index_add_(0, owner[group.positions[:, 0].cpu()], of_grid(group).cpu())
    return totals.tolist()
