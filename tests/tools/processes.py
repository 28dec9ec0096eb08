"""Fresh Python processes that begin with one of the `sitecustomize.py` of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Runs commands in one process, which imports everything once -> [[command, exit code], ...].
COMMANDS = """
import json, sys
from geollava.commands.main import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""


def python(
    site: str | None, *arguments: object, folder: Path, given: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder, with UTF-8 expected of what it prints.

    Args:
        site: a folder here with a `sitecustomize.py`, or None.
        given: what stands on its standard input.
    """
    path = [str(HERE / site)] if site is not None else []
    options: dict[str, Any] = {"cwd": folder, "capture_output": True, "encoding": "utf-8"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=given,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*path, str(ROOT)])} | environment,
        **options,
    )
