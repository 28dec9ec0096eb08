"""Fewer visual tokens for vision-language models. Needs torch alone."""

import warnings

from tokenprune.namesake import refuse_namesake

refuse_namesake()
# PyTorch says so when it is imported without NumPy, which nothing here needs. A NumPy that is there
# and does not load has another message, which is shown.
warnings.filterwarnings("ignore", "Failed to initialize NumPy: No module named", UserWarning)

# ruff: noqa: E402
from tokenprune import ops
from tokenprune.chain import Chain
from tokenprune.config import ReductionConfig
from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.apply import apply
from tokenprune.hosts.handle import Handle, Report
from tokenprune.hosts.layout import ImageLayout, TokenGrid
from tokenprune.hosts.listing import Host, list_hosts
from tokenprune.hosts.profile import profile
from tokenprune.hosts.profiling.report import ProfileReport, ProfileRow
from tokenprune.hosts.training import AlignedLabels
from tokenprune.hosts.verify import verify
from tokenprune.hosts.verifying.report import Check, VerifyReport
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import LayerMethod, Method, get_method, list_methods, method_class
from tokenprune.tokens import ReducedTokens, VisionTokens
from tokenprune.version import __version__

__all__ = [
    "Adapter",
    "AlignedLabels",
    "Chain",
    "Check",
    "Handle",
    "Host",
    "ImageLayout",
    "LayerMethod",
    "LayerTokens",
    "Method",
    "ProfileReport",
    "ProfileRow",
    "ReducedTokens",
    "ReductionConfig",
    "Report",
    "TokenGrid",
    "VerifyReport",
    "VisionTokens",
    "__version__",
    "apply",
    "get_method",
    "list_hosts",
    "list_methods",
    "method_class",
    "ops",
    "profile",
    "verify",
]
