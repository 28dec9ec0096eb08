"""Rows of several sizes as one file, and the free questions as rows with their scenes drawn.

    python examples/small_model/rows.py FOLDER --free QUESTIONS.json

FOLDER holds 672, 1344 and 8064, as `score_words.sh` writes them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from geollava.scenes import plan_varied
from geollava.scenes.draw import draw


def moved(rows: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """Rows as they are from the folder above, their index told apart from other sizes'."""
    return [
        row
        | {"image": [f"{size}/{name}" for name in row["image"]], "index": f"{size}-{row['index']}"}
        for row in rows
    ]


def free_rows(folder: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the free questions; draws their scenes."""
    (folder / "free").mkdir(exist_ok=True)
    rows = []
    for index, question in enumerate(questions):
        name = f"free/{question['seed']}-{question['size']}.png"
        if not (folder / name).exists():
            draw(plan_varied(question["seed"], question["size"])).save(folder / name)
        rows.append(question | {"index": f"free-{index}", "image": [name], "choices": []})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--free", type=Path, required=True)
    options = parser.parse_args()

    folder: Path = options.folder
    files = {"words": ("672", "1344"), "8064": ("8064",)}
    for name, sizes in files.items():
        rows = [
            row
            for size in sizes
            if (folder / size / "test.json").is_file()
            for row in moved(json.loads((folder / size / "test.json").read_text()), size)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    questions = json.loads(options.free.read_text())
    free = free_rows(folder, questions)
    (folder / "free.json").write_text(json.dumps(free, indent=1) + "\n")


if __name__ == "__main__":
    main()
