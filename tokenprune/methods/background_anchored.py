"""Background Token Pruning and Anchored Token Selection of GeoLLaVA-8K (arXiv 2505.21375)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class BackgroundAnchored(Method):
    r"""Merges each token into its strongest neighbor, keeps the clusters the class token looks for.

    Two stages: background merging makes clusters of the grid, anchored selection keeps the K that
    answer best to the class token, each as the mean of its tokens. A crop with fewer than K
    clusters leaves slots empty.

    Attributes:
        dw_weight, pw_weight, pw_bias: the affinity head, [D, 1, 3, 3], [9, D, 1, 1] and [9].
        q_weight, q_bias, k_weight, k_bias: the anchor's projections, [D, D] and [D]. The released
            model passes the value projection of an encoder layer as `k_weight`.
        max_iters: doublings of the pointers under `cycles="official"`.
        cycles: "official" leaves two tokens that point at each other two roots; "merge" joins
            every cycle into one cluster.
        assignment: "hard" as published; "straight_through" and "soft" give the head a gradient.
        temperature: of the softmax over neighbors under the latter two.
        impl: "auto", "reference" or "triton".

    Formula:
        *Affinity.* A depth-wise and a point-wise convolution give each token nine logits, one per
        offset $o \in \{-1, 0, 1\}^2$, with zeros beyond the border:

        $$\ell_{i,o} = \beta_o + \sum_{c=1}^{D} P_{o,c} \sum_{t \in \{-1,0,1\}^2}
        W_{c,t}\, x_{i+t,\,c}, \qquad W \in \mathbb{R}^{D \times 3 \times 3},\;
        P \in \mathbb{R}^{9 \times D}.$$

        *Pointers.* With $w_i = \operatorname{softmax}_o(\ell_{i,o})$ and $n(i, o)$ the cell at
        offset $o$, clamped to the grid, each token points at
        $p(i) = \arg\max_j \sum_{o:\, n(i,o) = j} w_{i,o}$, the lowest cell among equals.

        *Roots.* The pointers are followed by doubling: $r_0 = p$, $r_{t+1}(i) = r_t(r_t(i))$. The
        root of token $i$ is $r(i) = r_T(i)$ with $T$ = `max_iters`, so $2^T$ steps.

        *Selection.* With $C_c = \{i : r(i) = c\}$ and the class token $z \in \mathbb{R}^D$

        $$m_c = \frac{1}{|C_c|} \sum_{i \in C_c} x_i, \qquad
        s_c = \frac{(W_q z + b_q)^\top (W_k m_c + b_k)}{\sqrt{D}},$$

        and the result is $m_c$ for the K clusters of highest $s_c$.

    Cost:
        $81\,N D$ products for the affinity, $T N$ steps for the roots, $D^2 + N D$ for the scores
        (one vector per crop takes the place of a projection per token), and a sort of $N$. Only the
        K kept clusters are averaged. No $N \times N$ matrix appears.

    Fails when:
        - the affinity head is not trained for the tower. The published head ends in an argmax and
          gets no gradient; with random weights clusters are arbitrary, as the measured rows show.
          `assignment="straight_through"` trains it.
        - a small thing points into the ground beside it: its tokens are averaged away.
        - the ground flows together into fewer than K clusters. Slots then stay empty, and a
          language model with a fixed count reads them all the same.
        - the class token does not look for small things: a cluster that scores low leaves the
          crop with all its tokens.

    Faithful:
        Equal to recorded outputs of the published implementation: pointers, roots and kept clusters
        exactly, logits, scores and means to 1e-5
        (`tests/tokenprune/test_golden.py::test_all_in_one`,
        `tests/tokenprune/test_golden.py::test_as_a_method`).

    Example:
        ```python
        import torch

        import tokenprune

        torch.manual_seed(0)
        D = 64
        tokens = tokenprune.VisionTokens(
            torch.randn(2, 576, D), grid_size=(24, 24), cls=torch.randn(2, D)
        )
        method = tokenprune.get_method(
            "background_anchored",  # random weights; a checkpoint brings its own
            dw_weight=torch.randn(D, 1, 3, 3),
            pw_weight=torch.randn(9, D, 1, 1),
            pw_bias=torch.zeros(9),
            q_weight=torch.randn(D, D),
            q_bias=torch.zeros(D),
            k_weight=torch.randn(D, D),
            k_bias=torch.zeros(D),
        )
        reduced = method.reduce(tokens, num_keep=24)
        assert reduced.features.shape == (2, 24, D)
        assert reduced.valid.all()  # noise makes more clusters than 24
        ```
    """

    needs: ClassVar[tuple[str, ...]] = ("cls",)
    merges: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2505.21375"
    faithful: ClassVar[str | None] = "faithful to GeoLLaVA-8K as published"
    dw_weight: Tensor
    pw_weight: Tensor
    pw_bias: Tensor
    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    max_iters: int = 12
    cycles: str = "official"
    assignment: str = "hard"
    temperature: float = 1.0
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.cls is not None  # it is in `needs`
        return ops.background_anchored(
            tokens.features,
            tokens.cls,
            tokens.grid_size,
            ops.AffinityHead(self.dw_weight, self.pw_weight, self.pw_bias),
            ops.Anchor(self.q_weight, self.q_bias, self.k_weight, self.k_bias),
            num_keep,
            max_iters=self.max_iters,
            cycles=self.cycles,
            assignment=self.assignment,
            temperature=self.temperature,
            impl=self.impl,
        )
