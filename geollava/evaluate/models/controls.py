"""Controls: ways to spend the same number of visual tokens that no method of tokenprune is.

`smaller_image` reduces no token: the image is shrunk to as many crops as give the same number.
`background_pruned` averages windows to twice the number per crop, and drops the half of the image's
tokens that resembles its background most, wherever it lies (the pilot of arXiv 2505.21375);
`random_pruned` drops any half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geollava.evaluate.models.background import background_prototypes, similarity
from geollava.model.token_reduction import ReducedTokens

SMALLER_IMAGE, BACKGROUND_PRUNED, RANDOM_PRUNED = (
    "smaller_image",
    "background_pruned",
    "random_pruned",
)
PRUNED = (BACKGROUND_PRUNED, RANDOM_PRUNED)
NAMES = (SMALLER_IMAGE, *PRUNED)


def method_of(name: str, num_keep: int, num_tokens: int) -> tuple[str, int]:
    """The method under a control and what it keeps of each crop; other names are methods."""
    if name == SMALLER_IMAGE:
        return "uniform", num_tokens
    if name in PRUNED:
        return "spatial_pool", min(2 * num_keep, num_tokens)
    return name, num_keep


def remaining(name: str, kept: ReducedTokens, num_keep: int) -> Tensor:
    """[C, K] bool: which of a scene's kept tokens remain, `num_keep` per crop on average."""
    crops, slots = kept.valid.shape
    if name not in PRUNED or slots <= num_keep:
        return torch.ones_like(kept.valid)
    features = kept.features.flatten(0, 1)
    if name == BACKGROUND_PRUNED:
        rank = similarity(features, background_prototypes(features))
    else:
        generator = torch.Generator().manual_seed(crops)
        rank = torch.rand(len(features), generator=generator).to(features.device)
    best = rank.argsort(stable=True)[: crops * num_keep]
    return torch.zeros_like(kept.valid).flatten().index_fill(0, best, True).view(crops, slots)
