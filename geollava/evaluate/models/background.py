"""What covers much of a scene: its background, by the similarity of visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CLUSTERS, ITERATIONS = 8, 10


def background_prototypes(features: Tensor, clusters: int = CLUSTERS) -> Tensor:
    """Directions that stand for the background of a scene, as unit vectors [P, D], P >= 1.

    Spherical k-means from the tokens that lie farthest from each other; a center is background
    where more tokens are nearest to it than an even split would give it. Things that differ from
    all else get small clusters of their own, and are none.

    Args:
        features: [T, D] tokens of one scene.
        clusters: how many directions are looked for.
    """
    if features.ndim != 2 or len(features) < 1:
        raise ValueError(f"features must be [T, D] of at least one token, got {features.shape}")
    points = functional.normalize(features.float(), dim=1)
    center = functional.normalize(points.mean(0, keepdim=True), dim=1)
    centers = points[(points @ center.T).argmax(0)]
    for _ in range(min(clusters, len(points)) - 1):
        farthest = (points @ centers.T).amax(1).argmin()
        centers = torch.cat([centers, points[farthest, None]])
    for _ in range(ITERATIONS):
        nearest = (points @ centers.T).argmax(1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        # A center without tokens stays where it is.
        centers = torch.where(
            sums.norm(dim=1, keepdim=True) > 0, functional.normalize(sums, dim=1), centers
        )
    members = (points @ centers.T).argmax(1).bincount(minlength=len(centers))
    return centers[members >= len(points) / len(centers)]


def similarity(features: Tensor, prototypes: Tensor) -> Tensor:
    """[T] cosine of each of [T, D] tokens to the prototype [P, D] that it is nearest to."""
    return (functional.normalize(features.float(), dim=1) @ prototypes.T).amax(1)
