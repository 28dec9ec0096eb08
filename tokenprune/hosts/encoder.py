"""What is seen where the host encodes its images: their sizes, and the tower's attention."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.attention import AttentionReader
from tokenprune.hosts.compat import image_features
from tokenprune.hosts.stopwatch import Stopwatch


@dataclass(frozen=True)
class EncodedImages:
    """What `get_image_features` was given and gave.

    Attributes:
        sizes: one per image, as the adapter's `layout` takes them.
        lengths: tokens of each image.
        attention: for each image [tokens in its grids] float32, or None where no one asked.
        output: weak reference to what the host passes on as `mm_encoder_outputs`.
        stopwatches: time spent on reading attention.
        features: of an output, as `Adapter.features` takes them.
    """

    sizes: Sequence[Any]
    lengths: list[int]
    attention: list[Tensor] | None
    output: Callable[[], Any]
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
    """`get_image_features`, unchanged but that it tells `report` what passed through.

    It stands in the model as an attribute, so it also is what refuses to be copied: a copy of the
    model would go on calling the original's tower.
    """

    def __init__(
        self,
        adapter: Adapter,
        get_image_features: Callable[..., Any],
        wants_attention: Callable[[], bool],
        input_ids: Callable[[], Tensor | None],
        report: Callable[[EncodedImages], None],
    ) -> None:
        # generate() picks the arguments of this function by its signature.
        functools.update_wrapper(self, get_image_features)
        self._adapter = adapter
        self._encode = get_image_features
        self._wants_attention = wants_attention
        self._input_ids = input_ids
        self._report = report
        self._signature = inspect.signature(get_image_features)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        arguments = {**bound.pop("kwargs", {}), **bound}
        adapter, wanted = self._adapter, self._wants_attention()
        # Who wants no attention needs no tower, which not every host has.
        reader = AttentionReader(adapter.num_prefix_tokens if wanted else 0)
        with reader.reading(adapter.attention_layer) if wanted else nullcontext():
            output = self._encode(*args, **kwargs)
        features = adapter.per_image(adapter.features(output), arguments)
        lengths, sizes = (
            adapter.lengths(features),
            adapter.sizes(arguments, features, self._input_ids()),
        )
        attention = adapter.token_attention(reader.joined(), sizes) if wanted else None
        self._report(
            EncodedImages(
                sizes,
                lengths,
                attention,
                reference_to(output),
                reader.stopwatches,
                adapter.features,
            )
        )
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(
            "a model cannot be copied or pickled while a reduction is applied; remove it first"
        )


def parts_of(features: Any) -> Sequence[Tensor]:
    """All features that an encoder gave, of one image or more in each part."""
    return [features] if isinstance(features, Tensor) else features


def reference_to(output: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(output)
    except TypeError:  # a plain tuple: nothing that generate() could pass on
        return lambda: None
