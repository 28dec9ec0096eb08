"""Vision tokens -> kept tokens. The only file that knows how tokens are reduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from geollava.model.configuration import NO_REDUCTION, OWN_METHOD, GeoLlavaConfig
from geollava.model.sharding import whole
from tokenprune import (
    LayerMethod,
    Method,
    ReducedTokens,
    VisionTokens,
    get_method,
    list_methods,
    method_class,
)
from tokenprune.hosts.attention import AttentionReader
from tokenprune.method import required_options
from tokenprune.selection import FEATURE_LAYER
from tokenprune.tokens import refuse_extra
from tokenprune.words import nearest

__all__ = [
    "AffinityHead",
    "ReducedTokens",
    "check_method",
    "crop_methods",
    "host_methods",
    "reading_attention",
    "reduce_tokens",
]


class AffinityHead(nn.Module):
    """The two convolutions that say which neighbor a token leans towards; see `reduce_tokens`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pw = nn.Conv2d(width, 9, 1)


def crop_methods() -> list[str]:
    """Names that `reduction_method` takes: crops are reduced in the model, before any question.

    What the model keeps of an image is the same for every question about it.
    """
    return [NO_REDUCTION, *(name for name in list_methods() if why_not(name) is None)]


def host_methods() -> list[str]:
    """Names that need the question: `tokenprune.apply` brings them to the tokens that crops keep.

    What is kept differs from question to question, and so does the language model's cache.
    """
    return [name for name in list_methods() if why_not(name) is not None and is_asked(name)]


def is_asked(name: str) -> bool:
    """Whether a method works on kept tokens and the question, and needs nothing else."""
    method = method_class(name)
    needs = ("layers",) if issubclass(method, LayerMethod) else ("text",)
    return method.needs == needs and not method.uses_grid and not required_options(method)


def check_method(name: str, also: Sequence[str] = ()) -> None:
    """Raises ValueError unless there is such a method and crops carry what it needs.

    Args:
        also: other names that the caller accepts, to be listed where there is no such method.
    """
    if name == NO_REDUCTION:
        return
    if name not in list_methods():
        known = sorted([*crop_methods(), *also])
        meant = nearest(name, known)
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise ValueError(f"method must be one of {', '.join(known)}, got {name!r}{hint}")
    reason = why_not(name)
    if reason is not None:
        raise ValueError(f"the method {name} {reason}")


def why_not(name: str) -> str | None:
    """Why crops cannot be reduced by this method, or None."""
    method = method_class(name)
    if method.over_time:
        return "compares the frames of videos, crops have none"
    if issubclass(method, LayerMethod):
        return (
            "works in the language model's layers: crops are reduced before it, one by one, and "
            "only kept tokens enter it"
        )
    given = {"cls", "attention"}
    if method.tower_layers.get("hidden_states") == (FEATURE_LAYER,):
        given.add("hidden_states")  # the features themselves
    missing = [need for need in method.needs if need not in given]
    if "text" in missing:
        return f"needs {', '.join(missing)}: crops are reduced before the question is read"
    if missing:
        return f"needs {', '.join(missing)}, which this model does not hand over"
    weights = required_options(method)
    if weights and name != OWN_METHOD:
        return f"needs {', '.join(weights)}, which this model does not have"
    return None


@contextmanager
def reading_attention(
    anchor: nn.Module, config: GeoLlavaConfig
) -> Iterator[Callable[[], Tensor | None]]:
    """While the tower runs within, its class token's attention is read, where a method needs it.

    Yields:
        What gives [B, N] float32 afterwards, or None.
    """
    name = config.reduction_method
    if name == NO_REDUCTION or "attention" not in method_class(name).needs:
        yield lambda: None
        return
    reader = AttentionReader(num_prefix_tokens=1)
    with reader.reading(anchor):
        yield reader.joined


def reduce_tokens(
    hidden_states: Tensor,
    head: AffinityHead,
    anchor: Any,
    config: GeoLlavaConfig,
    attention: Tensor | None = None,
) -> ReducedTokens:
    """Background Token Pruning, then Anchored Token Selection (arXiv 2505.21375, section 3.2).

    Or another method, as a control: what `config.reduction_method` names; "none" keeps all.

    Args:
        hidden_states: [B, 1 + N, D], the class token first.
        head: the affinity head.
        anchor: an attention module with `q_proj` and `v_proj`; as in the released model the keys
            are projected by `v_proj`.
        config: `reduction_method`, `num_keep`, `strict` and what begins with `merge_` count here.
        attention: [B, N], of the class token, for methods that need it.
    """
    if config.reduction_method == NO_REDUCTION:
        config.check_num_keep()
        method = get_method("uniform", strict=config.strict)  # of a whole budget every token
    elif config.reduction_method == OWN_METHOD:
        method = background_anchored(head, anchor, config)
    else:
        method = get_method(config.reduction_method, strict=config.strict)
    features = hidden_states[:, 1:]
    needs_states = "hidden_states" in method.needs
    tokens = VisionTokens(
        features,
        config.grid_size,
        cls=hidden_states[:, 0],
        attention=attention,
        # What the projector takes is the features, whichever layer they are from.
        hidden_states={FEATURE_LAYER: features} if needs_states else None,
    )
    result = method.reduce(tokens, config.num_keep)
    refuse_extra(type(method).__name__, result, "this model")
    return result


def background_anchored(head: AffinityHead, anchor: Any, config: GeoLlavaConfig) -> Method:
    return get_method(
        OWN_METHOD,
        dw_weight=head.dw.weight,
        pw_weight=head.pw.weight,
        pw_bias=head.pw.bias,
        q_weight=whole(anchor.q_proj.weight),
        q_bias=whole(anchor.q_proj.bias),
        k_weight=whole(anchor.v_proj.weight),
        k_bias=whole(anchor.v_proj.bias),
        max_iters=config.merge_max_iters,
        cycles=config.merge_cycles,
        assignment=config.merge_assignment,
        temperature=config.merge_temperature,
        strict=config.strict,
    )
