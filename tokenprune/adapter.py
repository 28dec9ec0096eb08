"""The former place of `tokenprune.Adapter`, for one release."""

import warnings

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.layout import ImageLayout, TokenGrid
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.tower_of_host import layer_before, pool_patches, tower_layers

__all__ = [
    "Adapter",
    "ImageLayout",
    "TokenGrid",
    "find_adapter",
    "layer_before",
    "pool_patches",
    "tower_layers",
]

warnings.warn(
    "tokenprune.adapter has moved: take Adapter, ImageLayout and TokenGrid from tokenprune; the "
    "old name goes in the next release",
    DeprecationWarning,
    stacklevel=2,
)
