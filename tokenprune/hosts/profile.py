"""profile(model, inputs): what a reduction costs and saves, on the user's own model and inputs.

Machines drift: a clock slows down, a neighbor wakes up. So each timed run of a method stands beside
a run of the whole model, and ratios are those of neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import nn

from tokenprune.budget import Budget
from tokenprune.hosts.compat import attention_implementation, transformers_version
from tokenprune.hosts.profiling.report import STAGES, WHOLE, ProfileReport, ProfileRow, Spread
from tokenprune.hosts.profiling.runs import Case, Run, Runs, device_of
from tokenprune.hosts.verify import open_whole
from tokenprune.hosts.verifying.compare import restored
from tokenprune.method import Method, get_method
from tokenprune.ops.common.checks import check_int

# `random` chooses for next to nothing: what another method takes beyond it is its choosing.
METHODS = ("divprune", "random")
KEEP_RATIOS = (0.5, 0.25)
FEWEST_REPEATS = 3


def profile(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    methods: Sequence[str | Method] = METHODS,
    keep_ratios: Sequence[float] = KEEP_RATIOS,
    new_tokens: int = 16,
    repeats: int = 5,
) -> ProfileReport:
    """Times what reductions cost and save, side by side with the whole model.

    Example::

        report = tokenprune.profile(model, inputs, methods=["divprune"], keep_ratios=[0.25])
        print(report)

    Each method at each ratio generates `new_tokens` greedily `repeats` times, with a run of the
    whole model just before each; ends of text are ignored, so that all runs say as many tokens. One
    run of each comes first and is not timed. Nothing is left in the model.

    A ratio of 1 removes nothing: it shows what applying takes by itself. A method that the host
    refuses is a row with the reason.

    Args:
        model: a host that `apply` knows, with its head, in eval mode, without a reduction applied,
            on one device.
        inputs: what the model's processor gave, with `input_ids` and images.
        methods: names of `list_methods()`, or methods.
        keep_ratios: shares of the tokens to keep, in (0, 1].
        new_tokens: how many to generate, at least 2: the first comes with the prompt.
        repeats: timed runs of each, at least 3.

    Raises:
        NotImplementedError: a model that no adapter knows, or on several devices, or on one that is
            neither a CPU nor a CUDA GPU.
        ValueError, TypeError: arguments; a model in training mode or with a reduction applied.
        torch.OutOfMemoryError: as it comes.
    """
    cases = list(cases_of(methods, keep_ratios))
    check_int("new_tokens", new_tokens, low=2)
    check_int("repeats", repeats, low=FEWEST_REPEATS)
    host, adapter, given = open_whole(model, inputs)
    if not hasattr(host, "generate"):
        raise TypeError(f"model must have its head, to generate, got {type(host).__name__}")
    device = device_of(host)
    runs = Runs(host, adapter, given, new_tokens, device)
    with torch.no_grad(), restored(adapter.model, adapter.conversation_state):
        rows = measured(runs, cases, repeats)
    language_model: Any = adapter.language_model
    on_gpu = device.type == "cuda"
    return ProfileReport(
        model=f"{type(host).__name__} ({adapter.config.model_type})",
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        threads=torch.get_num_threads(),
        dtype=str(language_model.dtype).removeprefix("torch."),
        attention=attention_implementation(language_model),
        torch=torch.__version__,
        transformers=transformers_version(),
        triton=triton_version(),
        prompts=len(given["input_ids"]),
        columns=given["input_ids"].shape[1],
        tokens=int(adapter.placeholders(given["input_ids"]).sum()),
        new_tokens=new_tokens,
        repeats=repeats,
        rows=rows,
    )


def cases_of(methods: Sequence[str | Method], keep_ratios: Sequence[float]) -> Iterator[Case]:
    """Each method at each ratio.

    Raises:
        ValueError, TypeError: what is none.
    """
    for name, given in (("methods", methods), ("keep_ratios", keep_ratios)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"{name} must be a list, got {type(given).__name__}")
        if not given:
            raise ValueError(f"{name} must hold at least one, got none")
    for ratio in keep_ratios:
        Budget(None, ratio)
    for method in methods:
        if not isinstance(method, (str, Method)):
            raise TypeError(f"methods must be names or Methods, got {type(method).__name__}")
        name = method if isinstance(method, str) else type(method).__name__
        made = get_method(method) if isinstance(method, str) else method.without_budget()
        yield from (Case(name, made, ratio) for ratio in keep_ratios)


def measured(runs: Runs, cases: Sequence[Case], repeats: int) -> tuple[ProfileRow, ...]:
    """A row for the whole model, then one for each case."""
    whole = Case(WHOLE)
    placeholders = runs.adapter.placeholders(runs.inputs["input_ids"])
    runs.run(whole)
    refusals = [refusal(runs, case) for case in cases]
    pairs: list[list[tuple[Run, Run]]] = [[] for _ in cases]
    for _ in range(repeats):
        for case, refused, found in zip(cases, refusals, pairs, strict=True):
            if refused is None:
                found.append((runs.run(whole), runs.run(case)))
    beside = [one for found in pairs for one, _ in found]
    if not beside:  # everything was refused
        beside = [runs.run(whole) for _ in range(repeats)]
    rows = [row_of(whole, beside, tokens=int(placeholders.sum()))]
    for case, refused, found in zip(cases, refusals, pairs, strict=True):
        if refused is not None:
            rows.append(ProfileRow(case.name, case.keep_ratio, refused=refused))
            continue
        ratios = [one.total / other.total for one, other in found]
        shown = all(ratio > 1 for ratio in ratios) or all(ratio < 1 for ratio in ratios)
        reduced = [other for _, other in found]
        rows.append(row_of(case, reduced, speedup=Spread.of(ratios), shown=shown))
    return tuple(rows)


def refusal(runs: Runs, case: Case) -> str | None:
    """Why a case cannot be run, after a try that also warms it up; None where it can."""
    try:
        runs.run(case)
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def triton_version() -> str | None:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def row_of(case: Case, runs: Sequence[Run], **known: Any) -> ProfileRow:
    last = runs[-1]
    times: dict[str, Spread | None] = {}
    for stage in STAGES:
        values = [getattr(run, stage) for run in runs]
        times[stage] = None if None in values else Spread.of(values)
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return ProfileRow(
        case.name,
        case.keep_ratio,
        kv_cache_bytes=last.kv_cache_bytes,
        peak_memory_bytes=max(peaks, default=None),
        **{"tokens": last.tokens, **times, **known},
    )
