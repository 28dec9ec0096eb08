"""ToMe: similar tokens merge until the budget is reached (arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.selection import compared_rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

KEY_LAYER = -2  # of the tower, the layer whose output LLaVA takes
OFFICIAL = "faithful to facebookresearch/ToMe@af95e4b"
AFTER_THE_TOWER = "after the tower, not inside its layers"


@dataclass(kw_only=True)
class ToMe(Method):
    r"""Merges the most similar tokens, in rounds of bipartite matching.

    The paper merges a little in every layer of the encoder and compares attention keys; by default
    all rounds come after it; see `tokenprune.ops.bipartite_merge`. `ToMe(official=True)` merges
    inside the layers of LLaVA's tower, which then runs on fewer tokens: between attention and MLP,
    by that layer's keys, with sizes in means and, as logarithms, in attention; a class token stays
    by itself. Equal numbers merge in every layer, one more in the first ones where they must. What
    merged lies in the place of its last target, in raster order.

    Attributes:
        compared: "features"; or "keys", those of the tower's second last layer, mean over heads.
            Tokens that have merged are compared by the mean of their keys.
        class_token: the patches alternate as if a class token, which never merges, stood before
            them, as in the paper's towers.
        official: as the official code, inside the tower's layers.
        impl: "auto", "reference" or "triton".

    Formula:
        A round has $n$ tokens left, in raster order. Those at even places are sources, those at odd
        places targets. With $\kappa$ the features or keys, averaged where tokens have merged,
        source $i$ finds

        $$t(i) = \arg\max_{j\ \text{odd}} \cos(\kappa_i, \kappa_j), \qquad
        \sigma_i = \cos(\kappa_i, \kappa_{t(i)}),$$

        and the $\min(n - K, \lfloor n / 2 \rfloor)$ sources of largest $\sigma_i$ merge into their
        targets. Rounds follow until $n = K$. A slot is the mean of all original tokens in it, $y_c
        = \frac{1}{|C_c|} \sum_{i \in C_c} x_i$, and `scores` is $\log |C_c|$, which ToMe adds to
        attention logits; no language model does.

    Cost:
        $n^2 D / 4$ products in a round of $n$ tokens; as $n$ halves, about $N^2 D / 3$ over all
        rounds. All pairs are never held at once.

    Fails when:
        - K is small: each round must halve what is left, so late rounds merge unlike tokens because
          nothing alike remains. Small things end as a share of their surroundings.
        - the grid has an even number of columns: sources are then the even columns in the first
          round, and two tokens of one column, however alike, cannot merge in it.
        - clusters are large and the language model does not know their size: a mean of a hundred
          tokens weighs as much as a single one.

    Faithful:
        `ToMe(compared="keys")` gives the official code's rows and sizes to 1e-4 in four cases, with
        a class token (`class_token=True`) and without, of one round and of three rounds that are
        called one by one with their own keys (`tests/tokenprune/test_replay.py`). Later rounds of
        one call differ: the official order is unmerged sources, then targets; here it stays the
        raster order. With `official=True` LLaVA says what it says with rows that are written out
        from the paper, layer by layer (`tests/tokenprune/test_merging_tower.py`).
    """

    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2210.09461"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = "features for keys; " + AFTER_THE_TOWER
    compared: str = "features"
    class_token: bool = False
    official: bool = False
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_choice("compared", self.compared, ("features", "keys"))
        if self.official:
            self.compared = "keys"
            self.declare(needs=("roots",), approximates=None, faithful=OFFICIAL)
        elif self.compared == "keys":
            self.declare(
                needs=("keys",),
                tower_layers={"keys": (KEY_LAYER,)},
                approximates=AFTER_THE_TOWER,
                faithful=OFFICIAL,
            )

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        if self.official:
            return merged_before(tokens, num_keep)
        compared = compared_rows(tokens, self.compared)
        result = ops.bipartite_merge(
            tokens.features,
            num_keep,
            compared,
            sizes=tokens.sizes,
            class_token=self.class_token,
            impl=self.impl,
        )
        return replace(result, grid_size=tokens.grid_size)


def merged_before(tokens: VisionTokens, num_keep: int) -> ReducedTokens:
    """What has merged inside the tower: each token's row in the place of its root.

    Raises:
        ValueError: another number is left.
    """
    assert tokens.roots is not None  # it is in `needs`
    roots = tokens.roots
    is_root = roots == torch.arange(roots.shape[1], device=roots.device)
    left = is_root.sum(1)
    if bool((left != num_keep).any()):
        raise ValueError(
            f"ToMe must leave {num_keep} tokens, {left.tolist()} were left inside the tower"
        )
    kept = is_root.nonzero()[:, 1].view(len(roots), num_keep)
    sizes = torch.zeros_like(roots).scatter_add(1, roots, torch.ones_like(roots))
    result = select_tokens(tokens, kept, sizes.clamp(min=1).log())
    return replace(result, assignment=roots)
