"""CDPruner: tokens that matter to the question and do not repeat (arXiv 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.tokens import ReducedTokens, VisionTokens

SMALLEST_RELEVANCE = 1e-6  # of the least relevant token, which may still be needed


@dataclass(kw_only=True)
class CDPruner(Method):
    r"""Keeps relevant tokens that differ: a determinantal point process given the text.

    Relevance weighs the kernel of similarities, whose determinant is maximized greedily. Text and
    tokens must come from one space, such as CLIP's.

    Attributes:
        impl: "auto", "reference" or "triton".

    Formula:
        With the text's embeddings $t_1 \ldots t_T \in \mathbb{R}^D$ and $\varepsilon = 10^{-6}$

        $$\rho_i = \frac{1}{T} \sum_{\tau=1}^{T} \cos(x_i, t_\tau), \qquad
        q_i = \min\!\left(1,\; \frac{\rho_i - \min_j \rho_j}
        {\max(\max_j \rho_j - \min_j \rho_j,\, \varepsilon)} + \varepsilon\right), \qquad
        L_{ij} = q_i \cos(x_i, x_j)\, q_j.$$

        Starting from $S = \varnothing$, K times

        $$S \leftarrow S \cup \left\{\arg\max_{j \notin S}
        \frac{\det L_{S \cup \{j\}}}{\det L_S}\right\}.$$

        The factors come from an incremental Cholesky decomposition; `scores` holds them.

    Cost:
        $(N + T) D$ products for the relevance, $N D$ for each row of $L$ that a choice asks for
        (about $1.25\,K$ of them at first), and $K^2 N$ for the decomposition. Memory: $K N$ for the
        factor and up to $N^2$ for rows of the kernel.

    Fails when:
        - text and tokens do not share a space: in most hosts these are the language model's word
          embeddings and the projector's outputs, whose cosines say little of relevance.
        - the question names nothing that can be seen ("Describe the image"): relevance is then
          noise, stretched to [0, 1] all the same.
        - several alike things matter: the second is nearly in the span of the first, so its factor
          is nearly zero. Counting suffers.
        - K exceeds the rank of $L$, which is at most D: the factor is 0 for all that is left, and
          the lowest indices are taken, the crop's top.

    Faithful:
        The greedy part is the paper's. The official code measures relevance in CLIP's joint space,
        takes the *negative* of the mean cosine there, and takes the kernel from the projected
        tokens; here both come from the tokens and the text as given, and the cosine keeps its sign.
        The method therefore does not reproduce the official choice, and no recorded output is
        claimed.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2506.10967"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "relevance and kernel from features and text as given, not in CLIP's joint space, and "
        "relevance is the mean cosine, not its negative"
    )
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.text is not None  # it is in `needs`
        relevance = text_relevance(tokens.features.detach(), tokens.text.detach())
        result = ops.dpp_select(tokens.features, num_keep, relevance, impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)


def text_relevance(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] -> [B, N] in (0, 1]."""
    dtype = wide_dtype(features.dtype)
    # The mean of cosines is one product with the mean of the text's directions.
    words = functional.normalize(text.to(dtype), dim=2).mean(1)
    cosine = (functional.normalize(features.to(dtype), dim=2) @ words[:, :, None]).squeeze(2)
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    span = (high - low).clamp(min=SMALLEST_RELEVANCE)
    return ((cosine - low) / span + SMALLEST_RELEVANCE).clamp(max=1)
