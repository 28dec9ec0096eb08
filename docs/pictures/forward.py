"""One forward under `apply`: what the host does on the left, what tokenprune does on the right."""

from __future__ import annotations

from pathlib import Path

# What the host does, what happens beside it, and in which files of tokenprune/hosts/.
PATH = [
    ("model with its head: called", "a Step opens, for this call alone", "hooks.py, step.py"),
    ("host: forward", "reads ids, images and cache; finds placeholders", "inputs.py"),
    ("host: get_image_features", "notes sizes, and attention if it is needed", "encoder.py"),
    ("language model: embeddings", "the method reduces each image", "before_model.py, images.py"),
    ("", "the same columns leave embeddings, positions, masks", "sequence.py, masks.py"),
    ("language model: layers", "or: columns leave between layers, by rank", "between_layers.py"),
    ("language model: cache is filled", "the cache remembers the whole length", "memory.py"),
    ("host: output", "raises if nothing was removed", "step.py"),
    ("head: logits and loss", "labels lose the same columns; the Step closes", "hooks.py"),
]
WIDE, HIGH, GAP = 4.0, 0.62, 0.34
LEFT, RIGHT = 0.0, 5.1
HOST, OURS, EDGE, QUIET = "#e8eef4", "#f7e8d2", "#34495e", "#5f6b76"


def draw(folder: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 8.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    step = HIGH + GAP
    axes.text(LEFT + WIDE / 2, step, "the host, unchanged", ha="center", fontweight="bold")
    axes.text(RIGHT + 5.2 / 2, step, "tokenprune, in hooks", ha="center", fontweight="bold")
    last = None
    for number, (host, ours, files) in enumerate(PATH):
        y = -number * step
        if host:
            box(axes, LEFT, y, WIDE, host, HOST)
            if last is not None:
                arrow(axes, (LEFT + WIDE / 2, last), (LEFT + WIDE / 2, y + HIGH))
            arrow(axes, (LEFT + WIDE, y + HIGH / 2), (RIGHT, y + HIGH / 2), style="<->")
            last = y
        else:
            arrow(axes, (RIGHT + 2.6, y + step), (RIGHT + 2.6, y + HIGH))
        box(axes, RIGHT, y, 5.2, ours, OURS, files)
    axes.set_xlim(-0.3, RIGHT + 5.5)
    axes.set_ylim(-(len(PATH) - 1) * step - 0.25, step + 0.4)
    figure.savefig(folder / "forward.svg", facecolor="white", metadata={"Date": None})


def box(axes, x: float, y: float, width: float, text: str, color: str, below: str = "") -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch(
        (x, y),
        width,
        HIGH,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor=color,
        edgecolor=EDGE,
    )
    axes.add_patch(shape)
    middle = y + HIGH / 2 + (0.11 if below else 0)
    axes.text(x + width / 2, middle, text, ha="center", va="center", fontsize=10)
    if below:
        axes.text(
            x + width / 2, middle - 0.26, below, ha="center", va="center", fontsize=8, color=QUIET
        )


def arrow(axes, start: tuple[float, float], end: tuple[float, float], style: str = "->") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": style, "color": EDGE})
