"""Timed runs of a model, whole or with a reduction applied."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.apply import apply
from tokenprune.hosts.compat import cache_of
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.hosts.verifying.compare import replaced
from tokenprune.hosts.verifying.runs import Words
from tokenprune.method import Method


@dataclass(frozen=True)
class Case:
    """What is in force in a run; `method` is None for the whole model."""

    name: str
    method: Method | None = None
    keep_ratio: float | None = None


@dataclass(frozen=True)
class Run:
    """What one run took, in seconds, as `ProfileRow` names its parts."""

    encode: float | None
    reduce: float | None
    prefill: float
    first_token: float
    step: float
    total: float
    tokens: int | None
    kv_cache_bytes: int | None
    peak_memory_bytes: int | None


@dataclass
class Phases:
    """The stretches of one `generate`, told apart by hooks.

    Attributes:
        first: up to the end of the first forward, the prompt's.
        further: from there on.
        encoding: of images.
        cache_bytes: after the first forward; None where there is no cache to count.
    """

    first: Stopwatch
    further: Stopwatch
    encoding: list[Stopwatch] = field(default_factory=list)
    cache_bytes: int | None = None
    begun: bool = False

    def after_forward(self, module: Any, args: Any, output: Any) -> None:
        if not self.begun:
            self.begun = True
            self.first.__exit__()
            self.cache_bytes = bytes_held(cache_of(output))
            self.further.__enter__()

    def watching(self, encode: Any, device: torch.device) -> Any:
        # generate() picks the arguments of this function by its signature.
        @functools.wraps(encode)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with Stopwatch(device) as stopwatch:
                output = encode(*args, **kwargs)
            self.encoding.append(stopwatch)
            return output

        return watched


@dataclass
class Runs:
    """The runs of one profile: all on the same inputs, to the same number of tokens."""

    model: Any
    adapter: Adapter
    inputs: dict[str, Any]
    new_tokens: int
    device: torch.device

    def run(self, case: Case) -> Run:
        """Applies, generates, and undoes; only generating is timed.

        Raises:
            Exception: whatever the host or the method refuses.
        """
        with ExitStack() as stack:
            handle = None
            if case.method is not None:
                handle = stack.enter_context(
                    apply(self.model, case.method, keep_ratio=case.keep_ratio)
                )
            phases, peak = self._generate()
            encode = sum(watch.seconds for watch in phases.encoding) if phases.encoding else None
            first, further = phases.first.seconds, phases.further.seconds
            reduce, tokens = None, None
            if handle is not None:
                outcome, report = handle.outcome(), handle.report()
                reduce, tokens = report.seconds_reducing, sum(report.tokens_after)
                if encode is not None:  # attention is read while images are encoded
                    encode -= sum(watch.seconds for watch in outcome.reading)
        return Run(
            encode=encode,
            reduce=reduce,
            prefill=first - (encode or 0.0) - (reduce or 0.0),
            first_token=first,
            step=further / (self.new_tokens - 1),
            total=first + further,
            tokens=tokens,
            kv_cache_bytes=phases.cache_bytes,
            peak_memory_bytes=peak,
        )

    def _generate(self) -> tuple[Phases, int | None]:
        on_gpu = self.device.type == "cuda"
        host = self.adapter.model
        phases = Phases(Stopwatch(self.device), Stopwatch(self.device))
        length, choose = self.inputs["input_ids"].shape[1], Words(self.adapter.config)
        with ExitStack() as stack:
            stack.callback(self.model.register_forward_hook(phases.after_forward).remove)
            encode = phases.watching(host.get_image_features, self.device)
            stack.enter_context(replaced(host, "get_image_features", encode))
            if on_gpu:
                stack.enter_context(torch.cuda.device(self.device))
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            phases.first.__enter__()
            output = self.model.generate(
                **self.inputs,
                max_new_tokens=self.new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=None,  # every run says as many tokens
                pad_token_id=0,
                use_cache=True,
                logits_processor=[choose],
            )
            phases.further.__exit__()
            if on_gpu:
                torch.cuda.synchronize()
        if output.shape[1] - length != self.new_tokens:
            raise RuntimeError(
                f"generate was expected to give {self.new_tokens} new tokens, "
                f"it gave {output.shape[1] - length}"
            )
        return phases, torch.cuda.max_memory_allocated(self.device) if on_gpu else None


def bytes_held(cache: Any) -> int | None:
    """Of a cache's keys and values over all layers and rows; None without a cache."""
    if cache is None:
        return None
    states = [
        part
        for layer in cache.layers
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(part, torch.Tensor)
    ]
    return sum(part.numel() * part.element_size() for part in states)


def device_of(model: nn.Module) -> torch.device:
    """The one device of a model's parameters.

    Raises:
        NotImplementedError: several, or one on which nothing is timed.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or torch.device(devices[0]).type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"profile times models on one device, a CPU or a CUDA GPU, got {', '.join(devices)}"
        )
    return torch.device(devices[0])
