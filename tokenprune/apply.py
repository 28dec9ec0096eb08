"""apply(model, method): fewer visual tokens in any known transformers model, and back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapter import find_adapter
from tokenprune.budget import Budget
from tokenprune.hosts.hooks import HostHooks
from tokenprune.hosts.layers import check_layers
from tokenprune.hosts.reduction import ReducedImages
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.method import LayerMethod, Method, get_method
from tokenprune.tokens import ReducedTokens

POSITIONS = ("original", "compact")


def apply(
    model: nn.Module,
    method: str | Method,
    *,
    num_keep: int | None = None,
    keep_ratio: float | None = None,
    positions: str = "original",
    strict: bool = True,
) -> Handle:
    """Reduces the visual tokens of `model`, in place, until the handle is removed.

    ```python
    with tokenprune.apply(model, "divprune", keep_ratio=0.25) as handle:
        out = model.generate(**inputs, max_new_tokens=64)
    print(handle.report())
    ```

    Inputs come from the model's own processor, unchanged; `forward`, `generate` and training work
    as before, on shorter sequences: logits and hidden states have the columns that
    `handle.kept_positions` names. The model's own loss takes labels of the whole sequence; a loss
    computed outside of it, as `Trainer` does for label smoothing, takes those at `kept_positions`.
    Applied twice, the newest is in effect and the one before comes
    back when it is removed.

    Args:
        model: a transformers vision-language model, with or without its head, or a peft model
            around it. `tokenprune.adapter.Adapter` says what a host needs to be known.
        method: a name of `list_methods()`, or a `Method` with options.
        num_keep: visual tokens to keep per image; or
        keep_ratio: the share to keep, in (0, 1]. 1 keeps all, to the bit.
        positions: "original" leaves every token the position it had: the result is that of the
            whole model with the dropped tokens masked out. "compact" closes the gaps, where tokens
            leave before the language model.
        strict: raise where nothing is removed though something should be, and on features that
            are not finite.

    Raises:
        NotImplementedError: a host that no adapter knows, or that is compiled or replicated.
        ValueError, TypeError: arguments.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions must be 'original' or 'compact', got {positions!r}")
    if isinstance(method, str):
        method = get_method(method)
    elif not isinstance(method, Method):
        raise TypeError(f"method must be a name or a Method, got {type(method).__name__}")
    budget = Budget(num_keep, keep_ratio)
    model, base = unwrap(model)
    return Handle(model, base, method, budget, positions, strict)


