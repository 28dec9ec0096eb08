"""CDPruner: tokens that matter to the question and do not repeat (arXiv 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.tokens import ReducedTokens, VisionTokens

SMALLEST_RELEVANCE = 1e-6  # of the least relevant token, which may still be needed


@dataclass(kw_only=True)
class CDPruner(Method):
    r"""Keeps relevant tokens that differ: a determinantal point process given the text.

    Relevance weighs the kernel of similarities, whose determinant is maximized greedily.

    Attributes:
        text: "embeddings", relevance is how like the question's embeddings a token is; or "joint",
            as the official code has it: how *unlike* the question a token is in the joint space of
            a contrastive model, `VisionTokens.image_embeds` and `text_embeds`, which no host hands
            over.
        impl: "auto", "reference" or "triton".

    Formula:
        With the text's embeddings $t_1 \ldots t_T$, the tokens $u_i$ in their space (the features
        $x_i$ themselves, or `image_embeds`) and $\varepsilon = 10^{-6}$

        $$\rho_i = \pm \frac{1}{T} \sum_{\tau=1}^{T} \cos(u_i, t_\tau), \qquad
        q_i = \min\!\left(1,\; \frac{\rho_i - \min_j \rho_j}
        {\max(\max_j \rho_j - \min_j \rho_j,\, \varepsilon)} + \varepsilon\right), \qquad
        L_{ij} = q_i \cos(x_i, x_j)\, q_j,$$

        plus for "embeddings", minus for "joint". Starting from $S = \varnothing$, K times

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
        `CDPruner(text="joint")` keeps the tokens recorded from the official code in four cases
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`).
        Relevance goes from the least to the most relevant token of a crop, in the official code of
        the whole batch. The default is a variant, for hosts without a joint space: relevance is the
        mean cosine to the language model's embeddings, and keeps its sign.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2506.10967"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "relevance from the language model's embeddings, not in CLIP's joint space, and it is the "
        "mean cosine, not its negative"
    )
    text: str = "embeddings"
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_choice("text", self.text, ("embeddings", "joint"))
        if self.text == "joint":
            self.declare(
                needs=("image_embeds", "text_embeds"),
                faithful="faithful to Theia-4869/CDPruner@9541616",
                approximates=None,
            )

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        if self.text == "joint":
            assert tokens.image_embeds is not None  # they are in `needs`
            assert tokens.text_embeds is not None
            likeness = -text_likeness(tokens.image_embeds.detach(), tokens.text_embeds.detach())
        else:
            assert tokens.text is not None
            likeness = text_likeness(tokens.features.detach(), tokens.text.detach())
        result = ops.dpp_select(tokens.features, num_keep, stretched(likeness), impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)


def text_likeness(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] -> [B, N], the mean cosine."""
    dtype = wide_dtype(features.dtype)
    # The mean of cosines is one product with the mean of the text's directions.
    words = functional.normalize(text.to(dtype), dim=2).mean(1)
    return (functional.normalize(features.to(dtype), dim=2) @ words[:, :, None]).squeeze(2)


def stretched(likeness: Tensor) -> Tensor:
    """[B, N] -> [B, N] in (0, 1], from the least to the most of a crop."""
    low, high = likeness.amin(1, keepdim=True), likeness.amax(1, keepdim=True)
    span = (high - low).clamp(min=SMALLEST_RELEVANCE)
    return ((likeness - low) / span + SMALLEST_RELEVANCE).clamp(max=1)
