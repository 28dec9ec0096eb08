"""apply(model, method): fewer visual tokens in any known transformers model, and back."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

from torch import nn

from tokenprune.budget import Budget
from tokenprune.config import POSITIONS, ReductionConfig
from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied
from tokenprune.hosts.handle import Handle
from tokenprune.hosts.hooks import HostHooks
from tokenprune.hosts.layer_checks import check_layers
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.tower import attention_layers, points_of
from tokenprune.method import Method, get_method
from tokenprune.words import suggestion

OPTIONS = ("num_keep", "keep_ratio", "per", "positions", "strict")


def apply(
    model: nn.Module,
    method: str | Method | ReductionConfig,
    *,
    num_keep: int | None = None,
    keep_ratio: float | None = None,
    per: str = "image",
    positions: str = "original",
    strict: bool = True,
    **other: Any,
) -> Handle:
    """Reduces the visual tokens of `model`, in place, until the handle is removed.

    Example::

        with tokenprune.apply(model, "divprune", keep_ratio=0.25) as handle:
            out = model.generate(**inputs, max_new_tokens=64)
        print(handle.report())

    Inputs come from the model's own processor, unchanged; `forward`, `generate` and training work
    as before, on shorter sequences: logits and hidden states have the columns that
    `handle.kept_positions` names. The model's own loss takes labels of the whole sequence; a loss
    computed outside of it, as `Trainer` does for label smoothing, takes those at `kept_positions`.
    Applied twice, the newest is in effect and the one before comes
    back when it is removed.

    Args:
        model: a transformers vision-language model, with or without its head, or a peft model
            around it. `tokenprune.Adapter` says what a host needs to be known.
        method: a name of `list_methods()`, a `Method` with options, or a `ReductionConfig`, which
            brings the budget and positions along.
        num_keep: visual tokens to keep per image; or
        keep_ratio: the share to keep, in (0, 1]. 1 keeps all, to the bit. A method that has a
            budget of its own, as `DivPrune(keep_ratio=0.25)` has, needs neither.
        per: of videos, what the budget counts for: "image", the whole video, whose frames get
            equal shares unless the method works over time; or "frame".
        positions: "original" leaves every token the position it had: the result is that of the
            whole model with the dropped tokens masked out. "compact" closes the gaps wherever
            tokens leave; so does a method whose official code does, see `Method.renumbers`.
        strict: raise where nothing is removed though something should be, and on features that
            are not finite.
        other: nothing; other libraries' words are answered with the ones that are meant.

    Raises:
        NotImplementedError: a host that no adapter serves, or that is compiled or replicated.
        ValueError, TypeError: arguments.
    """
    if other:
        raise TypeError(f"apply takes no {', '.join(other)}{suggestion(other, OPTIONS)}")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be 'original' or 'compact', got {positions!r}")
    if isinstance(method, ReductionConfig):
        if positions not in ("original", method.positions):
            raise ValueError(f"positions must be those of {method}, got {positions!r}")
        if per not in ("image", method.per):
            raise ValueError(f"per must be that of {method}, got {per!r}")
        positions, per, method = method.positions, method.per, method.build()
    elif isinstance(method, str):
        method = get_method(method)
    elif not isinstance(method, Method):
        raise TypeError(f"method must be a name or a Method, got {type(method).__name__}")
    budget = budget_of(method, num_keep, keep_ratio, per)
    model, adapter = open_host(model)
    check_method(method, adapter)
    if method.renumbers:
        positions = "compact"
    if positions == "compact" and (reason := adapter.why_not_compact()) is not None:
        raise NotImplementedError(f"positions='compact' {reason}")
    if not strict:
        method = copy.copy(method)
        method.strict = False
    applied = Applied(method, budget, positions, strict)
    return Handle(adapter, applied, HostHooks.enter(model, adapter, applied))


Method._apply = staticmethod(apply)


def budget_of(method: Method, num_keep: int | None, keep_ratio: float | None, per: str) -> Budget:
    """The budget that is given, here or on the method.

    Raises:
        ValueError: it is given twice, or not at all.
    """
    own = Budget.given(method.num_keep, method.keep_ratio)
    given = Budget.given(num_keep, keep_ratio)
    if own and given:
        raise ValueError(f"the budget must be given once, got {given} beside the method's {own}")
    if own:
        return Budget(method.num_keep, method.keep_ratio, per)
    return Budget(num_keep, keep_ratio, per)


def check_method(method: Method, adapter: Adapter) -> None:
    """Raises unless the method can work in a host, and says beforehand how many tokens it keeps.

    Raises:
        NotImplementedError: it needs what is not handed over, or adds rows to its budget, or the
            host says why not.
        ValueError: it names layers that the tower does not have.
    """
    if (reason := adapter.why_not(method)) is not None:
        raise NotImplementedError(f"{type(method).__name__} {reason}")
    if method.over_time and adapter.videos is None:
        raise NotImplementedError(
            f"{type(method).__name__} compares the frames of videos, which "
            f"{type(adapter).__name__} does not reduce"
        )
    if method.in_layers:
        check_layers(adapter, method)
        return
    if method.by_crop and not adapter.knows_crops:
        raise NotImplementedError(
            f"{type(method).__name__} shares an image's budget over its crops, "
            f"{type(adapter).__name__} does not say which crops are one image's"
        )
    if method.before_projector and not adapter.projects:
        raise NotImplementedError(
            f"{type(method).__name__} works before the projector, {type(adapter).__name__} does "
            "not say how rows are projected"
        )
    offers = adapter.offers_by_crop if method.by_crop else adapter.offers
    if missing := [name for name in method.needs if name not in offers]:
        raise NotImplementedError(
            f"{type(method).__name__} needs {', '.join(missing)}, {type(adapter.model).__name__} "
            f"hands over {', '.join(sorted(offers))}"
        )
    points_of(adapter, method)
    attention_layers(adapter, method)
    if not method.before_projector and (rows := method.count(16, 4)) not in (4, None):
        raise NotImplementedError(
            f"{type(method).__name__} gives {rows} rows for a budget of 4 tokens, a host has "
            "placeholders for the budget alone"
        )


def open_host(model: nn.Module) -> tuple[nn.Module, Adapter]:
    """(the transformers model, its adapter), out of a peft model where it is one.

    Raises:
        NotImplementedError: no adapter knows it, or it is compiled or replicated.
        TypeError: no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(get_base_model := getattr(model, "get_base_model", None), MethodType):
        model = get_base_model()
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise NotImplementedError(
            f"{type(model).__name__} copies the model; apply to what it wraps, model.module"
        )
    if "SequenceClassification" in type(model).__name__:
        raise NotImplementedError(
            f"{type(model).__name__} picks a column of the whole sequence, which moves"
        )
    adapter = find_adapter(model)
    for module in (model, adapter.model):
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise NotImplementedError(
                "the model is compiled already and would run on without the reduction; apply "
                "first, then torch.compile it"
            )
    return model, adapter
