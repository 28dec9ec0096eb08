"""Every method at several budgets, on the same scenes: time, memory, objects and error.

The scenes are made up: a smooth background with small objects planted in it, whose place is known.
Attention finds them, but not only them; the text names them, among other words. What comes out
compares methods on such scenes and says nothing of a language model's answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib
import torch
from torch import Tensor
from torch.nn import functional

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

from benchmarks import measure, results
from benchmarks.cases import background_anchored_inputs
from benchmarks.run import triton_version
from tokenprune import (
    Method,
    ReducedTokens,
    VisionTokens,
    get_method,
    list_methods,
    method_class,
)
from tokenprune.selection import FEATURE_LAYER

BUDGETS = (24, 64, 144)
CROPS, GRID, WIDTH = 8, (24, 24), 1024
FOLDER = results.FOLDER / "methods"
SEEN = 0.8  # cosine similarity at which an object's token is told apart from the background
PANELS = (
    ("object tokens kept, %", lambda row: 100 * row["objects_kept"], "linear"),
    ("object tokens seen, %", lambda row: 100 * row["objects_seen"], "linear"),
    ("reconstruction error, %", lambda row: 100 * row["reconstruction_error"], "linear"),
    ("time per crop, ms", lambda row: row["latency_ms"]["p50"] / row["shape"][0], "log"),
    ("extra memory, MiB", lambda row: max(row["peak_memory_mib"], 0.1), "log"),
)


@dataclass(frozen=True)
class Scenes:
    """Tokens of B crops, and [B, N] bool: where objects were planted."""

    tokens: VisionTokens
    objects: Tensor


def make_scenes(
    crops: int = CROPS,
    grid_size: tuple[int, int] = GRID,
    width: int = WIDTH,
    *,
    num_objects: int = 6,
    num_sinks: int = 12,
    seed: int = 0,
) -> Scenes:
    """Scenes with `num_objects` objects of 1 x 1 to 2 x 3 tokens, each of a direction of its own.

    Of the attention's peaks, `num_sinks` lie where there is nothing, as registers do in CLIP; the
    text is the objects' directions with noise, and as many words of something else.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows, cols = grid_size
    num_tokens = rows * cols
    coarse = functional.interpolate(normal(crops, width, 4, 4), grid_size, mode="bicubic")
    features = functional.normalize(coarse.flatten(2).mT, dim=2)
    directions = functional.normalize(normal(crops, num_objects, width), dim=2)
    objects = torch.zeros(crops, num_tokens, dtype=torch.bool)
    attention = 0.2 * normal(crops, num_tokens)
    for crop in range(crops):
        for direction in directions[crop]:
            height = int(torch.randint(1, 3, (), generator=generator))
            length = int(torch.randint(1, 4, (), generator=generator))
            top = int(torch.randint(0, rows - height + 1, (), generator=generator))
            left = int(torch.randint(0, cols - length + 1, (), generator=generator))
            inside = torch.zeros(rows, cols, dtype=torch.bool)
            inside[top : top + height, left : left + length] = True
            features[crop, inside.flatten()] = direction
            objects[crop] |= inside.flatten()
        attention[crop, objects[crop]] += 1
        attention[crop, torch.randperm(num_tokens, generator=generator)[:num_sinks]] += 2
    # Tokens of one encoder have much in common.
    features = features + 0.6 * functional.normalize(normal(width), dim=0)
    features = features + 0.3 * width**-0.5 * normal(crops, num_tokens, width)
    noise = width**-0.5 * normal(crops, num_objects, width)
    words = torch.cat([directions + noise, normal(crops, num_objects, width) * width**-0.5], 1)
    tokens = VisionTokens(
        features,
        grid_size,
        cls=features.mean(1),
        attention=attention.softmax(1),
        hidden_states={FEATURE_LAYER: features},
        text=words,
    )
    return Scenes(tokens, objects)


def build(name: str) -> Method:
    """The method with its defaults; one that carries weights gets random ones."""
    names = {field.name for field in fields(method_class(name))}
    weights = background_anchored_inputs(1, (1, 1), WIDTH, 1, torch.float32)
    return get_method(name, **{key: value for key, value in weights.items() if key in names})


def objects_kept(scenes: Scenes, result: ReducedTokens) -> float:
    """Share of the object tokens whose place is kept, as a token or as a cluster's root."""
    kept = torch.zeros_like(scenes.objects).scatter_(1, result.keep_indices, result.valid)
    return float((kept & scenes.objects).sum() / scenes.objects.sum())


