"""Where a method cannot work between layers, or would not be what its official code is."""

from __future__ import annotations

from collections.abc import Sequence

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import check_layer
from tokenprune.hosts.memory import has_bias
from tokenprune.hosts.prompt import Prompt
from tokenprune.hosts.recurrent import mixers
from tokenprune.hosts.windows import window_of
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import ATTENTION, Method
from tokenprune.tokens import ReducedTokens


def check_layers(adapter: Adapter, method: Method) -> None:
    """Raises unless the method can work between the layers of this host.

    Raises:
        NotImplementedError: layers that are not known, or go on from token to token.
        ValueError: the method's options do not fit the number of layers.
    """
    layers = adapter.decoder_layers
    if mixers(adapter.language_model):
        raise NotImplementedError(
            f"{type(method).__name__} works between layers, which a language model with recurrent "
            "layers does not allow: what has left would go on in their states"
        )
    for layer in layers:
        check_layer(layer)
    method.cuts(len(layers))
    if method.merges and method.renumbers and adapter.positions_need_grid:
        raise NotImplementedError(
            f"{type(method).__name__} numbers rows of several tokens anew, which have no place in "
            f"the several axes of positions in {type(adapter.model).__name__}"
        )
    if method.merges and any(window_of(*numbered) is not None for numbered in enumerate(layers)):
        raise NotImplementedError(
            f"{type(method).__name__} makes rows of several tokens, of which sliding windows would "
            "see neither all nor none"
        )


def check_prompt(
    method: Method, adapter: Adapter, prompt: Prompt, first: Sequence[int], reduces: bool
) -> None:
    """Raises where a prompt is none that the method takes.

    Args:
        first: of each image, the place of its first token among all visual tokens of the batch.
        reduces: something is to leave.

    Raises:
        NotImplementedError: so it is.
    """
    name = type(method).__name__
    if has_bias(prompt.cache):
        raise NotImplementedError(
            "new images after a prompt whose visual tokens have sizes in attention are not "
            "supported; begin a new cache"
        )
    if not reduces:
        return
    if method.merges and any(
        layer.training and getattr(layer, "gradient_checkpointing", False)
        for layer in adapter.decoder_layers
    ):
        raise NotImplementedError(
            f"{name} makes rows of several tokens, which gradient checkpointing would make twice; "
            "switch it off"
        )
    if method.reads == ATTENTION:
        return
    if prompt.past:
        raise NotImplementedError(
            f"{name} reads a whole prompt, got one that goes on in a cache of {prompt.past} columns"
        )
    rows = prompt.placeholders.nonzero()[:, 0][list(first)]
    if (most := int(rows.bincount().max())) > 1:
        raise NotImplementedError(f"{name} takes one image in a prompt, got {most}")


def ranking_layer(method: Method, adapter: Adapter, prompt: Prompt, number: int) -> int:
    """The last layer up to `number` in which prompts' ends see all visual tokens.

    Tokens that have left a sliding window would all rank alike, by their place.

    Raises:
        NotImplementedError: there is none; or the method reads more than attention of that layer.
    """
    layers, placeholders = adapter.decoder_layers, prompt.placeholders
    windows = [window_of(layer, layers[layer]) for layer in range(number + 1)]
    if windows[number] is None:
        return number
    rows = placeholders.any(1)
    first = placeholders.int().argmax(1)
    farthest = int((prompt.ends - first)[rows].max())
    seeing = [at for at, window in enumerate(windows) if window is None or farthest < window]
    if not seeing or (method.reads != ATTENTION and seeing[-1] != number):
        raise NotImplementedError(
            f"{type(method).__name__} ranks tokens in layer {number}, whose sliding window of "
            f"{windows[number]} does not reach back to the first visual token, {farthest} columns "
            "before the prompt's end, nor does one of an earlier layer"
        )
    return seeing[-1]


def check_in_layer(
    method: Method, result: object, tokens: LayerTokens, num_keep: int
) -> ReducedTokens:
    """The result; raises unless a method, which may be anybody's, has kept what it was asked to."""
    name, number = type(method).__name__, tokens.num_tokens
    if not isinstance(result, ReducedTokens):
        raise TypeError(f"{name} must return ReducedTokens, got {type(result).__name__}")
    kept = result.keep_indices
    fixed = method.count(number, num_keep) is not None
    counts = {num_keep} if fixed else set(range(1, num_keep + 1))
    if kept.ndim != 2 or kept.shape[1] not in counts:
        raise ValueError(f"{name} must keep {num_keep} of {number} tokens, got {list(kept.shape)}")
    if bool((kept.diff(dim=1) <= 0).any() | (kept < 0).any() | (kept >= number).any()):
        raise ValueError(f"{name} must give keep_indices ascending and below {number}")
    if result.extra is not None and not method.merges:
        raise ValueError(f"{name} must declare merges where it adds rows of no single token")
    return result
