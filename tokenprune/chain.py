"""Chain: one method after the other, with a budget for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tokenprune.method import LayerMethod, Method
from tokenprune.tokens import ReducedTokens, VisionTokens


class Chain(Method):
    """Reduces by each stage in turn: `Chain(FasterVLM(), ToMe(), budgets=[0.5])`.

    A later stage receives the tokens that the one before kept or merged, as a grid of one row, with
    the attention at their places, and the class token and text as they are. It averages what it
    receives: a mean of means where both merge. It needs, and depends on, what any stage does.

    Args:
        stages: at least one method.
        budgets: for each stage but the last, tokens to keep: a number, or a share of N in (0, 1].
            The last keeps the `num_keep` given to `reduce`; a stage before it never keeps fewer,
            nor more than it receives.
        strict: as for every `Method`.

    Raises:
        ValueError: no stages, budgets out of range, or not one for each stage but the last.
        TypeError: a stage that is no method.
        NotImplementedError: a stage that works in a language model's layers.
    """

    def __init__(
        self, *stages: Method, budgets: Sequence[int | float] = (), strict: bool = True
    ) -> None:
        super().__init__(strict=strict)
        if not stages:
            raise ValueError("Chain expects at least one method, got none")
        for stage in stages:
            if not isinstance(stage, Method):
                raise TypeError(f"Chain expects methods, got {type(stage).__name__}")
            if isinstance(stage, LayerMethod):
                raise NotImplementedError(
                    f"{type(stage).__name__} works in a language model's layers, Chain before them"
                )
        if len(budgets) != len(stages) - 1:
            raise ValueError(
                "budgets must hold one for each stage but the last, "
                f"{len(stages) - 1}, got {len(budgets)}"
            )
        for budget in budgets:
            if not (0 < budget <= 1 if isinstance(budget, float) else budget >= 1):
                raise ValueError(
                    f"a budget must be an int of at least 1 or a float in (0, 1], got {budget}"
                )
        self.stages, self.budgets = stages, tuple(budgets)
        # What is declared of a class elsewhere depends on the stages here.
        self.needs = tuple(sorted({name for stage in stages for name in stage.needs}))  # type: ignore[misc]
        self.query_agnostic = all(stage.query_agnostic for stage in stages)  # type: ignore[misc]
        self.merges = any(stage.merges for stage in stages)  # type: ignore[misc]

    def __repr__(self) -> str:
        parts = [*map(repr, self.stages), f"budgets={list(self.budgets)}"]
        parts += [] if self.strict else ["strict=False"]
        return f"Chain({', '.join(parts)})"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        num_tokens = left = tokens.features.shape[1]
        result = None
        for stage, budget in zip(self.stages, [*self.budgets, num_keep], strict=True):
            wanted = round(budget * num_tokens) if isinstance(budget, float) else budget
            left = min(max(wanted, num_keep), left)
            received = tokens if result is None else kept_tokens(tokens, result)
            then = stage._reduce(received, left)  # `reduce` has checked for all stages
            result = then if result is None else compose(result, then)
        assert result is not None  # there is a stage
        return result


def kept_tokens(tokens: VisionTokens, result: ReducedTokens) -> VisionTokens:
    """What a stage left, as the next one receives it."""
    attention = tokens.attention
    return replace(
        tokens,
        features=result.features,
        grid_size=(1, result.keep_indices.shape[1]),
        attention=None if attention is None else attention.gather(1, result.keep_indices),
    )


def compose(first: ReducedTokens, then: ReducedTokens) -> ReducedTokens:
    """The second result, in places of the tokens that the first was given."""
    kept = first.keep_indices
    later_roots = kept.gather(1, then.assignment)  # [B, K of the first]
    # A token's root moves on to where the second put it; roots that the first dropped stay.
    moves = torch.arange(first.assignment.shape[1], device=kept.device).repeat(len(kept), 1)
    moves = moves.scatter(1, kept, later_roots)
    return replace(
        then,
        keep_indices=kept.gather(1, then.keep_indices),
        valid=then.valid & first.valid.gather(1, then.keep_indices),
        assignment=moves.gather(1, first.assignment),
        grid_size=first.grid_size,
    )
