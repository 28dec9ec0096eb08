"""What is seen where the host encodes its images: their sizes, and what the tower tells."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.compiler import disable

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied
from tokenprune.hosts.compat import image_features
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.hosts.tower import Need, TowerReader, TowerValues
from tokenprune.hosts.videos import Videos
from tokenprune.method import OF_TOWER, Method


@dataclass(frozen=True)
class EncodedImages:
    """What `get_image_features` was given and gave.

    Attributes:
        sizes: one per image, as the adapter's `layout` takes them.
        lengths: tokens of each image.
        tower: for each image what was read of the tower, or None where no one asked.
        output: weak reference to what the host passes on as `mm_encoder_outputs`.
        needs: what `tower` was read for.
        stopwatches: time spent on reading it.
        features: of an output, as `Adapter.features` takes them.
    """

    sizes: Sequence[Any]
    lengths: list[int]
    tower: list[TowerValues] | None
    output: Callable[[], Any]
    needs: Sequence[Need] = ()
    stopwatches: Sequence[Stopwatch] = ()
    features: Callable[[Any], Any] = image_features

    def is_of(self, output: Any) -> bool:
        """Whether these images are those of `output`, itself or copied to another device."""
        known = self.output()
        if known is None or known is output:
            return known is output
        ours, theirs = parts_of(self.features(known)), parts_of(self.features(output))
        return len(ours) == len(theirs) and all(
            one.shape == other.shape and torch.equal(one.to(other.device), other)
            for one, other in zip(ours, theirs, strict=True)
        )

    def has_piece(self, output: Any) -> bool:
        """Whether `output` holds some of these images' tokens, and not all."""
        known = self.output()
        if known is None:
            return False
        ours, theirs = (
            torch.cat([part.reshape(-1, part.shape[-1]) for part in parts_of(self.features(one))])
            for one in (known, output)
        )
        first = theirs[:1].to(ours.device)
        return len(theirs) < len(ours) and bool((ours == first).all(-1).any())


class WatchedEncoder:
    """`get_image_features`, or that of videos, which tells `report` what passed through.

    It is unchanged but for that. One that the other calls tells nothing.

    It stands in the model as an attribute, so it also is what refuses to be copied: a copy of the
    model would go on calling the original's tower.
    """

    def __init__(
        self,
        adapter: Adapter,
        source: Adapter | Videos,
        encode: Callable[..., Any],
        applied: Callable[[], Applied],
        input_ids: Callable[[], Tensor | None],
        report: Callable[[EncodedImages], None],
    ) -> None:
        # generate() picks the arguments of this function by its signature.
        functools.update_wrapper(self, encode)
        self._adapter, self._source = adapter, source
        self._encode = encode
        self._encode_uncompiled = disable(encode)
        self._applied = applied
        self._input_ids = input_ids
        self._report = report
        self._signature = inspect.signature(encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _encoding.get():  # videos go through get_image_features in some hosts
            return self._encode(*args, **kwargs)
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        arguments = {**bound.pop("kwargs", {}), **bound}
        source, applied = self._source, self._applied()
        method = applied.method
        refuse_needs_of_videos(method, source)
        reader = TowerReader(self._adapter, source, method, applied.budget)
        # A compiled tower does not call the hooks of its linear layers.
        encode = self._encode_uncompiled if reader.has_hooks else self._encode
        token = _encoding.set(True)
        try:
            with reader.reading():
                output = encode(*args, **kwargs)
        finally:
            _encoding.reset(token)
        features = source.per_image(source.features(output), arguments)
        lengths, sizes = (
            source.lengths(features),
            source.sizes(arguments, features, self._input_ids()),
        )
        tower = reader.values(output, arguments, sizes)
        self._report(
            EncodedImages(
                sizes,
                lengths,
                tower,
                reference_to(output),
                reader.needs,
                reader.stopwatches,
                source.features,
            )
        )
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(
            "a model cannot be copied or pickled while a reduction is applied; remove it first"
        )


_encoding: ContextVar[bool] = ContextVar("encoding", default=False)


def refuse_needs_of_videos(method: Method, source: Adapter | Videos) -> None:
    """
    Raises:
        NotImplementedError: the method needs of videos what is handed over for images alone.
    """
    if isinstance(source, Videos) and method.by_crop:
        raise NotImplementedError(
            f"{type(method).__name__} shares an image's budget over its crops, videos have none"
        )
    missing = [name for name in OF_TOWER if name in method.needs and name not in source.offers]
    if missing and isinstance(source, Videos):
        raise NotImplementedError(
            f"{type(method).__name__} needs {', '.join(missing)} of the tower, which "
            f"{type(source.adapter).__name__} hands over for images, not for videos"
        )


def parts_of(features: Any) -> Sequence[Tensor]:
    """All features that an encoder gave, of one image or more in each part."""
    return [features] if isinstance(features, Tensor) else features


def reference_to(output: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(output)
    except TypeError:  # a plain tuple: nothing that generate() could pass on
        return lambda: None
