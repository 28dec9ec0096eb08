"""What is seen where the host encodes its images: their sizes, and the tower's attention."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune import ops
from tokenprune.adapter import Adapter

_ATTENTION_NAME = "tokenprune_reads_attention"


@dataclass(frozen=True)
class EncodedImages:
    """What `get_image_features` was given and gave.

    Attributes:
        sizes: one per image, as the adapter's `layout` takes them.
        lengths: tokens of each image.
        attention: for each image [tokens in its grids] float32, or None where no one asked.
        output: weak reference to what the host passes on as `mm_encoder_outputs`.
    """

    sizes: Sequence[Any]
    lengths: list[int]
    attention: list[Tensor] | None
    output: Callable[[], Any]

    def is_of(self, output: Any) -> bool:
        """Whether these images are those of `output`, itself or copied to another device."""
        known = self.output()
        if known is None or known is output:
            return known is output
        ours, theirs = image_features(known)[0], image_features(output)[0]
        return ours.shape == theirs.shape and torch.equal(ours.to(theirs.device), theirs)


def watch_encoder(
    adapter: Adapter,
    get_image_features: Callable[..., Any],
    wants_attention: Callable[[], bool],
    report: Callable[[EncodedImages], None],
) -> Callable[..., Any]:
    """`get_image_features`, unchanged but that it tells `report` what passed through."""
    signature = inspect.signature(get_image_features)

    # generate() picks the arguments of this function by its signature.
    @functools.wraps(get_image_features)
    def watched(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(*args, **kwargs).arguments
        arguments = {**bound.pop("kwargs", {}), **bound}
        if not wants_attention():
            output, received = get_image_features(*args, **kwargs), None
        else:
            with attention_of(adapter.attention_layer, adapter.num_prefix_tokens) as parts:
                output = get_image_features(*args, **kwargs)
            received = join_attention(parts)
        lengths = adapter.lengths(image_features(output))
        sizes = adapter.sizes(arguments, len(lengths))
        attention = None if received is None else adapter.token_attention(received, sizes)
        report(EncodedImages(sizes, lengths, attention, reference_to(output)))
        return output

    return watched


def image_features(output: Any) -> Any:
    """The features per image: a list, tuple or tensor of [tokens, D]."""
    return output.pooler_output if hasattr(output, "pooler_output") else output[1]


def reference_to(output: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(output)
    except TypeError:  # a plain tuple: nothing that generate() could pass on
        return lambda: None


def join_attention(parts: list[Tensor]) -> Tensor:
    """One call of the layer gives [crops, patches]; a call per image is joined to [1, patches]."""
    if not parts:
        raise RuntimeError("the attention layer was not reached, its scores cannot be read")
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@contextmanager
def attention_of(layer: nn.Module, num_prefix_tokens: int) -> Iterator[list[Tensor]]:
    """Collects the attention that each patch receives in `layer`, in O(patches) memory.

    Only this layer's own configuration is exchanged, for as long as the context lasts: its queries
    and keys pass through a function of ours on their way to the implementation that was set.

    Yields:
        A list that fills with [crops, patches] float32 per call: the class token's row where there
        is one, else the mean over all queries; mean over heads; prefix tokens taken out.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = layer.config
    implementation = config._attn_implementation
    if "flash" in implementation:
        # Its packed form takes all images in one call; this one layer runs image by image.
        implementation = "sdpa"
    eager = getattr(sys.modules[type(layer).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    parts: list[Tensor] = []

    def reading(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        with torch.no_grad():
            scale = kwargs.get("scaling")
            if num_prefix_tokens:
                received = ops.cls_attention(query, key, scale=scale)
            else:
                received = ops.attention_received(query, key, scale=scale) / key.shape[2]
            parts.append(received.mean(1)[:, num_prefix_tokens:])
        return attend(module, query, key, value, *args, **kwargs)

    reading_config = copy.copy(config)
    ALL_ATTENTION_FUNCTIONS[_ATTENTION_NAME] = reading
    reading_config._attn_implementation_internal = _ATTENTION_NAME
    layer.config = reading_config
    try:
        yield parts
    finally:
        layer.config = config
        del ALL_ATTENTION_FUNCTIONS[_ATTENTION_NAME]
