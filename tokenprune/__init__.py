"""Fewer visual tokens for vision-language models. Needs torch alone."""

from tokenprune.namesake import refuse_namesake

refuse_namesake()

# ruff: noqa: E402
from tokenprune import ops
from tokenprune.apply import Handle, apply
from tokenprune.chain import Chain
from tokenprune.hosts.verify import VerifyReport, verify
from tokenprune.method import LayerMethod, Method, get_method, list_methods, method_class
from tokenprune.tokens import ReducedTokens, VisionTokens
from tokenprune.version import __version__

__all__ = [
    "Chain",
    "Handle",
    "LayerMethod",
    "Method",
    "ReducedTokens",
    "VerifyReport",
    "VisionTokens",
    "__version__",
    "apply",
    "get_method",
    "list_methods",
    "method_class",
    "ops",
    "verify",
]
