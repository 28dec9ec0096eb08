"""verify(model, inputs): the masked-equivalence proof, on the user's own model and inputs.

What is proved: with its dropped tokens taken out, a model says what the whole model says with the
same tokens hidden. The whole model runs as it is, on the same inputs, without a reduction and
without a cache; two things alone are changed on the way into its language model. The columns of
dropped tokens are closed in the attention masks (for methods between the layers from the layer on
before which they left), and the placeholders of tokens that a method made anew carry what it made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapter import Adapter, find_adapter
from tokenprune.apply import Handle, apply, unwrap
from tokenprune.budget import Budget
from tokenprune.hosts.compat import (
    UnknownTransformersError,
    attention_implementation,
    check_language_model,
    image_features,
    transformers_version,
)
from tokenprune.hosts.hidden import first_gap, hide, moved_by_rounding, shifted, with_features
from tokenprune.hosts.hooks import is_applied
from tokenprune.hosts.layers import check_layers
from tokenprune.hosts.reduction import ReducedImages
from tokenprune.hosts.sequence import edge_padding
from tokenprune.method import LayerMethod, Method, get_method
from tokenprune.ops.common.checks import check_int

OK, FAILED, NOT_CHECKED = "ok", "failed", "not checked"
# What a check tolerates, in units of what rounding the embeddings once does to the logits. Between
# equal models it was at most 1.7 in float32, float16 and bfloat16, over 2 and over 24 layers.
ROUNDINGS = 8
# A fault must show at least so many times the tolerance, or its absence proves nothing.
MARGIN = 2


@dataclass(frozen=True)
class Check:
    """One thing that was to be shown.

    Attributes:
        name: "features", "keep all", "prompt", "positions", "generation" or "undo".
        status: "ok", "failed" or "not checked".
        difference: the largest between two logits that should be equal; None where there is none.
        tolerance: of it; 0 where every bit must be equal.
        detail: what was compared, or what went wrong.
    """

    name: str
    status: str
    difference: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """What held, of one model, method and input.

    Attributes:
        model: class and `model_type`.
        method: its name.
        keep_ratio: share of the visual tokens that was kept.
        dtype, attention: of the language model.
        transformers: the version.
        tokens_before, tokens_after: visual tokens of all images.
        checks: in order.
    """

    model: str
    method: str
    keep_ratio: float
    dtype: str
    attention: str
    transformers: str
    tokens_before: int
    tokens_after: int
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Everything was checked and everything held."""
        return all(check.status == OK for check in self.checks)

    @property
    def largest_difference(self) -> float:
        """Between the logits of the reduced model and of the whole one with tokens hidden.

        NaN where neither prompt nor generation came to be compared.
        """
        found = [
            check.difference
            for check in self.checks
            if check.name in ("prompt", "generation") and check.difference is not None
        ]
        return max(found, default=float("nan"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite are None."""
        report: dict[str, Any] = {
            "ok": self.ok,
            "largest_difference": finite(self.largest_difference),
            **dataclasses.asdict(self),
        }
        for check in report["checks"]:
            check |= {name: finite(check[name]) for name in ("difference", "tolerance")}
        return report

    def __str__(self) -> str:
        lines = [
            f"{self.method}, {self.tokens_before:,} -> {self.tokens_after:,} visual tokens in "
            f"{self.model}, {self.dtype}, {self.attention}, transformers {self.transformers}",
            f"{'check':<12} {'':<12} {'difference':>11} {'tolerance':>11}",
        ]
        for check in self.checks:
            numbers = [
                "-" if value is None else f"{value:.2g}"
                for value in (check.difference, check.tolerance)
            ]
            lines.append(
                f"{check.name:<12} {check.status:<12} {numbers[0]:>11} {numbers[1]:>11}  "
                f"{check.detail}"
            )
        lines.append("verified" if self.ok else "NOT VERIFIED")
        return "\n".join(lines)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def verify(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    method: str | Method = "divprune",
    keep_ratio: float = 0.5,
    new_tokens: int = 4,
) -> VerifyReport:
    """Shows on a model of your own that a reduction changes nothing but what it says it changes.

    ```python
    report = tokenprune.verify(model, inputs, method="divprune", keep_ratio=0.25)
    assert report.ok, report
    ```

    Six checks:
    - *features*: the language model gets image features in the order in which
      `get_image_features` gives them, as methods that look at grids or attention rely on.
    - *keep all*: with `keep_ratio=1` no bit of the logits changes, in the prompt and in generation.
    - *prompt*: the logits of every column that remains are those of the whole model in which the
      dropped tokens are hidden and the kept ones carry the reduced features.
    - *generation*: the same for `new_tokens` generated one by one, against the whole model without
      a cache.
    - *positions*: were positions off by one, this input would show it.
    - *undo*: afterwards the model says what it said, to the bit, and its modules' attributes, hooks
      and configuration are what they were.

    The tolerance of *prompt* and *generation* is measured: `ROUNDINGS` times the largest change of
    the logits when the language model's input embeddings are moved by one rounding of its dtype
    (2^-23 of their value in float32, 2^-10 in float16, 2^-7 in bfloat16). A check that could not
    have seen a fault beyond its tolerance is "not checked": coarse dtypes hardly show positions,
    float32 does.

    It takes about twelve prefills of the whole model, and two more for each of `new_tokens`. The
    proof is for `positions="original"` and for these inputs.

    Args:
        model: a host that `apply` knows, in eval mode, without a reduction applied.
        inputs: what the model's processor gave, with `input_ids` and images.
        method: a name of `list_methods()`, or a `Method`.
        keep_ratio: share of the tokens to keep, in (0, 1].
        new_tokens: how many to generate, at least 1.

    Raises:
        NotImplementedError: a model that no adapter knows.
        ValueError, TypeError: arguments; a model in training mode or with a reduction applied.
    """
    name = method if isinstance(method, str) else type(method).__name__
    if isinstance(method, str):
        method = get_method(method)
    elif not isinstance(method, Method):
        raise TypeError(f"method must be a name or a Method, got {name}")
    Budget(None, keep_ratio)
    check_int("new_tokens", new_tokens, low=1)
    host, base = unwrap(model)
    adapter = find_adapter(base)
    if any(module.training for module in host.modules()):
        raise ValueError("the model must be in eval mode, got one in training; call model.eval()")
    if is_applied(base):
        raise ValueError("the model must be whole, got one with a reduction applied; remove it")
    if isinstance(method, LayerMethod):
        check_layers(adapter, method, "original")
    given = check_inputs(inputs, adapter)
    with torch.no_grad(), restored(base, adapter.restored):
        return Proof(host, adapter, given, name, method, keep_ratio, new_tokens).report()


def check_inputs(inputs: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be the processor's, a mapping, got {type(inputs).__name__}")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise ValueError("inputs must have input_ids [B, L]")
    if not bool((ids == adapter.image_token_id).any()):
        raise ValueError(
            f"inputs must hold an image, got no placeholder (id {adapter.image_token_id})"
        )
    return dict(inputs)


@dataclass
class Run:
    """What a model said: logits of the prompt [B, L, V] and of each new token [B, T, V]."""

    prompt: Tensor
    steps: Tensor | None = None
    tokens: Tensor | None = None

    def equals(self, other: Run) -> bool:
        mine, theirs = (self.prompt, self.steps), (other.prompt, other.steps)
        return all(
            (one is None and two is None)
            or (one is not None and two is not None and torch.equal(one, two))
            for one, two in zip(mine, theirs, strict=True)
        )


@dataclass
class Kept:
    """What a reduction says that it did, in terms of the whole sequence.

    Attributes:
        rows: for each row its columns that remain.
        hidden: for each layer [B, L] bool, the visual tokens that it does not see; one entry for
            all layers where tokens leave before the first.
        images: the reduced features, where the method makes them.
    """

    rows: list[Tensor]
    hidden: list[Tensor]
    images: ReducedImages | None


@dataclass
class Proof:
    """The runs of one verification."""

    model: Any
    adapter: Adapter
    inputs: dict[str, Any]
    name: str
    method: Method
    keep_ratio: float
    new_tokens: int
    checks: list[Check] = field(default_factory=list)
    counts: tuple[int, int] = (0, 0)

    def report(self) -> VerifyReport:
        whole = self.run()
        repeats = whole.equals(self.run())
        # Only now: in their first run, models add hooks of their own.
        modules = attributes(self.model, self.adapter.restored)
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
        language_model: Any = self.adapter.language_model
        return VerifyReport(
            model=f"{type(self.model).__name__} ({self.adapter.config.model_type})",
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
        given: list[Tensor] = []
        placed: list[Tensor] = []
        encode = self.adapter.model.get_image_features
        marks = self.inputs["input_ids"] == self.adapter.image_token_id
        call = check_language_model(self.adapter.language_model)

        def noting(*args: Any, **kwargs: Any) -> Any:
            output = encode(*args, **kwargs)
            parts = image_features(output)
            given.extend(part.reshape(-1, part.shape[-1]) for part in parts)
            return output

        def before_language_model(module: Any, args: Any, kwargs: Any) -> None:
            embeddings = call.named(args, kwargs)["inputs_embeds"]
            placed.append(embeddings[marks.to(embeddings.device)])

        with ExitStack() as stack:
            stack.callback(
                self.adapter.language_model.register_forward_pre_hook(
                    before_language_model, with_kwargs=True
                ).remove
            )
            stack.enter_context(
                replaced(self.adapter.model, "get_image_features", functools.wraps(encode)(noting))
            )
            self.forward()
        there, here = torch.cat(placed).double(), torch.cat(given).double()
        if there.shape != here.shape:
            raise RuntimeError(
                f"get_image_features gave {list(here.shape)}, {list(there.shape)} were placed"
            )
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
        with apply(self.model, self.method, keep_ratio=1.0):
            kept = self.run()
        self.note_bits("keep all", whole, kept, repeats, "keep_ratio=1 against the whole model")

    def undo(self, whole: Run, repeats: bool, modules: dict[str, Any]) -> None:
        left = attributes(self.model, self.adapter.restored)
        names = left.keys() | modules.keys()
        changed = sorted(name for name in names if left.get(name, self) != modules.get(name, self))
        if changed:
            self.note("undo", False, None, 0.0, f"changed: {', '.join(changed)}")
            return
        self.note_bits("undo", whole, self.run(), repeats, "the model after against before")

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
        with apply(self.model, self.method, keep_ratio=self.keep_ratio) as handle:
            short = self.forward()
            kept = self.kept(handle)
            report = handle.report()
        self.counts = sum(report.tokens_before), sum(report.tokens_after)
        reference = self.columns(self.reference(kept, self.forward), kept)
        moved = self.columns(self.reference(kept, self.forward, rounded=True), kept)
        scale = max(float(row.abs().max()) for row in reference)
        smallest = ROUNDINGS * torch.finfo(reference[0].dtype).eps * scale
        tolerance = max(ROUNDINGS * farthest(reference, moved), smallest)
        difference = farthest(reference, self.remaining(short, kept))
        nothing = not any(bool(layer.any()) for layer in kept.hidden)
        effect = farthest(reference, self.columns(whole.prompt, kept))
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
        off = self.columns(self.reference(kept, self.forward, shift=1), kept)
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
        if not hasattr(self.model, "generate"):
            detail = f"{type(self.model).__name__} does not generate"
            self.note("generation", NOT_CHECKED, None, None, detail)
            return
        mask = self.inputs.get("attention_mask")
        if mask is not None and not edge_padding(mask)[1]:
            detail = "the batch is padded on the right; generation goes on from the left"
            self.note("generation", NOT_CHECKED, None, None, detail)
            return
        with apply(self.model, self.method, keep_ratio=self.keep_ratio) as handle:
            short = self.generate()
            kept = self.kept(handle)
        alone = largest(whole.steps, self.generate(whole.tokens, use_cache=False).steps)
        if alone > tolerance:
            detail = f"the whole model itself differs by {alone:.2g} without a cache"
            self.note("generation", NOT_CHECKED, None, tolerance, detail)
            return
        again = functools.partial(self.generate, tokens=short.tokens, use_cache=False)
        steps = self.reference(kept, lambda: again().steps)
        difference = largest(short.steps, steps)
        detail = f"{self.new_tokens} tokens, the same without a cache"
        self.note("generation", difference <= tolerance, difference, tolerance, detail)

    # -- running the model ------------------------------------------------------------------------

    def run(self) -> Run:
        prompt = self.forward()
        if not hasattr(self.model, "generate"):
            return Run(prompt)
        return dataclasses.replace(self.generate(), prompt=prompt)

    def forward(self) -> Tensor:
        """[B, L, V] logits; the last hidden states of a model without a head."""
        output = self.model(**self.inputs)
        logits: Tensor | None = getattr(output, "logits", None)
        return output.last_hidden_state if logits is None else logits

    def generate(self, tokens: Tensor | None = None, use_cache: bool = True) -> Run:
        """`new_tokens` greedy tokens, or the given ones [B, T], and the logits before each."""
        length = self.inputs["input_ids"].shape[1]
        choose = Words(self.adapter.config) if tokens is None else Given(tokens, length)
        output = self.model.generate(
            **self.inputs,
            max_new_tokens=self.new_tokens + 1,  # so that the last one has been read, too
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=use_cache,
            logits_processor=[choose],
            return_dict_in_generate=True,
            output_logits=True,
        )
        steps = torch.stack(output.logits, dim=1)
        return Run(steps[:, :0], steps, output.sequences[:, length:])

    def kept(self, handle: Handle) -> Kept:
        ids = self.inputs["input_ids"]
        placeholders = ids == self.adapter.image_token_id
        if isinstance(self.method, LayerMethod):
            hidden = [
                torch.zeros_like(placeholders)
                if keep is None
                else placeholders & ~keep.to(ids.device)
                for keep in handle._kept_by_layer
            ]
        else:
            remain = torch.zeros_like(placeholders)
            for row, columns in enumerate(handle.kept_positions):
                remain[row, columns.to(ids.device)] = True
            hidden = [placeholders & ~remain]
        return Kept(handle.kept_positions, hidden, handle._images if self.method.merges else None)

    def columns(self, logits: Tensor, kept: Kept) -> list[Tensor]:
        """Of the whole sequence's logits, for each row those that remain."""
        return [row[columns.to(row.device)] for row, columns in zip(logits, kept.rows, strict=True)]

    def remaining(self, logits: Tensor, kept: Kept) -> list[Tensor]:
        """Of the shorter sequence's logits, for each row those without padding."""
        mask = self.inputs.get("attention_mask")
        pad_left = mask is None or edge_padding(mask)[1]
        counts = [len(columns) for columns in kept.rows]
        return [
            row[len(row) - count :] if pad_left else row[:count]
            for row, count in zip(logits, counts, strict=True)
        ]

    def reference(
        self,
        kept: Kept,
        run: Callable[[], Any],
        *,
        rounded: bool = False,
        shift: int = 0,
    ) -> Any:
        """What `run` gives on the whole model with tokens hidden.

        Args:
            rounded: the embeddings are moved by one rounding.
            shift: added to all positions from `first_gap` on.
        """
        placeholders = self.inputs["input_ids"] == self.adapter.image_token_id
        language_model = self.adapter.language_model
        call = check_language_model(language_model)
        everywhere = not isinstance(self.method, LayerMethod)
        hidden = kept.hidden[0] if everywhere else kept.hidden[-1]

        def before_language_model(module: Any, args: Any, kwargs: Any) -> Any:
            given = call.named(args, kwargs)
            embeddings = given["inputs_embeds"]
            if kept.images is not None:
                given |= with_features(given, kept.images, placeholders)
            if rounded:
                given["inputs_embeds"] = moved_by_rounding(given["inputs_embeds"])
            if shift:
                given |= shifted(given, first_gap(hidden, kept.rows), shift)
            if everywhere:
                given["attention_mask"] = hide(
                    given.get("attention_mask"), hidden, embeddings, in_layer=False
                )
            return (), given

        def before_layer(unseen: Tensor, layer: Any, args: Any, kwargs: Any) -> Any:
            states, *rest = args or (kwargs.pop("hidden_states"),)
            flash = "flash" in attention_implementation(layer.self_attn)
            mask = hide(kwargs.get("attention_mask"), unseen, states, in_layer=not flash)
            return (states, *rest), kwargs | {"attention_mask": mask}

        with ExitStack() as stack:
            install = [(language_model, before_language_model)]
            if not everywhere:
                install += [
                    (layer, functools.partial(before_layer, unseen))
                    for layer, unseen in zip(self.adapter.decoder_layers, kept.hidden, strict=True)
                    if bool(unseen.any())
                ]
            for module, hook in install:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            return run()


class Words:
    """Keeps greedy search away from the marks of images: a new one would have no features."""

    def __init__(self, config: Any) -> None:
        marks = [value for name, value in config.to_dict().items() if "_token_i" in name]
        self.marks = [mark for mark in marks if isinstance(mark, int)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        inside = [mark for mark in self.marks if 0 <= mark < scores.shape[1]]
        scores = scores.clone()
        scores[:, inside] = -torch.inf
        return scores


class Given:
    """Makes greedy search choose `tokens` [B, T] after a prompt of so many columns."""

    def __init__(self, tokens: Tensor, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens[:, input_ids.shape[1] - self.length, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def largest(one: Tensor | None, other: Tensor | None) -> float:
    """The largest difference; infinite where shapes differ or one is not a number."""
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    worst = 0.0
    # A few rows at a time: in float64 the logits of a long prompt would be gigabytes.
    parts = (side.flatten(0, -2).split(64) for side in (one, other.to(one.device)))
    for mine, theirs in zip(*parts, strict=True):
        if mine.numel():
            difference = float((mine.double() - theirs.double()).abs().max())
            worst = float("inf") if difference != difference else max(worst, difference)
    return worst


def farthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(largest(one, other) for one, other in zip(some, others, strict=True))


@contextmanager
def restored(owner: Any, names: Iterable[str]) -> Iterator[None]:
    """Attributes that the whole model's own forwards change are put back in the end."""
    former = {name: owner.__dict__[name] for name in names if name in owner.__dict__}
    try:
        yield
    finally:
        owner.__dict__.update(former)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """For as long as it lasts, an attribute of this one instance is another."""
    former = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if former is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = former


def attributes(model: Any, restored: Iterable[str] = ()) -> dict[str, Any]:
    """What must be the same in the end, by name: attributes of all modules, and the configuration.

    Of hooks their number; tensors are what the bits of the logits show.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            known = not isinstance(value, (dict, list, Tensor)) and key not in restored
            found[f"{name}.{key}".lstrip(".")] = (
                len(value) if key.endswith("_hooks") else Same(value) if known else None
            )
    for key in ("config", "generation_config"):
        if hasattr(getattr(model, key, None), "to_dict"):
            found[f"the {key}"] = getattr(model, key).to_dict()
    return found


@dataclass(frozen=True, eq=False)
class Same:
    """Equal to what holds the very same object, or an equal plain value."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return False
        plain = isinstance(self.value, (int, float, str, tuple, torch.dtype, torch.device))
        return self.value is other.value or (plain and bool(self.value == other.value))
