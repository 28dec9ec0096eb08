"""Clustering by density peaks, as several methods use it (Rodriguez and Laio, Science 2014)."""

from __future__ import annotations

import torch
from torch import Tensor


def gaps(between: Tensor, density: Tensor) -> Tensor:
    """How far the nearest denser token is.

    Args:
        between: [B, N, N] distances.
        density: [B, N]; of equally dense tokens the one of lower index counts as denser.

    Returns:
        [B, N]; of the densest token the largest distance of all.
    """
    rank = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    denser = rank[:, None] < rank[:, :, None]
    largest = between.amax((1, 2))[:, None, None]
    return torch.where(denser, between, largest).amin(2)


def density_peaks(features: Tensor, num_clusters: int, neighbors: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN: centers are dense, and far from denser tokens.

    Distances are Euclidean over sqrt(D); a token's density is exp of minus the mean square of the
    distances to its nearest tokens.

    Args:
        features: [B, N, D].
        num_clusters: C, 1 to N.
        neighbors: how many nearest tokens count for density, the token itself among them.

    Returns:
        [B, C] int64 centers by descending density times gap, and [B, N] int64, the place among the
        centers of the one that is nearest; a center is in its own cluster.
    """
    # Exactly symmetric, which products of matrices are not: two tokens may be as dense.
    exact = "donot_use_mm_for_euclid_dist"
    between = torch.cdist(features, features, compute_mode=exact) * features.shape[2] ** -0.5
    near = between.topk(min(neighbors, between.shape[2]), dim=2, largest=False).values
    density = (-near.square().mean(2)).exp()
    ranking = (density * gaps(between, density)).argsort(dim=1, descending=True, stable=True)
    centers = ranking[:, :num_clusters]
    to_centers = between.gather(1, centers[:, :, None].expand(-1, -1, between.shape[2]))
    cluster = to_centers.argmin(1)
    own = torch.arange(centers.shape[1], device=features.device).expand_as(centers)
    return centers, cluster.scatter(1, centers, own)
