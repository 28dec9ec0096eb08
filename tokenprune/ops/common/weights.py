"""The weights of the background operators as types of their own, beside the flat form."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from tokenprune.ops.common.checks import check_shape

R = TypeVar("R")


class AffinityHead(NamedTuple):
    """How strongly a token leans towards each of its nine neighbors: two convolutions.

    Attributes:
        dw: [D, 1, 3, 3], the depth-wise kernel.
        pw: [9, D, 1, 1], the point-wise kernel.
        bias: [9], the point-wise bias.
    """

    dw: Tensor
    pw: Tensor
    bias: Tensor

    def check(self, features: Tensor) -> None:
        """Raises ValueError or TypeError where the head does not fit [B, N, D] features."""
        width = features.shape[2]
        check_shape("dw_weight", self.dw, (width, 1, 3, 3), "[D, 1, 3, 3]", like=features)
        check_shape("pw_weight", self.pw, (9, width, 1, 1), "[9, D, 1, 1]", like=features)
        check_shape("pw_bias", self.bias, (9,), "[9]", like=features)


class Anchor(NamedTuple):
    """What the class token looks for: its query meets the keys of the clusters.

    Attributes:
        q: [D, D] and q_bias: [D], the projection of the class token.
        k: [D, D] and k_bias: [D], the projection of a cluster's mean.
    """

    q: Tensor
    q_bias: Tensor
    k: Tensor
    k_bias: Tensor

    def check(self, features: Tensor) -> None:
        """Raises ValueError or TypeError where the anchor does not fit [B, N, D] features."""
        width = features.shape[2]
        check_shape("q_weight", self.q, (width, width), "[D, D]", like=features)
        check_shape("q_bias", self.q_bias, (width,), "[D]", like=features)
        check_shape("k_weight", self.k, (width, width), "[D, D]", like=features)
        check_shape("k_bias", self.k_bias, (width,), "[D]", like=features)


class FlatForm(NamedTuple):
    """A type of weights, and the arguments of the flat form that its fields are, in order."""

    kind: type[AffinityHead | Anchor]
    arguments: tuple[str, ...]


FLAT_FORMS = {
    "head": FlatForm(AffinityHead, ("dw_weight", "pw_weight", "pw_bias")),
    "anchor": FlatForm(Anchor, ("q_weight", "q_bias", "k_weight", "k_bias")),
}


def takes_typed_weights(operator: Callable[..., R]) -> Callable[..., R]:
    """Lets an operator of the flat form take an `AffinityHead` and an `Anchor` as they are.

    By position they stand where their first tensor does in the flat form; as keywords they are
    `head` and `anchor`.
    """
    known = {*inspect.signature(operator).parameters}
    taken = {name: form for name, form in FLAT_FORMS.items() if known.issuperset(form.arguments)}

    @functools.wraps(operator)
    def flat_or_typed(*args: Any, **kwargs: Any) -> R:
        flat: list[Any] = []
        named: dict[str, Any] = {}
        for value in args:
            flat += value if isinstance(value, (AffinityHead, Anchor)) else [value]
        for name, (kind, arguments) in taken.items():
            if name in kwargs:
                weights: Any = kwargs.pop(name)
                if not isinstance(weights, kind):
                    raise TypeError(f"{name} must be {kind.__name__}, got {type(weights).__name__}")
                named.update(zip(arguments, weights, strict=True))
        return operator(*flat, **kwargs, **named)

    return flat_or_typed
