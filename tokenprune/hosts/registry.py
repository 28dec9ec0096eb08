"""Which adapter serves a model: its family's, another package's, or the generic one."""

from __future__ import annotations

import functools
import pkgutil
import warnings

from torch import nn

from tokenprune.hosts import families
from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.generic import Generic, why_refused
from tokenprune.hosts.mechanisms import MECHANISMS, REASONS
from tokenprune.hosts.tested import is_tested
from tokenprune.log import logger
from tokenprune.plugins import load_plugin, plugin_names

GROUP = "tokenprune.adapters"  # of entry points


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter that serves a model with or without its head.

    That of its `config.model_type`, where one knows it; else the generic one, if the model keeps
    the conventions that it relies on.

    Raises:
        NotImplementedError: neither; the message says why, and what is known.
    """
    known = known_adapters()
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in known:
        chosen = known[model_type]
        if chosen.__module__.startswith(families.__name__) and not is_tested(str(model_type)):
            warn_untested(str(model_type))
        return chosen(chosen.host_of(model))
    host = Generic.host_of(model)
    reason = REASONS.get(MECHANISMS.get(str(model_type), "")) or why_refused(host)
    if reason is not None:
        raise NotImplementedError(
            f"no adapter for {type(model).__name__} (model_type {model_type!r}), and the generic "
            f"one refuses it: {reason}. Adapters of their own have {', '.join(sorted(known))}. "
            f"Another package can add one by an entry point in the group {GROUP}, see "
            "tokenprune.Adapter"
        )
    if not is_tested(str(model_type)):
        warn_untested(str(model_type))
    return Generic(host)


@functools.cache  # once for each type
def warn_untested(model_type: str) -> None:
    logger.warning(
        "model_type %r was never tested with this release of transformers, though it keeps the "
        "conventions; run tokenprune.verify on your model before you rely on it",
        model_type,
    )


def known_adapters() -> dict[str, type[Adapter]]:
    """model_type -> adapter. Plug-ins come last and win: they may know a host better than we do."""
    own = [module.name for module in pkgutil.iter_modules(families.__path__)]
    known: dict[str, type[Adapter]] = {}
    for name in [*own, *plugin_names(GROUP)]:
        try:
            adapter_class: type[Adapter] = load_plugin(GROUP, name, Adapter, families.__name__)
        except Exception as error:
            if name in own:
                raise
            # Another package's fault must not keep hosts from working that have no part in it.
            warnings.warn(
                f"the adapter {name!r}, plugged in by another package, cannot be loaded and is "
                f"left out: {type(error).__name__}: {error}",
                stacklevel=3,
            )
            continue
        known.update(dict.fromkeys(adapter_class.model_types, adapter_class))
    return known
