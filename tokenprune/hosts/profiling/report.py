"""What a reduction costs and saves, as `profile` has measured it."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WHOLE = "whole"  # the row of the model without a reduction
STAGES = ("encode", "reduce", "prefill", "first_token", "step", "total")


@dataclass(frozen=True)
class Spread:
    """A median, and the 20th and 80th percentile around it."""

    p20: float
    p50: float
    p80: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        marks = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        found = torch.quantile(torch.tensor(list(values), dtype=torch.float64), marks)
        return Spread(*found.tolist())


@dataclass(frozen=True)
class ProfileRow:
    """One method at one budget, or the whole model.

    Times are seconds. `encode`, `reduce` and `prefill` add up to `first_token` in each repeat, and
    so does `first_token` with all steps to `total`.

    Attributes:
        method: its name; "whole" for the model without a reduction.
        keep_ratio: share of the visual tokens that was asked for; None for the whole model.
        tokens: visual tokens of all images that remain; None where the method was refused.
        encode: vision tower and projector, without reading attention; None where images come
            encoded.
        reduce: reading attention, scoring, selecting and shortening; None for the whole model.
        prefill: the rest up to the first token: the language model reads the prompt.
        first_token: from the call of `generate` to the logits of the first new token.
        step: each further token.
        total: all new tokens.
        kv_cache_bytes: keys and values after the prompt, counted over all layers and rows.
        peak_memory_bytes: the most that torch had allocated on a GPU, weights included; None on a
            CPU, where it is not measured.
        speedup: the whole model's total over this one, each repeat beside its own run of the whole
            model; above 1 is faster.
        shown: every repeat was faster, or every one was slower; None without `speedup`.
        refused: why there is no measurement, or None.
    """

    method: str
    keep_ratio: float | None = None
    tokens: int | None = None
    encode: Spread | None = None
    reduce: Spread | None = None
    prefill: Spread | None = None
    first_token: Spread | None = None
    step: Spread | None = None
    total: Spread | None = None
    kv_cache_bytes: int | None = None
    peak_memory_bytes: int | None = None
    speedup: Spread | None = None
    shown: bool | None = None
    refused: str | None = None


@dataclass(frozen=True)
class ProfileReport:
    """What one model took, whole and reduced, on one input.

    Attributes:
        model: class and `model_type`.
        device: its name.
        threads: of torch, on a CPU.
        dtype, attention: of the language model.
        torch, transformers, triton: the versions; None where triton is not installed.
        prompts: rows of the batch.
        columns: of each, padding included.
        tokens: visual tokens of all images.
        new_tokens: that were generated in each run and row.
        repeats: timed runs of each method and budget.
        rows: the whole model first.
    """

    model: str
    device: str
    threads: int
    dtype: str
    attention: str
    torch: str
    transformers: str
    triton: str | None
    prompts: int
    columns: int
    tokens: int
    new_tokens: int
    repeats: int
    rows: tuple[ProfileRow, ...]

    @property
    def whole(self) -> ProfileRow:
        """The model without a reduction."""
        return self.rows[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        on_gpu = self.whole.peak_memory_bytes is not None
        titles = [
            *("method", "keep", "tokens", "encode", "reduce", "prefill", "first", "step", "total"),
            *("KV MiB", *(["peak MiB"] if on_gpu else []), "faster"),
        ]
        measured = [row for row in self.rows if row.refused is None]
        cells = [_cells(row, on_gpu) for row in measured]
        counted = f"{self.tokens:,} visual tokens, {self.columns:,} columns"
        lines = [
            f"{self.model}, {self.dtype}, {self.attention}, on {self.device}"
            + ("" if on_gpu else f" with {self.threads} threads"),
            f"torch {self.torch}, transformers {self.transformers}, "
            + (f"triton {self.triton}" if self.triton else "no triton"),
            (f"{self.prompts} prompts, " if self.prompts > 1 else "")
            + f"{counted}, {self.new_tokens} new tokens",
            f"milliseconds, medians of {self.repeats} repeats side by side",
            "",
            *_table([titles, *cells]),
        ]
        lines += ["", *self._refusals()]
        lines.append("faster: total of whole over total, p20 to p80 in brackets; below 1 is slower")
        if any(row.shown is False for row in measured):
            lines.append("no difference shown: faster than whole in some repeats, slower in others")
        if not on_gpu:
            lines.append("peak memory: not measured on a CPU")
        return "\n".join(lines)

    def _refusals(self) -> list[str]:
        ratios: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.refused is not None:
                ratios.setdefault((row.method, row.refused), []).append(f"{row.keep_ratio:g}")
        lines = []
        for (method, why), refused in ratios.items():
            text = f"{method} was refused at {', '.join(refused)}: {why}"
            lines += textwrap.wrap(" ".join(text.split()), 100, subsequent_indent="  ")
        return lines


def _cells(row: ProfileRow, on_gpu: bool) -> list[str]:
    times = [getattr(row, stage) for stage in STAGES]
    sizes = [row.kv_cache_bytes, *([row.peak_memory_bytes] if on_gpu else [])]
    faster = "1"
    if (found := row.speedup) is not None:
        faster = f"{found.p50:.2f} ({found.p20:.2f} to {found.p80:.2f})"
        faster += "" if row.shown else ", no difference shown"
    return [
        row.method,
        "-" if row.keep_ratio is None else f"{row.keep_ratio:g}",
        f"{row.tokens:,}",
        *("-" if time is None else f"{1e3 * time.p50:,.1f}" for time in times),
        *("-" if size is None else f"{size / 2**20:,.2f}" for size in sizes),
        faster,
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = (0, len(widths) - 1)
    return [
        "  ".join(
            cell.ljust(width) if number in ends else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
