"""The checks of one verification."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.apply import apply
from tokenprune.hosts.compat import (
    UnknownTransformersError,
    attention_implementation,
    check_language_model,
    transformers_version,
)
from tokenprune.hosts.encoder import parts_of
from tokenprune.hosts.sequence import edge_padding
from tokenprune.hosts.verifying.compare import attributes, farthest, largest, replaced
from tokenprune.hosts.verifying.report import FAILED, NOT_CHECKED, OK, Check, VerifyReport
from tokenprune.hosts.verifying.runs import Kept, Run, Runs
from tokenprune.hosts.videos import Modality

# What a check tolerates, in units of what rounding the embeddings once does to the logits. Between
# equal models it was at most 1.7 in float32, float16 and bfloat16, over 2 and over 24 layers.
ROUNDINGS = 8
# A fault must show at least so many times the tolerance, or its absence proves nothing.
MARGIN = 2


@dataclass
class Proof:
    """One verification.

    Attributes:
        runs: of the model.
        name: the method's.
        keep_ratio: of every image.
        checks: that are done.
        counts: visual tokens of all images, before and after.
    """

    runs: Runs
    name: str
    keep_ratio: float
    checks: list[Check] = field(default_factory=list)
    counts: tuple[int, int] = (0, 0)

    def report(self) -> VerifyReport:
        whole = self.runs.run()
        repeats = whole.equals(self.runs.run())
        # Only now: in their first run, models add hooks of their own.
        modules = attributes(self.runs.model, self.runs.adapter.conversation_state)
        with self.checking("features"):
            self.features()
        with self.checking("keep all"):
            self.keep_all(whole, repeats)
        tolerance = float("nan")  # which nothing meets, where the prompt failed
        with self.checking("prompt"):
            tolerance = self.prompt(whole)
        with self.checking("generation"):
            self.generation(whole, tolerance)
        with self.checking("undo"):
            self.undo(whole, repeats, modules)
        language_model: Any = self.runs.adapter.language_model
        return VerifyReport(
            model=f"{type(self.runs.model).__name__} ({self.runs.adapter.config.model_type})",
            method=self.name,
            keep_ratio=self.keep_ratio,
            dtype=str(language_model.dtype).removeprefix("torch."),
            attention=attention_implementation(language_model),
            transformers=transformers_version(),
            tokens_before=self.counts[0],
            tokens_after=self.counts[1],
            checks=tuple(self.checks),
        )

    @contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Whatever goes wrong within is the check's result: a refusal proves nothing."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            refused = isinstance(error, NotImplementedError)
            broken = isinstance(error, UnknownTransformersError) or not refused
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.note(name, FAILED if broken else NOT_CHECKED, None, None, text)

    def note(
        self,
        name: str,
        status: str | bool,
        difference: float | None,
        tolerance: float | None,
        detail: str,
    ) -> None:
        if isinstance(status, bool):
            status = OK if status else FAILED
        self.checks.append(Check(name, status, difference, tolerance, detail))

    # -- the checks -------------------------------------------------------------------------------

    def features(self) -> None:
        """Hosts may scale features on their way, so directions are compared."""
        adapter, ids = self.runs.adapter, self.runs.inputs["input_ids"]
        sources = [
            (modality, source, ids == source.token_id) for modality, source in adapter.sources()
        ]
        given: dict[str, list[Tensor]] = {}
        placed: list[Tensor] = []
        call = check_language_model(adapter.language_model)
        encoding: list[str] = []

        def noting(modality: Modality, source: Any, encode: Any, *args: Any, **kwargs: Any) -> Any:
            encoding.append(modality.name)  # one may call another
            output = encode(*args, **kwargs)
            encoding.pop()
            if not encoding:
                parts = given.setdefault(modality.name, [])
                parts.extend(
                    part.reshape(-1, part.shape[-1]) for part in parts_of(source.features(output))
                )
            return output

        def before_language_model(module: Any, args: Any, kwargs: Any) -> None:
            embeddings = adapter.known(call.named(args, kwargs))["inputs_embeds"]
            placed.extend(embeddings[marks.to(embeddings.device)] for _, _, marks in sources)

        with ExitStack() as stack:
            stack.callback(
                adapter.language_model.register_forward_pre_hook(
                    before_language_model, with_kwargs=True
                ).remove
            )
            for modality, source, _ in sources:
                encode = getattr(adapter.model, modality.encoder)
                noted = functools.partial(noting, modality, source, encode)
                watched = functools.wraps(encode)(noted)
                stack.enter_context(replaced(adapter.model, modality.encoder, watched))
            self.runs.forward()
        if any(bool(marks.any()) and one.name not in given for one, _, marks in sources):
            raise NotImplementedError("the images were encoded before; give pixels to see this")
        parts = [part for modality, _, _ in sources for part in given.get(modality.name, [])]
        here = adapter.placed(torch.cat(parts)).double()
        there = torch.cat(placed).double()
        if there.shape != here.shape:
            raise RuntimeError(f"{list(here.shape)} were encoded, {list(there.shape)} were placed")
        one, other = (nn.functional.normalize(side, dim=1) for side in (there, here.to(there)))
        apart = (one - other).norm(dim=1).max().item()
        moved = (other.roll(1, 0) - other).norm(dim=1).max().item()
        tolerance = ROUNDINGS * torch.finfo(placed[0].dtype).eps
        if moved < MARGIN * tolerance:
            detail = "features are too much alike to tell their order"
            self.note("features", NOT_CHECKED, apart, tolerance, detail)
            return
        detail = "directions where placed against as encoded, in order"
        self.note("features", apart <= tolerance, apart, tolerance, detail)

    def keep_all(self, whole: Run, repeats: bool) -> None:
        with apply(self.runs.model, self.runs.method, keep_ratio=1.0):
            kept = self.runs.run()
        self.note_bits("keep all", whole, kept, repeats, "keep_ratio=1 against the whole model")

    def undo(self, whole: Run, repeats: bool, modules: dict[str, Any]) -> None:
        left = attributes(self.runs.model, self.runs.adapter.conversation_state)
        names = left.keys() | modules.keys()
        changed = sorted(name for name in names if left.get(name, self) != modules.get(name, self))
        if changed:
            self.note("undo", False, None, 0.0, f"changed: {', '.join(changed)}")
            return
        self.note_bits("undo", whole, self.runs.run(), repeats, "the model after against before")

    def note_bits(self, name: str, whole: Run, other: Run, repeats: bool, detail: str) -> None:
        difference = largest(whole.prompt, other.prompt)
        if whole.steps is not None and other.steps is not None:
            difference = max(difference, largest(whole.steps, other.steps))
        if whole.equals(other) or repeats:
            self.note(name, whole.equals(other), difference, 0.0, detail)
        else:
            detail = "the whole model's own bits differ from run to run"
            self.note(name, NOT_CHECKED, difference, 0.0, detail)

    def prompt(self, whole: Run) -> float:
        """Returns the tolerance, for generation too."""
        with apply(self.runs.model, self.runs.method, keep_ratio=self.keep_ratio) as handle:
            short = self.runs.forward()
            kept = self.runs.kept(handle)
            report = handle.report()
        self.counts = sum(report.tokens_before), sum(report.tokens_after)
        reference = self.runs.columns(self.runs.reference(kept, self.runs.forward), kept)
        moved = self.runs.columns(self.runs.reference(kept, self.runs.forward, rounded=True), kept)
        scale = max(float(row.abs().max()) for row in reference)
        smallest = ROUNDINGS * torch.finfo(reference[0].dtype).eps * scale
        tolerance = max(ROUNDINGS * farthest(reference, moved), smallest)
        difference = farthest(reference, self.runs.remaining(short, kept))
        nothing = not any(bool(layer.any()) for layer in kept.hidden)
        effect = farthest(reference, self.runs.columns(whole.prompt, kept))
        if nothing or effect >= MARGIN * tolerance or difference > tolerance:
            detail = "the whole model with the dropped tokens hidden"
            self.note("prompt", difference <= tolerance, difference, tolerance, detail)
        else:
            detail = f"hiding the dropped tokens changes too little to tell ({effect:.2g})"
            self.note("prompt", NOT_CHECKED, difference, tolerance, detail)
        if not nothing:
            self.positions(kept, reference, tolerance)
        return tolerance

    def positions(self, kept: Kept, reference: list[Tensor], tolerance: float) -> None:
        off = self.runs.columns(self.runs.reference(kept, self.runs.forward, shift=1), kept)
        effect = farthest(reference, off)
        if effect == 0:
            self.note("positions", OK, 0.0, tolerance, "positions do not matter in this model")
        elif effect >= MARGIN * tolerance:
            self.note("positions", OK, effect, tolerance, "this is what one position off would do")
        else:
            coarse = torch.finfo(reference[0].dtype).eps > torch.finfo(torch.float32).eps
            advice = "; try float32" if coarse else ""
            detail = f"one position off would do no more than rounding{advice}"
            self.note("positions", NOT_CHECKED, effect, tolerance, detail)

    def generation(self, whole: Run, tolerance: float) -> None:
        if not hasattr(self.runs.model, "generate"):
            detail = f"{type(self.runs.model).__name__} does not generate"
            self.note("generation", NOT_CHECKED, None, None, detail)
            return
        mask = self.runs.inputs.get("attention_mask")
        if mask is not None and not edge_padding(mask)[1]:
            detail = "the batch is padded on the right; generation goes on from the left"
            self.note("generation", NOT_CHECKED, None, None, detail)
            return
        with apply(self.runs.model, self.runs.method, keep_ratio=self.keep_ratio) as handle:
            short = self.runs.generate()
            kept = self.runs.kept(handle)
        try:
            again = self.runs.generate(whole.tokens, use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no fault of the reduction, which is not in force
            detail = f"the whole model fails without a cache, {type(error).__name__}: {error}"
            self.note("generation", NOT_CHECKED, None, tolerance, " ".join(detail.split()))
            return
        alone = largest(whole.steps, again.steps)
        if alone > tolerance:
            detail = f"the whole model itself differs by {alone:.2g} without a cache"
            self.note("generation", NOT_CHECKED, None, tolerance, detail)
            return
        hidden = functools.partial(self.runs.generate, tokens=short.tokens, use_cache=False)
        steps = self.runs.reference(kept, hidden).steps
        difference = largest(short.steps, steps)
        detail = f"{self.runs.new_tokens} tokens, the same without a cache"
        self.note("generation", difference <= tolerance, difference, tolerance, detail)
