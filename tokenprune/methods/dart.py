"""DART: tokens that do not duplicate a few pivots (arXiv 2502.11494)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import Cut, Method, check_below
from tokenprune.ops.common.checks import check_choice, check_int, check_num_keep
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, rows, select_in_layer, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

OFFICIAL = "faithful to Chenfei-Liao/VTC-Bench@983e443"  # a copy of the authors' code


@dataclass(kw_only=True)
class DART(Method):
    r"""Keeps a few pivots, and for each of them the tokens least similar to it.

    Pivots are the tokens of largest L1 norm. The budget left is dealt out to them in equal parts,
    and one after the other, in raster order, each takes the tokens of lowest cosine similarity
    among those left.

    The paper's code works before layer 2 of the language model, with pivots in the text as well:
    `DART(official=True)`. It reads `hidden_states`, layer 1's output after the model's final norm,
    and `keys`, that layer's, of prompts with one image.

    Attributes:
        official: as the authors' code, in the language model's layers.
        layer: with `official`, before which layer tokens leave, counted from 0.
        num_pivots: before the language model, at least 1; never more than the budget.
        image_pivots, text_pivots: in a layer, how many visual tokens, which stay, and columns of
            text, which only choose.
        code: whose code `reduce_in_layer` follows: "dart", with pivots in the text after the image,
            in the order of a Python set of their columns, or "angelslim", with pivots in the text
            on both sides, by descending norm; it reads other states, and is not `official`.

    Raises:
        ValueError: options out of range; `layer` not below the number of layers when applied.

    Formula:
        With M = `num_pivots`, or K where that is less, the pivots $p_0 < \ldots < p_{M-1}$ are the
        M tokens of largest $\lVert x_i \rVert_1$, and $S = \{p_0, \ldots, p_{M-1}\}$. For
        $m = 0, \ldots, M - 1$ pivot $p_m$ adds to $S$ the

        $$k_m = \left\lfloor \tfrac{(m+1)(K-M)}{M} \right\rfloor
        - \left\lfloor \tfrac{m (K-M)}{M} \right\rfloor$$

        tokens $i \notin S$ of lowest $\cos(x_{p_m}, x_i)$. In a layer norms are those of all heads'
        keys, cosines those of hidden states, and the pivots of the text are not part of $S$.
        "angelslim" deals out $\lceil (K - M_v) / M \rceil$, $M_v$ pivots being visual tokens, until
        the budget is full.

    Cost:
        $N D$ for the norms, $M N D$ products, and M sorts of N. Memory: $M N$.

    Fails when:
        - what matters resembles a pivot: each pivot keeps what is *least* like it, so a thing that
          is neither of large norm nor unlike a pivot is not chosen.
        - several pivots lie in one region: their lists are nearly the same, and the budget goes to
          one end of the feature space.
        - norms mark artifacts: towers with register-like tokens of large norm make them pivots.
        - things are small and the ground varies: on the made-up scenes below fewer of their
          tokens are kept than by `random`.

    Faithful:
        `reduce_in_layer` keeps the tokens recorded from a copy of the authors' code in three cases,
        pivots in the recorded order, and with `code="angelslim"` those recorded from AngelSlim's in
        two (`tests/tokenprune/test_replay.py`). The order of a Python set is CPython's, no rule of
        the paper. The authors' count is $4 + 8T$; other budgets are kept exactly here. With
        `official=True` this is what `tokenprune.apply` runs, positions stay the original ones as
        there, and logits equal the whole model's with the dropped tokens masked from the layer on
        (`tests/tokenprune/test_official_layers.py`). Without it `apply` runs a variant: it looks at
        vision tokens alone, before the language model.
    """

    paper: ClassVar[str | None] = "2502.11494"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "pivots by features before the language model, not by a layer's keys and text"
    )
    official: bool = False
    layer: int = 2
    num_pivots: int = 8
    image_pivots: int = 4
    text_pivots: int = 4
    code: str = "dart"

    def __post_init__(self) -> None:
        if self.num_pivots < 1:
            raise ValueError(f"num_pivots must be at least 1, got {self.num_pivots}")
        check_int("image_pivots", self.image_pivots, low=1)
        check_int("text_pivots", self.text_pivots, low=0)
        check_choice("code", self.code, ("dart", "angelslim"))
        check_int("layer", self.layer, low=1)
        if not self.official:
            return
        if self.code != "dart":
            raise ValueError(f"official=True follows the authors' code, got code={self.code!r}")
        self.declare(
            needs=("layers",),
            reads=("hidden_states", "keys"),
            normed=True,
            query_agnostic=False,
            faithful=OFFICIAL,
            approximates=None,
        )

    def cuts(self, num_layers: int) -> list[Cut]:
        if not self.official:
            return super().cuts(num_layers)
        check_below(self.layer, num_layers)
        return [Cut(before=self.layer, ranked_in=self.layer - 1)]

    def reduce_in_layer(self, tokens: LayerTokens, num_keep: int) -> ReducedTokens:
        """Keeps the image's pivots, and what is least similar to them and to those of the text.

        Raises:
            ValueError: `num_keep` is less than the image's pivots.
        """
        check_num_keep(num_keep, tokens.num_tokens)
        left = num_keep - self.image_pivots
        if left < 0:
            raise ValueError(f"num_keep must be at least {self.image_pivots}, got {num_keep}")
        states, keys = tokens.needed("hidden_states", "keys")
        # Norms and similarities choose: they must not be rounded to 8 bits of mantissa.
        directions = functional.normalize(states.to(wide_dtype(states.dtype)), dim=2)
        kept = torch.zeros(len(states), tokens.num_tokens, dtype=torch.bool, device=states.device)
        for row, pivots in enumerate(self.pivots(tokens)):
            kept[row, [pivot - tokens.start for pivot in pivots[0]]] = True
            for turn, pivot in enumerate(pivots[1]):
                similarity = directions[row, tokens.visual] @ directions[row, pivot]
                share = self._share(left, turn, len(pivots[1]))
                free = (-similarity).masked_fill(kept[row], -torch.inf)
                kept[row, best(free[None], share)[0]] = True
        norms = norms_of(keys[:, :, tokens.visual])
        return select_in_layer(tokens, best(kept.int(), num_keep), norms)

    def pivots(self, tokens: LayerTokens) -> list[tuple[list[int], list[int]]]:
        """Of each row, the columns of the image's pivots, and of all pivots in their order."""
        (keys,) = tokens.needed("keys")
        norms = norms_of(keys)
        columns = torch.arange(tokens.length, device=norms.device)
        in_image = (columns >= tokens.start) & (columns < tokens.visual.stop)
        in_text = ~in_image if self.code == "angelslim" else columns >= tokens.visual.stop
        found = []
        for row in norms:
            image, text = (
                row.masked_fill(~there, -torch.inf)
                .argsort(descending=True, stable=True)[: min(number, int(there.sum()))]
                .tolist()
                for there, number in ((in_image, self.image_pivots), (in_text, self.text_pivots))
            )
            ordered = [*image, *text] if self.code == "angelslim" else list({*image, *text})
            found.append((image, ordered))
        return found

    def _share(self, left: int, turn: int, num_pivots: int) -> int:
        """How many of `left` tokens the pivot whose turn it is takes."""
        if self.code == "dart":
            return left * (turn + 1) // num_pivots - left * turn // num_pivots
        equal = -(-left // num_pivots)
        return min(equal, max(left - equal * turn, 0))

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        features = tokens.features.detach().to(wide_dtype(tokens.features.dtype))
        num_pivots = min(self.num_pivots, num_keep)
        norms = features.norm(p=1, dim=2)
        pivots = best(norms, num_pivots)
        directions = functional.normalize(features, dim=2)
        similarity = rows(directions, pivots) @ directions.mT  # [B, P, N]
        kept = torch.zeros_like(norms, dtype=torch.bool).scatter_(1, pivots, True)
        left = num_keep - num_pivots
        for pivot in range(num_pivots):
            share = left * (pivot + 1) // num_pivots - left * pivot // num_pivots
            taken = best((-similarity[:, pivot]).masked_fill(kept, -torch.inf), share)
            kept.scatter_(1, taken, True)
        return select_tokens(tokens, best(kept.int(), num_keep), norms)


def norms_of(keys: Tensor) -> Tensor:
    """[B, H, L, d] -> [B, L], their L1 norms over all heads."""
    return keys.to(wide_dtype(keys.dtype)).abs().sum((1, 3))
