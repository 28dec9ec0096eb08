"""Draws what `run.py` measured: latency, extra memory and distance to the memory floor."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import results
from benchmarks.cases import GREEDY

COLORS = {
    "dense": "#b0b0b0",
    "dense, compiled": "#7f8fa6",
    "dense, step by step": "#d0d0c0",
    "reference": "#e1a01e",
    "triton": "#1f78b4",
}
PANELS = (
    ("latency, ms", lambda row: row["latency_ms"]["p50"]),
    ("extra memory, MiB", lambda row: row["peak_memory_mib"]),
    ("times the time of moving the least bytes", lambda row: row["times_floor"]),
)


def label(row: dict[str, Any]) -> str:
    """An operator and its size in two lines."""
    if row["op"] == "background_anchored":
        crops, (height, width), depth, kept = row["shape"]
        return f"{row['op']}\n{crops} crops {height}x{width}x{depth}, {kept} kept, {row['dtype']}"
    if row["op"] in GREEDY:
        crops, tokens, depth, kept = row["shape"]
        return f"{row['op']}\n{crops} crops {tokens}x{depth}, {kept} kept, {row['dtype']}"
    images, heads, tokens, depth = row["shape"]
    return f"{row['op']}\n{images} x {heads} heads, N = {tokens}, d = {depth}, {row['dtype']}"


def draw(rows: list[dict[str, Any]], title: str) -> Any:
    labels = list(dict.fromkeys(label(row) for row in rows))
    impls = [impl for impl in COLORS if any(row["impl"] == impl for row in rows)]
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(15, 1.6 + 0.9 * len(labels)), sharey=True, layout="constrained"
    )
    figure.suptitle(title)
    height = 0.8 / len(impls)
    for axis, (heading, value) in zip(axes, PANELS, strict=True):
        for number, impl in enumerate(impls):
            chosen = [row for row in rows if row["impl"] == impl]
            places = [labels.index(label(row)) + (number + 0.5) * height - 0.4 for row in chosen]
            values = [max(value(row), 1e-3) for row in chosen]
            bars = axis.barh(places, values, height * 0.9, color=COLORS[impl], label=impl)
            axis.bar_label(
                bars,
                [f"{v:,.0f}" if v >= 10 else f"{v:.2g}" for v in values],
                padding=3,
                fontsize=8,
            )
        axis.set_xscale("log")
        axis.set_xlabel(heading)
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=9)
    axes[0].invert_yaxis()
    axes[-1].legend(loc="lower right", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help="files; all by default")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    for path in options.results or sorted(results.FOLDER.glob("*.jsonl")):
        operators = [row for row in results.read(path) if "times_floor" in row]
        figure = draw(operators, path.stem)
        target = options.out / f"benchmark-{path.stem}.png"
        figure.savefig(target, dpi=110)
        print(target)


if __name__ == "__main__":
    main()
