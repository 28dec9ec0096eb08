"""The whole model with tokens hidden, as `verify` runs it, and faults to compare with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.compat import check_language_model, past_length
from tokenprune.hosts.recurrent import KINDS, MASKS, mixers
from tokenprune.hosts.reduced import ReducedImages


def hide(mask: Any, hidden: Tensor, like: Tensor, *, in_layer: bool) -> Any:
    """An attention mask in which the columns `hidden` [B, L] of the prompt are closed.

    Args:
        mask: [B, L], [B, H, L, L] boolean or additive, None for all that is causal, or one of them
            for each kind of layer.
        like: [B, L, D], the states that it is for.
        in_layer: None stands for a mask as layers take it, not as language models do.
    """
    if isinstance(mask, dict):
        return {
            kind: one if kind in KINDS else hide(one, hidden, like, in_layer=True)
            for kind, one in mask.items()
        }
    batch, length, _ = like.shape
    closed = nn.functional.pad(hidden.to(like.device), (0, length - hidden.shape[1]))
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.int64, device=like.device)
        if in_layer:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=like.device).tril()
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.masked_fill(closed, 0)
    if not (isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[3] == length):
        raise NotImplementedError(f"tokens cannot be hidden in a {type(mask).__name__}")
    # Hidden tokens go on seeing themselves: no row of a mask may be empty.
    own = torch.eye(length, dtype=torch.bool, device=like.device) & closed[:, :, None]
    closed = closed[:, None, None, :] & ~own[:, None]
    if mask.dtype == torch.bool:
        return (mask & ~closed) | own[:, None]
    return mask.masked_fill(closed, torch.finfo(mask.dtype).min)


@contextmanager
def absent(language_model: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Layers that go on from token to token run as if columns [B, L] of a prompt were not there.

    To them these come first in their row, as padding does; what comes out goes back to its place.
    """
    call = check_language_model(language_model)
    orders: list[Tensor] = []
    prompts: list[bool] = []

    def before_language_model(module: Any, args: Any, kwargs: Any) -> None:
        prompts.append(past_length(call.cache(call.named(args, kwargs))) == 0)

    def before(mixer: nn.Module, args: Any, kwargs: Any) -> Any:
        states, *rest = args or (kwargs.pop("hidden_states"),)
        batch, length, _ = states.shape
        closed = nn.functional.pad(hidden.to(states.device), (0, length - hidden.shape[1]))
        if not prompts[-1]:  # a step: all that was hidden lies behind it
            closed = torch.zeros(batch, length, dtype=torch.bool, device=states.device)
        orders.append((~closed).int().argsort(dim=1, stable=True))
        name = next(name for name in MASKS if name in inspect.signature(mixer.forward).parameters)
        mask = kwargs.get(name)
        mask = (~closed if mask is None else mask.bool() & ~closed).gather(1, orders[-1])
        states = in_order(states.masked_fill(closed[:, :, None], 0), orders[-1])
        return (states, *rest), kwargs | {name: None if bool(mask.all()) else mask.to(states)}

    def after(mixer: nn.Module, args: Any, output: Any) -> Any:
        back = orders.pop().argsort(dim=1)
        if isinstance(output, tuple):
            return in_order(output[0], back), *output[1:]
        return in_order(output, back)

    with ExitStack() as stack:
        for hook in (
            language_model.register_forward_pre_hook(before_language_model, with_kwargs=True),
            *(
                one
                for mixer in mixers(language_model)
                for one in (
                    mixer.register_forward_pre_hook(before, with_kwargs=True),
                    mixer.register_forward_hook(after),
                )
            ),
        ):
            stack.callback(hook.remove)
        yield


def in_order(states: Tensor, order: Tensor) -> Tensor:
    """[B, L, D] with the columns of each row in the order [B, L]."""
    return states.gather(1, order[:, :, None].expand_as(states))


def with_features(
    given: Mapping[str, Any], images: ReducedImages, placeholders: Tensor
) -> dict[str, Any]:
    """The embeddings, and features that layers add, in which kept tokens carry what was made."""
    embeddings = given["inputs_embeds"].clone()
    rows, cols = (axis.to(embeddings.device) for axis in placeholders.nonzero(as_tuple=True))
    added = [layer.clone() for layer in given.get("deepstack_visual_embeds") or []]
    for grid in images.grids:
        if grid.tokens is None:
            continue
        tokens = grid.tokens
        for crop, places in enumerate(grid.positions):
            for slot in tokens.valid[crop].nonzero()[:, 0].tolist():
                root = tokens.keep_indices[crop, slot]
                place = places[root].to(embeddings.device)
                embeddings[rows[place], cols[place]] = tokens.features[crop, slot].to(embeddings)
                members = places[tokens.assignment[crop] == root]
                for layer in added:
                    layer[place] = layer[members].float().mean(0).to(layer)
    changed: dict[str, Any] = {"inputs_embeds": embeddings}
    return changed | ({"deepstack_visual_embeds": added} if added else {})


def moved_by_rounding(embeddings: Tensor) -> Tensor:
    """Each number moved up or down by one rounding of its dtype, by chance."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, embeddings.shape, generator=generator) * 2 - 1
    eps = torch.finfo(embeddings.dtype).eps
    return embeddings * (1 + eps * signs.to(embeddings))


def shifted(given: Mapping[str, Any], begin: Tensor, shift: int) -> dict[str, Any]:
    """Positions of all columns from `begin` [B] on moved, and a mask beside them."""
    batch, length, _ = given["inputs_embeds"].shape
    device = given["inputs_embeds"].device
    columns = torch.arange(length, device=device)
    positions = given.get("position_ids")
    if positions is None:
        positions = columns[None]
    mask = given.get("attention_mask")
    if mask is None:  # without one, positions with a gap pass for two packed sequences
        mask = torch.ones(batch, length, dtype=torch.int64, device=device)
    after = columns.to(positions) >= begin[:, None].to(positions)
    moved = positions.expand(*positions.shape[:-2], batch, -1) + shift * after
    return {"position_ids": moved, "attention_mask": mask}


def first_gap(hidden: Tensor, kept: list[Tensor]) -> Tensor:
    """[B]: the first hidden column that a visible one comes before; positions are relative.

    Where there is none, the second visible column.
    """
    begins = []
    for row, columns in zip(hidden, kept, strict=True):
        gaps = row.nonzero()[:, 0]
        gaps = gaps[gaps > columns[0].to(gaps)]
        begins.append(int(gaps[0]) if len(gaps) else int(columns[min(1, len(columns) - 1)]))
    return torch.tensor(begins)
