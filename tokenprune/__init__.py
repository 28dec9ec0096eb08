"""Fewer visual tokens for vision-language models. Needs torch alone."""

from tokenprune import ops
from tokenprune.method import Method, get_method, list_methods
from tokenprune.tokens import ReducedTokens, VisionTokens
from tokenprune.version import __version__

__all__ = [
    "Method",
    "ReducedTokens",
    "VisionTokens",
    "__version__",
    "get_method",
    "list_methods",
    "ops",
]
