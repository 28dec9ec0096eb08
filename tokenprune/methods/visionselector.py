"""VisionSelector: a scorer that learned which tokens matter (arXiv 2510.16598)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS = ("q_weight", "q_bias", "k_weight", "k_bias")
SCORER = "importance_scorer."  # where published checkpoints hold them


@dataclass(kw_only=True)
class VisionSelector(Method):
    r"""Keeps the tokens that a trained scorer ranks highest.

    The scorer is one head of attention without softmax and values: a token's score is the mean of
    its query's products with all keys. It is trained with the model frozen, see
    `examples/learn_selector.py`: a differentiable top-k scales the tokens by soft shares, which a
    growing penalty drives to 0 and 1.

    Attributes:
        q_weight, q_bias, k_weight, k_bias: the scorer's projections, [H, D] and [H]; D is the width
            of the tokens that enter the language model, H half of it in the published scorers of
            Qwen2.5-VL. `load` reads them.

    Formula:
        With $q_i = W_q x_i + b_q$ and $k_j = W_k x_j + b_k$ in $\mathbb{R}^H$

        $$s_i = \frac{1}{N} \sum_{j=1}^{N} \frac{q_i^\top k_j}{\sqrt{H}}
        = \frac{q_i^\top \left(W_k \bar{x} + b_k\right)}{\sqrt{H}}, \qquad
        \bar{x} = \frac{1}{N} \sum_{j=1}^{N} x_j,$$

        and the result is $\operatorname{top}_K(s)$. The mean of the keys is the key of the mean, so
        that no $N \times N$ matrix appears.

    Cost:
        $2 H D$ products per crop and $N D$ for the scores, since one vector
        $W_q^\top (W_k \bar{x} + b_k)$ takes the place of a projection per token; a sort of N.

    Fails when:
        - the scorer was trained for another model, or the projector has changed since: scores are
          then arbitrary, and nothing says so.
        - training images were unlike these: what never helped an answer there is dropped here.
        - tokens repeat: each is scored by itself, so that copies are kept together.
        - the question decides: it is not read.

    Faithful:
        The official scorer (JulietChoo/VisionSelector@800a70f) on one image: its scores agree to
        1e-5 on random inputs and its top-k is the same, compared once by hand; nothing is recorded.
        `tests/tokenprune/test_formulas.py::test_visionselector` holds the formula with its sum over
        all pairs. The official code scores all images of a call together, here each by itself, and
        in the model's dtype, here in float32 at least; it keeps $\lfloor r N \rfloor$ tokens for a
        ratio $r$.

    Example:
        ```python
        import torch

        import tokenprune

        torch.manual_seed(0)
        D, H = 64, 32
        tokens = tokenprune.VisionTokens(torch.randn(2, 576, D), grid_size=(24, 24))
        method = tokenprune.get_method(
            "visionselector",  # random weights; VisionSelector.load reads trained ones
            q_weight=torch.randn(H, D),
            q_bias=torch.zeros(H),
            k_weight=torch.randn(H, D),
            k_bias=torch.zeros(H),
        )
        assert method.reduce(tokens, num_keep=24).features.shape == (2, 24, D)
        ```
    """

    paper: ClassVar[str | None] = "2510.16598"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = "the images of a prompt are scored one by one"
    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor

    def __post_init__(self) -> None:
        if self.q_weight.ndim != 2 or self.k_weight.shape != self.q_weight.shape:
            got = f"{tuple(self.q_weight.shape)} and {tuple(self.k_weight.shape)}"
            raise ValueError(f"q_weight and k_weight must be [H, D], got {got}")
        for name, bias in (("q_bias", self.q_bias), ("k_bias", self.k_bias)):
            if bias.shape != self.q_weight.shape[:1]:
                raise ValueError(f"{name} must be [H], got {tuple(bias.shape)}")

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu", **options: Any) -> Self:
        """Reads a scorer's weights; nothing but safetensors is opened.

        Args:
            path: a `.safetensors` file, or a checkpoint's folder of them. Tensors are named
                `q_proj.weight`, `q_proj.bias`, `k_proj.weight` and `k_proj.bias`, alone or behind
                a name that ends in `importance_scorer.`, as in the published checkpoints.
            device: where the weights are to lie; elsewhere than the tokens, each call copies them.
            options: of the method.

        Raises:
            ValueError: another kind of file, or tensors that are missing.
        """
        from safetensors import safe_open

        path = Path(path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files or any(file.suffix != ".safetensors" for file in files):
            raise ValueError(f"{path} must be a .safetensors file or a folder of them")
        weights: dict[str, Any] = {}
        for file in files:
            with safe_open(file, framework="pt", device=device) as tensors:
                for name in tensors.keys():  # noqa: SIM118, it is no mapping
                    option = name.rpartition(SCORER)[2].replace("_proj.", "_")
                    if option in WEIGHTS:
                        weights[option] = tensors.get_tensor(name)
        if missing := [name for name in WEIGHTS if name not in weights]:
            raise ValueError(f"{path} must hold a scorer's {', '.join(WEIGHTS)}, lacks {missing}")
        return cls(**weights, **options)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        scores = self.scores(tokens.features.detach())
        return select_tokens(tokens, best(scores, num_keep), scores)

    def scores(self, features: Tensor) -> Tensor:
        """[B, N, D] -> [B, N] in float32 at least, differentiable in weights and features."""
        if features.shape[2] != self.q_weight.shape[1]:
            raise ValueError(
                f"the scorer is for tokens of width {self.q_weight.shape[1]}, "
                f"got {features.shape[2]}"
            )
        wide = features.to(wide_dtype(features.dtype))
        weights = [getattr(self, name).to(wide) for name in WEIGHTS]
        q_weight, q_bias, k_weight, k_bias = weights
        key = functional.linear(wide.mean(1), k_weight, k_bias) / len(k_bias) ** 0.5  # [B, H]
        return (wide @ (key @ q_weight)[:, :, None]).squeeze(2) + (key @ q_bias)[:, None]