def objects_seen(scenes: Scenes, result: ReducedTokens) -> float:
    """Share of the object tokens to which some token of the result is similar."""
    directions = functional.normalize(scenes.tokens.features, dim=2)
    similarity = directions @ functional.normalize(result.features, dim=2).mT
    return float((similarity.amax(2) >= SEEN)[scenes.objects].float().mean())


def reconstruction_error(tokens: VisionTokens, result: ReducedTokens) -> float:
    """Squared distance of each token to the nearest of the result, relative to the crop's mean."""
    features = tokens.features
    nearest = torch.cdist(features, result.features).square().amin(2).sum()
    spread = (features - features.mean(1, keepdim=True)).square().sum()
    return float(nearest / spread)


def prepare(name: str, num_keep: int, threads: int) -> Callable[[], Any]:
    """The call to measure, its inputs built."""
    torch.set_num_threads(threads)
    method, tokens = build(name), make_scenes().tokens

    def call() -> ReducedTokens:
        with torch.no_grad():
            return method.reduce(tokens, num_keep)

    return call


def measure_methods(num_keep: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    scenes = make_scenes()
    # Methods that need a language model's layers, or more of a tower, have no part in such scenes.
    given = {*scenes.tokens.tensors(), "hidden_states"}
    names = [name for name in list_methods() if given.issuperset(method_class(name).needs)]
    calls = {name: prepare(name, num_keep, threads) for name in names}
    reduced = {name: call() for name, call in calls.items()}
    seconds = measure.interleaved_seconds(calls, repeats)
    return [
        {
            "op": "reduce",
            "impl": name,
            "shape": [CROPS, list(GRID), WIDTH, num_keep],
            "dtype": "float32",
            "device": results.device_name("cpu", threads),
            "torch": torch.__version__,
            "triton": triton_version(),
            "latency_ms": measure.percentiles_ms(seconds[name]),
            "peak_memory_mib": round(measure.extra_memory_mib(prepare, name, num_keep, threads), 1),
            "objects_kept": objects_kept(scenes, result),
            "objects_seen": objects_seen(scenes, result),
            "reconstruction_error": reconstruction_error(scenes.tokens, result),
        }
        for name, result in reduced.items()
    ]


def draw(rows: list[dict[str, Any]]) -> Any:
    """Methods from top to bottom, most objects seen at the largest budget first."""
    budgets = sorted({row["shape"][3] for row in rows})
    largest = [row for row in rows if row["shape"][3] == budgets[-1]]
    largest.sort(key=lambda row: (row["objects_seen"], row["objects_kept"]), reverse=True)
    names = [row["impl"] for row in largest]
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(16, 1.5 + 0.33 * len(names)), sharey=True, layout="constrained"
    )
    crops, (height, width), depth, _ = rows[0]["shape"]
    figure.suptitle(
        f"{crops} made-up scenes of {height} x {width} tokens, {depth} wide, "
        f"small objects planted; {rows[0]['device']}, torch {rows[0]['torch']}"
    )
    for axis, (heading, value, scale) in zip(axes, PANELS, strict=True):
        for budget, color in zip(budgets, ("#9ecae1", "#4292c6", "#08306b"), strict=False):
            chosen = [row for row in rows if row["shape"][3] == budget]
            places = [names.index(row["impl"]) for row in chosen]
            axis.scatter(
                [value(row) for row in chosen], places, color=color, label=f"{budget} kept", s=36
            )
        axis.set_xscale(scale)
        if scale == "log":
            axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xlabel(heading)
        axis.grid(axis="y", color="#eeeeee")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    labels = [name + " *" if name == "background_anchored" else name for name in names]
    axes[0].set_yticks(range(len(names)), labels)
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(budgets),
        title="* with random weights",
        fontsize=9,
        title_fontsize=9,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        row
        for num_keep in BUDGETS
        for row in measure_methods(num_keep, options.threads, options.repeats)
    ]
    FOLDER.mkdir(exist_ok=True)
    device = results.device_name("cpu", options.threads)
    path = results.upsert(rows, device, FOLDER)
    target = options.out / f"methods-{device}.png"
    draw(results.read(path)).savefig(target, dpi=110)
    print(path, target, sep="\n")


if __name__ == "__main__":
    main()
