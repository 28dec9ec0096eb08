"""Runs `docs/pictures/*.py` before the pages are read: `draw(folder)` writes into `_generated/`.

A picture is drawn again when its file is newer than what it wrote last; in a clean clone, all are.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def draw_all(app: Any) -> None:
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for path in sorted((Path(app.srcdir) / "pictures").glob("*.py")):
        stamp = folder / f".{path.stem}"
        if stamp.exists() and stamp.stat().st_mtime >= path.stat().st_mtime:
            continue
        spec = spec_from_file_location(f"pictures_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        module.draw(folder)
        stamp.touch()


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", draw_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
