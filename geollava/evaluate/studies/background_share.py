"""How much of scenes is background (a pilot study of arXiv 2505.21375).

Windows of about 64 pixels count as background where they resemble a prototype of their scene's
background; the paper reports that background covers up to 73.14 % of 100 images. Its prototypes are
not published: here they come of the scene itself, as `background.background_prototypes` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from geollava.answering.streaming import ahead, in_chunks
from geollava.common.plots import BASELINE, PUBLISHED, new_figure
from geollava.common.tables import table
from geollava.evaluate import report
from geollava.evaluate.models.background import background_prototypes, similarity
from geollava.evaluate.scores import RESAMPLES, interval
from geollava.imagery import Scene, open_scene

WINDOW = 64  # pixels
THRESHOLDS = tuple(round(0.5 + 0.01 * step, 2) for step in range(50))


@torch.inference_mode()
def windows_of(model: Any, processor: Any, scene: Scene) -> Tensor:
    """[W, D]: the mean token of every window that lies within the image.

    A window is as many tokens wide as come nearest to `WINDOW` pixels of those that divide a crop.
    """
    config = model.config
    side = config.grid_size[0]
    patch = config.vision_config.patch_size
    width = min(
        (size for size in range(1, side + 1) if side % size == 0),
        key=lambda size: abs(size * patch - WINDOW),
    )
    images = processor.image_processor
    canvas = images.choose_canvas(scene.size)
    parts = []
    chunks = ahead(in_chunks(images.crop_rows(scene, canvas), model.chunk_size))
    for pixels in chunks:
        tokens = model.model.vision_tower(model.prepare_pixels(pixels))[:, 1:]
        grid = tokens.mT.unflatten(2, config.grid_size)  # [C, D, rows, cols]
        parts.append(functional.avg_pool2d(grid.float(), width))
    pooled = torch.cat(parts)  # [C, D, side / width, side / width]
    per_crop = side // width
    rows, cols = canvas.grid
    whole = pooled.unflatten(0, (rows, cols)).permute(0, 3, 1, 4, 2)
    whole = whole.reshape(-1, cols * per_crop, pooled.shape[1])  # [rows, cols, D] of windows
    pitch = width * patch
    left, top, right, bottom = canvas.image_box
    within = whole[-(-top // pitch) : bottom // pitch, -(-left // pitch) : right // pitch]
    if within.numel() == 0:
        raise ValueError(f"a scene of {scene.size} pixels holds no window of {pitch} pixels")
    return within.flatten(0, 1)


def measure(
    model: Any,
    processor: Any,
    scenes: Sequence[str],
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Share of windows that resemble their scene's background, by scene and over all.

    Args:
        scenes: image files. threshold: cosine similarity from which on a window is background.

    Returns:
        `share` and its 95 % bootstrap `interval` by scene (None for one), `largest`, `scenes` with
        each one's `share`, and `curve`: the mean share at each of `thresholds`.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"--threshold must be a cosine between 0 and 1, got {threshold}")
    rows, curves = [], []
    for number, path in enumerate(scenes):
        with open_scene(path) as scene:
            windows = windows_of(model, processor, scene)
        cosine = similarity(windows, background_prototypes(windows))
        share = float((cosine >= threshold).float().mean())
        rows.append({"scene": str(path), "windows": len(windows), "share": share})
        curves.append([float((cosine >= least).float().mean()) for least in THRESHOLDS])
        if progress is not None:
            progress(number + 1, len(scenes))
    shares = np.array([row["share"] for row in rows])
    draws = np.random.default_rng(0).choice(shares, (RESAMPLES, len(shares))).mean(1)
    return {
        "threshold": threshold,
        "window_pixels": WINDOW,
        "share": float(shares.mean()),
        "interval": interval(draws, len(shares)),
        "largest": float(shares.max()),
        "scenes": rows,
        "thresholds": list(THRESHOLDS),
        "curve": np.array(curves).mean(0).tolist(),
    }


def write(results: dict[str, Any], out: Path) -> None:
    """`background.md`, `.png` and `.json`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        (row["scene"], f"{row['windows']:,}", report.percent(row["share"]))
        for row in results["scenes"]
    ]
    lines = [
        f"# Background share: {results['model']}",
        "",
        f"{report.with_interval(results['share'], results['interval'])} % of the windows of "
        f"{len(results['scenes'])} scenes resemble their scene's background (cosine similarity of "
        f"at least {results['threshold']}); at most {report.percent(results['largest'])} % of one "
        "scene. The paper reports up to 73.14 % (its prototypes and threshold are not published).",
        "",
        *table(("scene", "windows", "background, %"), rows),
    ]
    text = "\n".join(lines) + "\n"
    report.write_report(out, "background", text, plot(results), results)


def plot(results: dict[str, Any]) -> Any:
    """A figure of the share against the threshold, and of how it differs between scenes."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    left.plot(results["thresholds"], [100 * share for share in results["curve"]], color="C0")
    left.axvline(results["threshold"], color=BASELINE, ls="--", lw=1, label="threshold")
    left.axhline(73.14, color=PUBLISHED, lw=2, label="published: up to 73.14 %")
    left.set_xlabel("cosine similarity to a background prototype, at least")
    left.set_ylabel("windows, %")
    left.legend(frameon=False, fontsize=8)
    right.hist([100 * row["share"] for row in results["scenes"]], bins=20, range=(0, 100))
    right.set_xlabel("background of a scene, %")
    right.set_ylabel("scenes")
    return figure
