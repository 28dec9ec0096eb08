"""Runs the README's first Python block with the tokenprune that this Python has installed.

    python tools/readme_snippet.py FOLDER

`FOLDER` gets what the README asks for, as `doc_blocks.py` prepares it. Python looks into the
checkout last, for these preparations: the packages come from where they are installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.remove(str(TOOLS))
sys.path += [str(TOOLS), str(TOOLS.parent)]

import doc_blocks  # noqa: E402


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    text = (TOOLS.parent / "README.md").read_text(encoding="utf-8")
    names = {}
    for name in dict.fromkeys(doc_blocks.asked_of(text)):
        names |= doc_blocks.PREPARED[name](folder) or {}
    block = next(block for block in doc_blocks.blocks_of(text) if block.language == "python")
    os.chdir(folder)
    exec(compile(block.code, "README.md", "exec"), names)


if __name__ == "__main__":
    main()
