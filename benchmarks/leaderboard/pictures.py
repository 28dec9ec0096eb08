"""The page's pictures: scores over tokens and seconds, and what methods keep of real tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib import ticker

from benchmarks.leaderboard import rows
from benchmarks.leaderboard.controls import BLIND, MAJORITY, PLAIN, SMALLER, WHOLE
from benchmarks.leaderboard.page import CONTROLS, methods_of, of, pool_seeds
from benchmarks.leaderboard.rows import BUDGETS, Row

FIGURES = Path(__file__).parents[2] / "docs"
CONTROL_COLORS = dict(
    zip((SMALLER, *PLAIN), ("#d62728", "#ff7f0e", "#7f7f7f", "#bcbd22", "#111111"), strict=True)
)
LIMIT = 300 * 1024  # bytes of a picture
TILES = (3, 22, 33, 41)  # in the order of `tiles.labeled_tiles`
SHOWN = ("uniform", "divprune", "fastervlm", "visionzip", "nuwa")
SHOWN_BUDGET = 0.1
TOKENS = "tokens kept, %"


def draw_scores(folder: Path = rows.FOLDER) -> dict[str, Any]:
    """Figures by file name, of boards that have rows."""
    features, answers = rows.read("features", folder), pool_seeds(rows.read("answers", folder))
    figures = {}
    if features:
        figures["leaderboard-features.png"] = feature_figure(features)
    if answers:
        figures["leaderboard-answers.png"] = answer_figure(answers)
    return figures


def curve(axes: Any, found: Sequence[Row], name: str, score: str, number: int, place: str) -> None:
    """One method's scores over budgets, or over seconds, whiskers its intervals."""
    points = [
        row for budget in BUDGETS if (row := of(found, name, budget)) and score in row["scores"]
    ]
    if not points:
        return
    across = [
        100 * row["budget"] if place == "budget" else 1e3 * row["cpu_seconds"] for row in points
    ]
    values = [100 * row["scores"][score]["value"] for row in points]
    edges = [row["scores"][score]["interval"] for row in points]
    lower = [value - 100 * low for value, (low, _) in zip(values, edges, strict=True)]
    upper = [100 * high - value for value, (_, high) in zip(values, edges, strict=True)]
    control = name in CONTROLS
    axes.errorbar(
        across,
        values,
        yerr=(lower, upper),
        label=name,
        color=CONTROL_COLORS.get(name) or plt.get_cmap("tab20")(number % 20),
        marker="os^vDPX*<>"[number % 10],
        ls="--" if control else "-",
        lw=2 if control else 1,
        ms=4,
        capsize=2,
        elinewidth=0.5,
        alpha=1 if control else 0.75,
    )


def finish(axes: Any, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    if label == TOKENS:
        axes.set_xticks([100 * budget for budget in BUDGETS])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.grid(alpha=0.25)


def feature_figure(features: Sequence[Row]) -> Any:
    figure, panels = plt.subplots(1, 3, figsize=(15, 6), layout="constrained")
    names = [*PLAIN, *methods_of(features)]
    headings = {"trees": "trees kept, %", "buildings": "buildings kept, %", "error": "error, %"}
    for axes, (score, heading) in zip(panels, headings.items(), strict=True):
        for number, name in enumerate(names):
            curve(axes, features, name, score, number, "budget")
        finish(axes, TOKENS)
        axes.set_ylabel(heading)
    handles: dict[str, Any] = {}
    for axes in panels:
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=8, fontsize=8)
    figure.suptitle("Real tiles, pretrained tower; controls are dashed (whiskers: 95 % by tile)")
    return figure


def answer_figure(answers: Sequence[Row]) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(13, 6), sharey=True, layout="constrained")
    names = [SMALLER, *PLAIN, *methods_of(answers)]
    for axes, (place, label) in zip(
        panels, (("budget", TOKENS), ("seconds", "CPU ms a question")), strict=True
    ):
        for number, name in enumerate(names):
            curve(axes, answers, name, "right", number, place)
        for name, style in ((WHOLE, "-"), (MAJORITY, ":"), (BLIND, "-.")):
            if (row := of(answers, name, None)) is not None:
                value = 100 * row["scores"]["right"]["value"]
                axes.axhline(value, color="#555555", ls=style, lw=1, label=name)
        finish(axes, label)
    panels[0].set_ylabel("right answers, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle("Answers of the small host; controls are dashed (whiskers: 95 % by picture)")
    return figure


def draw_kept() -> Any:
    """Real tiles with labels, and which tokens methods keep of them; needs the packages."""
    from benchmarks.leaderboard.kept import FeaturesBoard
    from tokenprune import get_method
    from tokenprune.budget import Budget

    board = FeaturesBoard()
    num_keep = Budget(None, SHOWN_BUDGET, "image").kept_of(board.side**2)
    figure, panels = plt.subplots(
        len(TILES),
        1 + len(SHOWN),
        figsize=(2 * (1 + len(SHOWN)), 2 * len(TILES)),
        layout="constrained",
    )
    for line, number in zip(panels, TILES, strict=True):
        tile, objects = board.tiles[number], board.objects[number]
        for axes, name in zip(line, ("labels", *SHOWN), strict=True):
            axes.imshow(tile.image)
            axes.set_axis_off()
            kept = torch.zeros(board.side**2, dtype=torch.bool)
            if name != "labels":
                result = get_method(name).reduce(board.tokens.crop(number), num_keep)
                kept[result.keep_indices[result.valid]] = True
                shade = torch.zeros(board.side**2, 4)
                shade[~kept, 3] = 0.6
                edge = tile.image.width - 0.5
                axes.imshow(
                    shade.unflatten(0, (board.side, board.side)),
                    extent=(-0.5, edge, edge, -0.5),
                    interpolation="nearest",
                )
            hit = (objects & kept).any(1).tolist()
            for (left, top, right, bottom), found in zip(tile.boxes, hit, strict=True):
                color = "yellow" if name == "labels" else "lime" if found else "red"
                axes.add_patch(
                    plt.Rectangle(
                        (left, top), right - left, bottom - top, fill=False, ec=color, lw=0.8
                    )
                )
            if number == TILES[0]:
                axes.set_title(name, fontsize=9)
            if name != "labels":
                axes.text(4, 16, f"{sum(hit)} of {len(hit)}", color="white", fontsize=7, va="top")
    figure.suptitle(
        f"{num_keep} of {board.side**2} tokens kept; green: an object is kept, red: it is lost",
        fontsize=9,
    )
    return figure


def rows_hash(folder: Path = rows.FOLDER) -> str:
    """First digits of SHA-256 of all rows, which a PNG carries as "rows"."""
    digest = hashlib.sha256()
    for board in rows.BOARDS:
        digest.update(repr([row["digest"] for row in rows.read(board, folder)]).encode())
    return digest.hexdigest()[:16]


def save(figures: dict[str, Any], folder: Path = FIGURES) -> list[Path]:
    """Writes figures by file name.

    Raises:
        ValueError: a picture of more bytes than `LIMIT`.
    """
    paths = []
    for name, figure in figures.items():
        path = folder / name
        if path.suffix == ".png":
            figure.savefig(path, dpi=80, metadata={"rows": rows_hash()})
        else:
            figure.savefig(path, dpi=90, pil_kwargs={"quality": 80})
        plt.close(figure)
        if path.stat().st_size > LIMIT:
            raise ValueError(
                f"{name} must have at most {LIMIT:,} bytes, it has {path.stat().st_size:,}"
            )
        paths.append(path)
    return paths
