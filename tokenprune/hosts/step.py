"""One forward of a host, from its inputs to its loss: the path in order.

Its state is the call's, in a context variable: threads may run one model side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenprune.hosts.applied import Applied
from tokenprune.hosts.before_model import BeforeModel
from tokenprune.hosts.between_layers import BetweenLayers
from tokenprune.hosts.compat import cache_of, is_filled, past_length
from tokenprune.hosts.inputs import Calls, Inputs, PerThread, check_cache, find_prompt, read_inputs
from tokenprune.hosts.layer_fit import LayerFit, positions_now, prepare_layers
from tokenprune.hosts.masks import check_untouched, fit_model, positions_of
from tokenprune.hosts.memory import Fitting, Memory, fitting
from tokenprune.hosts.reduction import Reduction
from tokenprune.hosts.sequence import KeptColumns
from tokenprune.log import refuse

_now: ContextVar[Step | None] = ContextVar("step", default=None)


@dataclass
class Step:
    """One forward.

    Attributes:
        calls: how the host and its language model are called.
        applied: what is in force.
        thread: what the calling thread's forward before has left.
        head: the arguments of the model with its head.
        inputs: of the host.
        reduction: of a prompt with images.
        layer_fit: of a step whose layers hold different columns.
        columns: of the prompt, those that remain: labels lose the others.
        done: the prompt was reduced.
        opened_by_head: it lasts until the head has its loss.
    """

    calls: Calls
    applied: Applied
    thread: PerThread
    head: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs | None = None
    language_cache: Any = None
    reduction: Reduction | None = None
    layer_fit: LayerFit | None = None
    columns: KeptColumns | None = None
    done: bool = False
    opened_by_head: bool = False
    outer: Step | None = None
    former: list[tuple[ContextVar[Any], Any]] = field(default_factory=list)

    @staticmethod
    def of(calls: Calls) -> Step | None:
        """The innermost forward of this host that is under way in this thread."""
        step = _now.get()
        while step is not None and step.calls is not calls:
            step = step.outer
        return step

    @staticmethod
    def discard(calls: Calls) -> None:
        """Closes what an interrupt has left open: a host is not entered again within itself."""
        while (step := Step.of(calls)) is not None:
            step.close()

    def open(self) -> Step:
        self.outer = _now.get()
        self._set(_now, self)
        return self

    def _set(self, variable: ContextVar[Any], value: Any) -> None:
        self.former.append((variable, variable.get()))
        variable.set(value)

    def close(self) -> None:
        if self.reduction is not None:
            self.reduction.forget()
        while self.former:
            variable, value = self.former.pop()
            variable.set(value)

    @property
    def is_in_layers(self) -> bool:
        return self.layer_fit is not None or (self.reduction is not None and not self.done)

    # -- the path of one forward ------------------------------------------------------------------

    def enter_host(self, given: dict[str, Any]) -> None:
        """Reads what the host is called with, and changes nothing: its cache counts all columns."""
        self.inputs = read_inputs(given, self.calls, self.applied, self.thread)
        memory = Memory.of(self.inputs.cache) if self.inputs.past else None
        prompt = self.inputs.placeholders is not None
        if memory is not None and (prompt or memory.uniform or self.calls.in_layers):
            # Ours to fit; else the layers get hooks for this one forward.
            self._set(fitting, Fitting(memory.origin, lambda: self.calls.in_force))

    def enter_language_model(self, given: dict[str, Any]) -> dict[str, Any]:
        """A prompt's reduction begins; a step's mask and positions are fitted to its cache."""
        inputs = self.inputs
        if inputs is None:
            return given
        self.language_cache = check_cache(given, self.calls, inputs)
        memory = Memory.of(self.language_cache) if inputs.past else None
        if memory is not None:
            check_untouched(self.language_cache)
            if memory.origin.is_fitted:
                memory.origin.drop_pending()
        if inputs.placeholders is not None and not self.done and self.reduction is None:
            kind = BetweenLayers if self.applied.method.in_layers else BeforeModel
            prompt = find_prompt(
                inputs, given, self.head, self.language_cache, self.calls, self.applied, self.thread
            )
            self.reduction = kind(self.applied, self.calls.adapter, prompt)
            return self.reduction.begin(given)
        if memory is None:
            return given
        if memory.uniform:
            return fit_model(given, self.calls.language, self.calls.language_model, inputs.past)
        self._set(positions_now, positions_of(given, inputs.past))
        prepare_layers(given, memory, inputs.past)
        if self.calls.in_layers:
            self.layer_fit = LayerFit()
        return given

    def enter_layer(
        self, number: int, layer: Any, states: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """A prompt's columns leave between layers; a step's arguments are fitted to each layer."""
        if self.layer_fit is not None:
            return states, self.layer_fit.fit(number, layer, states, given, self.language_cache)
        if self.reduction is not None and not self.done:
            return self.reduction.enter_layer(number, layer, states, given)
        return states, given

    def leave_language_model(self, output: Any) -> None:
        """The reduction ends: what it did is noted, and what it left is remembered."""
        # A cache is filled in place, also where the output does not hand it on.
        cache = next(
            (one for one in (cache_of(output), self.language_cache) if is_filled(one)), None
        )
        if self.inputs is not None and self.reduction is not None and not self.done:
            outcome = self.reduction.end(cache)
            if outcome is not None:
                self.done, self.columns = True, outcome.columns
                self.applied.note(outcome)
        if self.inputs is not None and cache is not None:
            self.thread.filled = self.inputs.filled(past_length(cache))

    def leave_host(self, host: Any, output: Any) -> None:
        """Only labels are still to come; the head's loss takes `columns`."""
        inputs, self.inputs = self.inputs, None
        if output is None:  # it failed
            return
        prompt = inputs is not None and inputs.placeholders is not None
        if prompt and not self.done:
            message = (
                f"no visual token was removed: {type(host).__name__} did not reach its language "
                "model by the way the adapter knows; one that was compiled before runs on without"
            )
            refuse(self.applied.strict, RuntimeError(message))
