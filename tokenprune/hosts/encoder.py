"""What is seen where the host encodes its images: their sizes, and the tower's attention."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune import ops
from tokenprune.adapter import Adapter
from tokenprune.hosts.compat import attention_functions, attention_implementation, image_features
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
    """

    sizes: Sequence[Any]
    lengths: list[int]
    attention: list[Tensor] | None
    output: Callable[[], Any]
    stopwatches: Sequence[Stopwatch] = ()

    def is_of(self, output: Any) -> bool:
        """Whether these images are those of `output`, itself or copied to another device."""
        known = self.output()
        if known is None or known is output:
            return known is output
        ours, theirs = image_features(known)[0], image_features(output)[0]
        return ours.shape == theirs.shape and torch.equal(ours.to(theirs.device), theirs)


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
        report: Callable[[EncodedImages], None],
    ) -> None:
        # generate() picks the arguments of this function by its signature.
        functools.update_wrapper(self, get_image_features)
        self._adapter = adapter
        self._encode = get_image_features
        self._wants_attention = wants_attention
        self._report = report
        self._signature = inspect.signature(get_image_features)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        arguments = {**bound.pop("kwargs", {}), **bound}
        adapter, wanted = self._adapter, self._wants_attention()
        reader = AttentionReader(adapter.num_prefix_tokens)
        with reader.reading(adapter.attention_layer) if wanted else nullcontext():
            output = self._encode(*args, **kwargs)
        lengths = adapter.lengths(image_features(output))
        sizes = adapter.sizes(arguments, len(lengths))
        attention = adapter.token_attention(reader.joined(), sizes) if wanted else None
        self._report(
            EncodedImages(sizes, lengths, attention, reference_to(output), reader.stopwatches)
        )
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(
            "a model cannot be copied or pickled while a reduction is applied; remove it first"
        )


def reference_to(output: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(output)
    except TypeError:  # a plain tuple: nothing that generate() could pass on
        return lambda: None


class AttentionReader:
    """The attention that each patch receives in one layer, in O(patches) memory.

    Args:
        num_prefix_tokens: 1 where the tower has a class token; then its row is read, else the mean
            over all queries.
    """

    def __init__(self, num_prefix_tokens: int) -> None:
        self.num_prefix_tokens = num_prefix_tokens
        self.parts: list[Tensor] = []
        self.stopwatches: list[Stopwatch] = []

    def joined(self) -> Tensor:
        """[crops, patches] of one call; calls image by image are joined to [1, patches]."""
        if not self.parts:
            raise RuntimeError("the attention layer was not reached, its scores cannot be read")
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, dim=1)

    @contextmanager
    def reading(self, layer: nn.Module) -> Iterator[None]:
        """For as long as it lasts, queries and keys of `layer` pass by us on their way."""
        implementation = attention_implementation(layer)
        if "flash" in implementation:
            # Its packed form takes all images in one call; this one layer runs image by image.
            implementation = "sdpa"
        eager = getattr(sys.modules[type(layer).__module__], "eager_attention_forward", None)
        attend = attention_functions().get_interface(implementation, eager)

        def passing_by(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            self._read(query, key, kwargs.get("scaling"))
            return attend(module, query, key, value, *args, **kwargs)

        with attention_exchanged(layer, passing_by):
            yield

    @torch.no_grad()
    def _read(self, query: Tensor, key: Tensor, scale: float | None) -> None:
        with Stopwatch(query.device) as stopwatch:
            if self.num_prefix_tokens:
                received = ops.cls_attention(query, key, scale=scale)
            else:
                received = ops.attention_received(query, key, scale=scale) / key.shape[2]
            self.parts.append(received.mean(1)[:, self.num_prefix_tokens :])
        self.stopwatches.append(stopwatch)


@contextmanager
def attention_exchanged(layer: Any, function: Callable[..., Any]) -> Iterator[None]:
    """For as long as it lasts, `layer` attends by `function`, and no other layer does.

    Only this layer's own configuration is exchanged, for one that names the function.
    """
    functions, config = attention_functions(), layer.config
    name = f"tokenprune_reads_attention_{id(function)}"  # readers may run side by side
    exchanged = copy.copy(config)
    exchanged._attn_implementation_internal = name
    functions[name] = function
    layer.config = exchanged
    try:
        yield
    finally:
        layer.config = config
        del functions[name]
