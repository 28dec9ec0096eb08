"""Crops on their way to the encoder: in chunks that fit the memory, the next one ready in time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from geollava.model.configuration import GeoLlavaConfig


def bytes_per_crop(config: GeoLlavaConfig, dtype: torch.dtype) -> int:
    """Largest memory that one crop takes at a time on its way through the tower, weights aside."""
    vision = config.vision_config
    tokens, size = 1 + config.grid_size[0] * config.grid_size[1], dtype.itemsize
    # The bytes, normalized in float32, and the tower's own form.
    pixels = 3 * vision.image_size**2 * (1 + 4 + (size if size != 4 else 0))
    # Residual and normalized input beside queries, keys, values and output; or those and the
    # layer's own input beside the wide layer, its activation and what that is computed from.
    attention = 6 * vision.hidden_size
    if vision._attn_implementation == "eager":  # scores before and after the softmax, in float32
        attention += vision.num_attention_heads * tokens * (8 + size) // size
    wide = 3 * (vision.hidden_size + vision.intermediate_size)
    return int(pixels + tokens * size * max(attention, wide))


def crops_within(budget: int, config: GeoLlavaConfig, dtype: torch.dtype) -> int:
    """How many crops can be encoded at a time within `budget` bytes beside the weights.

    Raises:
        ValueError: not even one.
    """
    per_crop = bytes_per_crop(config, dtype)
    if budget < per_crop:
        raise ValueError(
            f"a memory budget must hold one crop, {per_crop / 2**20:,.1f} MiB, "
            f"got {budget / 2**20:,.1f} MiB"
        )
    return min(budget // per_crop, config.max_crops)


def in_chunks(parts: Iterable[Tensor], size: int, *, pin: bool = False) -> Iterator[Tensor]:
    """[n, 3, h, w] of any n -> the same crops, `size` at a time; the last chunk may be smaller.

    Args:
        pin: into page-locked memory, from which a copy to the GPU does not hold up the CPU.
    """
    waiting: list[Tensor] = []
    count = 0

    def chunk(tensors: list[Tensor]) -> Tensor:
        joined = torch.cat(tensors)
        return joined.pin_memory() if pin else joined

    for part in parts:
        while len(part):
            taken, part = part[: size - count], part[size - count :]
            waiting.append(taken)
            count += len(taken)
            if count == size:
                yield chunk(waiting)
                waiting, count = [], 0
    if waiting:
        yield chunk(waiting)


def ahead(items: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same items, each made by another thread while the one before it is in use."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    done, stopped = object(), threading.Event()

    def put(entry: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                break

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put(item)
                if stopped.is_set():
                    break
            put(done)
        except BaseException as error:
            put(error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=produce, name="geollava-crops", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
