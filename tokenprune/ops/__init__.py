"""Token-reduction operators: plain functions on tensors, each with a readable reference."""

from tokenprune.ops.anchored_select.op import anchored_select
from tokenprune.ops.attention_received.op import attention_received
from tokenprune.ops.background_anchored.op import background_anchored
from tokenprune.ops.background_merge.op import background_merge
from tokenprune.ops.background_score.op import background_score
from tokenprune.ops.cls_attention.op import cls_attention

__all__ = [
    "anchored_select",
    "attention_received",
    "background_anchored",
    "background_merge",
    "background_score",
    "cls_attention",
]
