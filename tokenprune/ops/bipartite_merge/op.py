"""ops.bipartite_merge: tokens merge into their best match, round by round."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.bipartite_merge import reference
from tokenprune.ops.common.checks import (
    check_features,
    check_finite,
    check_num_keep,
    check_of_patches,
    check_shape,
)
from tokenprune.tokens import ReducedTokens


def bipartite_merge(
    features: Tensor,
    num_keep: int,
    compared: Tensor | None = None,
    *,
    sizes: Tensor | None = None,
    class_token: bool = False,
    strict: bool = False,
    impl: str = "auto",
) -> ReducedTokens:
    r"""Merges similar tokens until `num_keep` are left.

    Bipartite soft matching of ToMe (arXiv 2210.09461), repeated to a budget. In each
    round the tokens alternate, in raster order, between sources and targets; every source finds
    the target of largest cosine similarity, and the most similar sources merge into theirs. A
    merged token is the mean of all original tokens in it, which is ToMe's mean by size.

    Args:
        features: [B, N, D] patch tokens, float32, bfloat16, float16 or float64.
        num_keep: tokens to keep per crop, 1 to N.
        compared: [B, N, Dk], what similarity is measured on, and averaged where tokens merge: ToMe
            compares attention keys. The features by default.
        sizes: [B, N], what each token counts in a mean, where tokens have merged before; 1 by
            default.
        class_token: a class token, which never merges, stands before the patches, as in ToMe's
            towers: the first patch is then a target, the second a source.
        strict: raise if features or what is compared are not finite (one more read of each, and a
            synchronization on GPUs).
        impl: of `most_similar`, which matches, and of `cluster_mean`, which averages.

    Returns:
        ReducedTokens in raster order, each at its last target's place; `scores` are the logarithms
        of sizes, which ToMe adds to attention logits. Ties go to the lowest index. Differentiable
        in `features`: the gradient of a mean goes back to its members.

    Raises:
        ValueError: shapes, `num_keep`, values that are not finite when strict, an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.

    Formula:
        In a round of n tokens left those at even places are sources, those at odd places targets;
        with a class token, which counts as place 0 and stays, patches are counted from 1.
        With $\kappa$ what is compared, $t(i) = \arg\max_{j\ \text{odd}} \cos(\kappa_i, \kappa_j)$,
        and the $\min(n - K, \lfloor n / 2 \rfloor)$ sources of largest $\cos(\kappa_i,
        \kappa_{t(i)})$ merge into $t(i)$. Then $\kappa$ is averaged over each cluster, and the next
        round follows.

    Cost:
        $n^2 D / 4$ products in a round, about $N^2 D / 3$ in all.

    Backward:
        yes

    Example:
        ```python
        import torch

        from tokenprune import ops

        merged = ops.bipartite_merge(torch.randn(2, 576, 64), 24)
        assert merged.features.shape == (2, 24, 64)
        assert (merged.counts.sum(1) == 576).all()  # every token is in some slot
        ```
    """
    check_features(features)
    check_num_keep(num_keep, features.shape[1])
    if compared is not None:
        check_of_patches("compared", compared, "[B, N, Dk]", features)
    if strict:
        check_finite(features=features, compared=compared)
    if sizes is not None:
        check_shape("sizes", sizes, tuple(features.shape[:2]), "[B, N]", like=features)
    return reference.bipartite_merge(features, num_keep, compared, impl, sizes, class_token)
