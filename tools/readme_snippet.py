"""Runs the README's first Python block with the tokenprune that this Python has installed.

    python tools/readme_snippet.py FOLDER

The block finds `model` and `inputs`, as `doc_blocks.py` prepares them in FOLDER. Python looks into
the checkout last, for this preparation: the packages come from where they are installed. What the
block and its libraries have to say is shown.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.remove(str(TOOLS))
sys.path += [str(TOOLS), str(TOOLS.parent)]

import doc_blocks  # noqa: E402
from transformers import logging  # noqa: E402


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    text = (TOOLS.parent / "README.md").read_text(encoding="utf-8")
    block = next(block for block in doc_blocks.blocks_of(text) if block.language == "python")
    logging.set_verbosity_error()  # a checkpoint is written and read, with bars
    logging.disable_progress_bar()
    names = doc_blocks.PREPARED["vlm"](folder)
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    os.chdir(folder)
    exec(compile(block.code, "README.md", "exec"), names)


if __name__ == "__main__":
    main()
