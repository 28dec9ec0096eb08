"""Hooks: where a host is entered, and how it is left again without a trace.

The host runs as it is, on its processor's full inputs; `step.py` says what happens on the way.
Nothing is patched on a class: module hooks and three attributes of the instance do it all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.compiler import disable
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.applied import Applied
from tokenprune.hosts.compat import Call, check_head, check_host, check_language_model
from tokenprune.hosts.encoder import EncodedImages, WatchedEncoder
from tokenprune.hosts.inputs import Calls, PerThread
from tokenprune.hosts.merging_tower import check_layers_that_merge, merging_forward, note_keys
from tokenprune.hosts.step import Step
from tokenprune.hosts.tower import points_of, tell_reader
from tokenprune.method import Method

_ATTRIBUTE = "_tokenprune_hooks"  # of the model: who forgets a handle must not keep the model


def is_applied(host: nn.Module) -> bool:
    """Whether a reduction is in force in a model without its head."""
    return _ATTRIBUTE in host.__dict__


class HostHooks:
    """The hooks in one model, for as long as at least one reduction is applied to it."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.applied: list[Applied] = []
        self.thread = PerThread()
        self.head: Any = None
        # What a checkpoint runs again it runs on the very tensors that it was first given; maybe
        # in another thread.
        self._checkpointed: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._watched: set[nn.Module] = set()  # of the tower
        self._undo: list[Callable[[], Any]] = []

    # -- coming and going -------------------------------------------------------------------------

    @staticmethod
    def enter(model: nn.Module, adapter: Adapter, applied: Applied) -> HostHooks:
        base = adapter.model
        hooks: HostHooks = base.__dict__.get(_ATTRIBUTE) or HostHooks(adapter)
        try:
            if not hooks.applied:
                hooks._install()
            has_head = model is not base or "labels" in Call.parameters(base.forward)
            if has_head and hooks.head is None:
                hooks._install_head(model)
            if applied.method.in_layers and not hooks.calls.in_layers:
                hooks._install_layers()
            hooks._install_tower(applied.method)
        except BaseException:
            hooks._uninstall_if_unused()
            raise
        hooks.applied.append(applied)
        return hooks

    def leave(self, applied: Applied) -> None:
        self.applied = [other for other in self.applied if other is not applied]
        self._uninstall_if_unused()

    def holds(self, applied: Applied) -> bool:
        return any(other is applied for other in self.applied)

    def _uninstall_if_unused(self) -> None:
        if not self.applied and self._undo:
            Step.discard(self.calls)  # which `_install` has set before anything else
            for undo in reversed(self._undo):
                undo()
            self._undo.clear()
            self.thread, self.head = PerThread(), None
            self._watched.clear()
            self._checkpointed = WeakIdKeyDictionary()
            self.calls.in_force = False

    def _install(self) -> None:
        self.adapter.check()
        base, language_model = self.adapter.model, self.adapter.language_model
        self.calls: Calls = Calls(
            self.adapter, check_host(base), check_language_model(language_model)
        )
        for hook in (
            base.register_forward_pre_hook(disable(self._before_host), with_kwargs=True),
            language_model.register_forward_pre_hook(
                disable(self._before_language_model), with_kwargs=True
            ),
            language_model.register_forward_hook(disable(self._after_language_model)),
            base.register_forward_hook(disable(self._after_host), always_call=True),
        ):
            self._undo.append(hook.remove)
        for modality, source in self.adapter.sources():
            watched = WatchedEncoder(
                self.adapter,
                source,
                getattr(base, modality.encoder),
                applied=lambda: self.applied[-1],
                input_ids=self._input_ids,
                report=functools.partial(self._note_encoded, modality.name),
            )
            self._replace(base, modality.encoder, watched)
        self._replace(base, _ATTRIBUTE, self)

    def _install_head(self, head: Any) -> None:
        check_head(head)
        for hook in (
            # First, where the head is part of the host: its step is the one that the host enters.
            head.register_forward_pre_hook(
                disable(self._before_head), prepend=True, with_kwargs=True
            ),
            head.register_forward_hook(disable(self._after_head), always_call=True),
        ):
            self._undo.append(hook.remove)
        self._replace(head, "_loss_function", self._loss(head.loss_function))
        self.head = head

    def _install_layers(self) -> None:
        """Only where a method works there: hooks in every layer would break compiled graphs."""
        self.calls.in_layers = True
        for number, layer in enumerate(self.adapter.decoder_layers):
            hook = disable(functools.partial(self._before_layer, number))
            self._undo.append(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _install_tower(self, method: Method) -> None:
        """Where a method needs keys or the like; once in a module, whoever needs it."""
        for module in {point.module: None for point in points_of(self.adapter, method)}:
            if module not in self._watched:
                self._watched.add(module)
                self._undo.append(module.register_forward_hook(disable(tell_reader)).remove)
        if "roots" in method.needs:
            layers: list[Any] = [*self.adapter.merging_layers]
            check_layers_that_merge(layers)
            for number, layer in enumerate(layers):
                if "forward" not in vars(layer):
                    self._replace(layer, "forward", merging_forward(number, layer))
                    keys = layer.self_attn.k_proj.register_forward_hook(disable(note_keys))
                    self._undo.append(keys.remove)

    def _restore_later(self, module: Any, name: str) -> None:
        if name in module.__dict__:
            value = module.__dict__[name]
            self._undo.append(lambda: setattr(module, name, value))

    def _replace(self, module: Any, name: str, value: Any) -> None:
        if name in module.__dict__:
            self._restore_later(module, name)
        else:
            self._undo.append(lambda: module.__dict__.pop(name, None))
        module.__dict__[name] = value

    # -- what the hooks call ----------------------------------------------------------------------

    def _before_head(self, module: Any, args: Any, kwargs: Any) -> None:
        if module is self.adapter.model:
            kwargs = self.calls.host.named(args, kwargs)
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise NotImplementedError(
                "logits_to_keep as a tensor of columns is not supported while visual tokens are "
                "removed; give a number of last columns"
            )
        Step.discard(self.calls)
        Step(self.calls, self.applied[-1], self.thread, head=kwargs, opened_by_head=True).open()

    def _after_head(self, module: Any, args: Any, output: Any) -> None:
        step = Step.of(self.calls)
        if step is not None and step.opened_by_head:
            step.close()

    def _before_host(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        given = self.calls.host.named(args, kwargs)
        step = Step.of(self.calls)
        if step is None or not step.opened_by_head or step.inputs is not None:
            Step.discard(self.calls)
            step = Step(self.calls, self.applied[-1], self.thread).open()
        step.enter_host(given)
        return (), given

    def _before_language_model(self, module: Any, args: Any, kwargs: Any) -> Any:
        step = Step.of(self.calls)
        given = self.calls.language.named(args, kwargs)
        return (), given if step is None else step.enter_language_model(given)

    def _before_layer(self, number: int, module: Any, args: Any, kwargs: Any) -> Any:
        step = Step.of(self.calls)
        active = step is not None and step.is_in_layers
        if not active and not self._checkpointed:
            return None
        given = dict(kwargs)
        states, *rest = args or (given.pop("hidden_states"),)
        cos = given["position_embeddings"][0]
        if active:
            assert step is not None  # it is active
            checkpointing = module.training and getattr(module, "gradient_checkpointing", False)
            if checkpointing and step.reduction is not None:
                self._checkpointed[cos] = step.reduction
            states, given = step.enter_layer(number, module, states, given)
        elif (again := self._checkpointed.get(cos)) is not None:
            states, given = again.enter_layer_again(number, module, states, given)
        else:
            return None
        return (states, *rest), given

    def _after_language_model(self, module: Any, args: Any, output: Any) -> None:
        step = Step.of(self.calls)
        if step is not None:
            step.leave_language_model(output)

    def _after_host(self, module: Any, args: Any, output: Any) -> None:
        step = Step.of(self.calls)
        if step is None:
            return
        try:
            step.leave_host(module, output)
        finally:
            if not step.opened_by_head:
                step.close()

    def _input_ids(self) -> Tensor | None:
        step = Step.of(self.calls)
        return None if step is None or step.inputs is None else step.inputs.given.get("input_ids")

    def _note_encoded(self, name: str, encoded: EncodedImages) -> None:
        self.thread.encoded[name] = encoded

    def _loss(self, loss_function: Any) -> Any:
        """The host's own loss, on the labels of the columns that remain."""

        def loss(*args: Any, labels: Tensor, **kwargs: Any) -> Any:
            step = Step.of(self.calls)
            if step is not None and step.columns is not None:
                labels = step.columns.take(labels, fill=-100)
                if (shifted := kwargs.get("shift_labels")) is not None:
                    # What follows a column may have left: shift back, take, and shift again.
                    whole = functional.pad(shifted[:, :-1], (1, 0), value=-100)
                    kept = step.columns.take(whole, fill=-100)
                    kwargs["shift_labels"] = functional.pad(kept[:, 1:], (0, 1), value=-100)
            return loss_function(*args, labels=labels, **kwargs)

        return loss
