"""Chain: one method after the other, with a budget for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tokenprune.method import Method
from tokenprune.selection import rows
from tokenprune.tokens import BY_LAYER, ReducedTokens, VisionTokens


class Chain(Method):
    """Reduces by each stage in turn: `Chain(FasterVLM(), ToMe(), budgets=[0.5])`.

    A later stage receives the tokens that the one before kept or merged, as a grid of one row, with
    attention, keys and the like at their places, and the class token and text as they are. It
    averages what it receives: a mean of means where both merge. Extra rows of a stage pass by the
    later ones, and come out in the order of the stages. The chain needs, and depends on, what any
    stage does.

    Args:
        stages: at least one method.
        budgets: for each stage but the last, tokens to keep: a number, or a share of N in (0, 1].
            The last keeps the `num_keep` given to `reduce`; a stage before it never keeps fewer,
            nor more than it receives.
        strict, num_keep, keep_ratio: as for every `Method`.

    Raises:
        ValueError: no stages, budgets out of range, not one for each stage but the last, or stages
            that need keys or queries of different layers.
        TypeError: a stage that is no method.
        NotImplementedError: a stage that works in a language model's layers, or whose `count`
            depends on the image, or one after the first that works over time.
    """

    def __init__(
        self,
        *stages: Method,
        budgets: Sequence[int | float] = (),
        strict: bool = True,
        num_keep: int | None = None,
        keep_ratio: float | None = None,
    ) -> None:
        super().__init__(strict=strict, num_keep=num_keep, keep_ratio=keep_ratio)
        if not stages:
            raise ValueError("Chain expects at least one method, got none")
        for stage in stages:
            if not isinstance(stage, Method):
                raise TypeError(f"Chain expects methods, got {type(stage).__name__}")
            if stage.in_layers:
                raise NotImplementedError(
                    f"{type(stage).__name__} works in a language model's layers, Chain before them"
                )
            if stage.over_time and stage is not stages[0]:
                raise NotImplementedError(
                    f"{type(stage).__name__} compares whole frames, which only the first stage has"
                )
            if "roots" in stage.needs:
                raise NotImplementedError(
                    f"{type(stage).__name__} merges inside the vision tower, Chain after it"
                )
            if stage.by_crop:
                raise NotImplementedError(
                    f"{type(stage).__name__} shares an image's budget over its crops, Chain before "
                    "it or after it has no crops"
                )
            if stage.count(1, 1) is None:
                raise NotImplementedError(
                    f"how many tokens {type(stage).__name__} keeps depends on the image, "
                    "Chain hands on a number that is known"
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
        self.declare(
            needs=tuple(sorted({name for stage in stages for name in stage.needs})),
            tower_layers=_layers_of(stages),
            query_agnostic=all(stage.query_agnostic for stage in stages),
            merges=any(stage.merges for stage in stages),
            uses_grid=stages[0].uses_grid,  # what the others receive is one row
            over_time=stages[0].over_time,
        )

    def __repr__(self) -> str:
        parts = [*map(repr, self.stages), f"budgets={list(self.budgets)}"]
        parts += [] if self.strict else ["strict=False"]
        return f"Chain({', '.join(parts)})"

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        """The last stage's rows, and the extra ones of those before it."""
        total, received = num_keep, num_tokens
        for stage, budget in zip(
            self.stages, self._stage_budgets(num_tokens, num_keep), strict=True
        ):
            count = stage.count(received, budget)
            if count is None:
                return None
            total, received = total + count - budget, budget
        return total

    def _stage_budgets(self, num_tokens: int, num_keep: int) -> list[int]:
        """What each stage keeps: never fewer than the last, nor more than it receives."""
        left, budgets = num_tokens, []
        for budget in (*self.budgets, num_keep):
            wanted = round(budget * num_tokens) if isinstance(budget, float) else budget
            left = min(max(wanted, num_keep), left)
            budgets.append(left)
        return budgets

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        result = None
        budgets = self._stage_budgets(tokens.features.shape[1], num_keep)
        for stage, budget in zip(self.stages, budgets, strict=True):
            received = tokens if result is None else kept_tokens(tokens, result)
            then = stage._reduce(received, budget)  # `reduce` has checked for all stages
            result = then if result is None else compose(result, then)
        assert result is not None  # a chain has at least one stage
        return result


def _layers_of(stages: Sequence[Method]) -> dict[str, tuple[int, ...]]:
    """The tower layers that the stages name, together."""
    layers: dict[str, tuple[int, ...]] = {}
    for stage in stages:
        for name, wanted in stage.tower_layers.items():
            layers[name] = tuple(sorted({*layers.get(name, ()), *wanted}))
            if name not in BY_LAYER and len(layers[name]) > 1:
                raise ValueError(
                    f"stages must need {name} of one layer, got those of {list(layers[name])}"
                )
    return layers


def kept_tokens(tokens: VisionTokens, result: ReducedTokens) -> VisionTokens:
    """What a stage left, as the next one receives it."""
    places = result.keep_indices
    kept = {
        name: value.gather(1, places) if value.ndim == 2 else rows(value, places)
        for name, value in tokens.tensors().items()
        if name not in ("features", "cls", "text", "text_embeds")
    }
    return tokens.with_tensors(
        kept | {"features": result.features}, grid_size=(1, places.shape[1]), frames=1
    )


def compose(first: ReducedTokens, then: ReducedTokens) -> ReducedTokens:
    """The second result, in places of the tokens that the first was given."""
    kept = first.keep_indices
    later_roots = kept.gather(1, then.assignment)  # [B, K of the first]
    # A token's root moves on to where the second put it; roots that the first dropped stay.
    moves = torch.arange(first.assignment.shape[1], device=kept.device).repeat(len(kept), 1)
    moves = moves.scatter(1, kept, later_roots)
    extra = [result.extra for result in (first, then) if result.extra is not None]
    return replace(
        then,
        keep_indices=kept.gather(1, then.keep_indices),
        valid=then.valid & first.valid.gather(1, then.keep_indices),
        assignment=moves.gather(1, first.assignment),
        grid_size=first.grid_size,
        extra=torch.cat(extra, dim=1) if extra else None,
        order=None,
    )
