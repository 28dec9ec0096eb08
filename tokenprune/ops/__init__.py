"""Token-reduction operators: plain functions on tensors, each with a readable reference."""

from tokenprune.ops.anchored_select.op import anchored_select
from tokenprune.ops.attention_received.op import attention_received
from tokenprune.ops.background_anchored.op import background_anchored
from tokenprune.ops.background_merge.op import background_merge
from tokenprune.ops.background_score.op import background_score
from tokenprune.ops.bipartite_merge.op import bipartite_merge
from tokenprune.ops.cls_attention.op import cls_attention
from tokenprune.ops.cluster_mean.op import cluster_mean
from tokenprune.ops.common.weights import AffinityHead, Anchor
from tokenprune.ops.greedy_select.op import (
    coverage_select,
    dpp_select,
    max_min_select,
    mmr_select,
)
from tokenprune.ops.most_similar.op import most_similar

__all__ = [
    "AffinityHead",
    "Anchor",
    "anchored_select",
    "attention_received",
    "background_anchored",
    "background_merge",
    "background_score",
    "bipartite_merge",
    "cls_attention",
    "cluster_mean",
    "coverage_select",
    "dpp_select",
    "max_min_select",
    "mmr_select",
    "most_similar",
]