def unwrap(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(the transformers model, the same without its head), out of a peft model where it is one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(get_base_model := getattr(model, "get_base_model", None), MethodType):
        model = get_base_model()
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise NotImplementedError(
            f"{type(model).__name__} copies the model; apply to what it wraps, model.module"
        )
    if "SequenceClassification" in type(model).__name__:
        raise NotImplementedError(
            f"{type(model).__name__} picks a column of the whole sequence, which moves"
        )
    base = getattr(model, "base_model", model)
    for module in (model, base):
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise NotImplementedError(
                "the model is compiled already and would run on without the reduction; apply "
                "first, then torch.compile it"
            )
    return model, base


@dataclass(frozen=True)
class Report:
    """What the last forward with images did.

    Attributes:
        tokens_before, tokens_after: per image, or per crop: see `unit`.
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

    Attributes:
        method: the `Method`.
        budget: the tokens an image keeps.
        kept_positions: after a prefill, for each row the int64 positions in the original sequence
            that remain, without padding at its ends; logits have these columns.
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        method: Method,
        budget: Budget,
        positions: str,
        strict: bool,
    ) -> None:
        self.method = method
        self.budget = budget
        self.positions = positions
        self.strict = strict
        self.kept_positions: list[Tensor] = []
        self._images: ReducedImages | None = None
        self._stopwatches: list[Stopwatch] = []
        self._kept_by_layer: Sequence[Tensor | None] = ()
        self._cache_bytes_saved = 0
        self._adapter = find_adapter(base)
        missing = [name for name in method.needs if name not in ("attention", "text")]
        if isinstance(method, LayerMethod):
            check_layers(self._adapter, method, positions)
        elif missing:
            raise NotImplementedError(
                f"{type(method).__name__} needs {', '.join(missing)}, apply does not hand it over"
            )
        if not strict:
            self.method = copy.copy(method)
            self.method.strict = False
        self._hooks = HostHooks.enter(model, self._adapter, self)

    def __enter__(self) -> Handle:
        if self not in self._hooks.handles:
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
        """Undoes everything; the model is what it was. A second call does nothing."""
        self._hooks.leave(self)

    def retained_count(
        self, sizes: Iterable[Any], batch_num_images: Sequence[int] | None = None
    ) -> list[int]:
        """How many tokens images will keep, known before any of them is encoded.

        Args:
            sizes: one entry per image: the number of its placeholders, or its size as the model is
                given it: (frames, rows, cols) of `image_grid_thw` for Qwen-VL or (height, width)
                of the resized image, (height, width) of `image_sizes` for LLaVA-NeXT and
                -OneVision. Hosts whose images all have the same number of tokens take any entry.
            batch_num_images: images in each prompt, as the processor gives them; LLaVA-OneVision
                shows an image that is not alone in its prompt in fewer tokens.

        Returns:
            One number per image.

        Raises:
            ValueError: `batch_num_images` does not add up to the sizes.
        """
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
        if batch_num_images is not None:
            if sum(map(int, batch_num_images)) != len(sizes):
                raise ValueError(
                    f"batch_num_images must add up to the {len(sizes)} sizes, "
                    f"got {[int(count) for count in batch_num_images]}"
                )
            sizes = self._adapter.sizes_in_prompts(sizes, batch_num_images)
        return [self.budget.kept_of(self._num_tokens(size)) for size in sizes]

    def _num_tokens(self, size: Any) -> int:
        if isinstance(size, Integral) or (isinstance(size, Tensor) and size.ndim == 0):
            return int(size)
        size = None if size is None else tuple(int(value) for value in size)
        return self._adapter.layout(size).num_tokens

    @property
    def last(self) -> ReducedTokens | list[ReducedTokens] | None:
        """The tokens of the last forward with images: [B images, ...].

        A list where images differ in size, or consist of several grids; None before any came.
        """
        if self._images is None:
            return None
        results = [group.tokens for group in self._images.grids if group.tokens is not None]
        return results[0] if len(results) == 1 else results

    def report(self) -> Report:
        """What the last forward with images did.

        Raises:
            RuntimeError: no images came yet.
        """
        images = self._images
        if images is None:
            raise RuntimeError("no images have come through the model yet, there is no report")
        merged = merged_per_image(images)
        before, after = images.tokens_before, images.tokens_after
        counts = zip(before, after, merged, strict=True)
        return Report(
            tokens_before=before,
            tokens_after=after,
            merged=merged,
            dropped=[total - kept - joined for total, kept, joined in counts],
            seconds_reducing=sum(stopwatch.seconds for stopwatch in self._stopwatches),
            kv_cache_bytes_saved=self._cache_bytes_saved,
            unit=self._adapter.unit,
        )

    def _note(
        self,
        images: ReducedImages,
        kept_positions: list[Tensor],
        stopwatches: list[Stopwatch],
        kept_by_layer: Sequence[Tensor | None] = (),
    ) -> None:
        """`kept_by_layer`: [B, L] bool for each layer, where tokens leave between them."""
        self._images, self.kept_positions, self._stopwatches = images, kept_positions, stopwatches
        self._kept_by_layer = kept_by_layer
        self._cache_bytes_saved = 0

    def _note_cache(self, cache: Any, removed: Sequence[int]) -> None:
        """`removed`: for each layer, the columns that it would hold beside those it holds."""
        for layer, columns in zip(cache.layers, removed, strict=False):
            if layer.keys is None:  # made, but not used: nothing was cached
                continue
            rows, _, held, _ = layer.keys.shape
            per_column = sum(
                states.shape[1] * states.shape[3] * states.element_size()
                for states in (layer.keys, layer.values)
            )
            window = getattr(layer, "sliding_window", None)
            without = held + columns if window is None else min(held + columns, window - 1)
            self._cache_bytes_saved += rows * per_column * max(0, without - held)


def merged_per_image(images: ReducedImages) -> list[int]:
    """Tokens that are part of a kept token's mean without being that token."""
    owner = torch.repeat_interleave(
        torch.arange(len(images.tokens_before)), torch.tensor(images.tokens_before)
    )
    merged = torch.zeros(len(images.tokens_before), dtype=torch.int64)
    for group in images.grids:
        if group.tokens is None:
            continue
        tokens = group.tokens
        roots = torch.zeros_like(tokens.assignment, dtype=torch.bool)
        roots.scatter_(1, tokens.keep_indices, tokens.valid)
        kept = torch.zeros_like(roots).scatter_(1, tokens.keep_indices, True)
        joined = roots.gather(1, tokens.assignment) & ~kept
        crops = owner[group.positions[:, 0].cpu()]
        merged.index_add_(0, crops, joined.sum(1).cpu())
    return merged.tolist()
