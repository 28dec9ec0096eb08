"""The command line's door: runs a command, and turns what goes wrong into one line.

Exit codes: 0; 2 for wrong usage or input; 130 when interrupted; 1 for the rest.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import NoReturn

from geollava import MISSING_EXTRA
from geollava.commands.errors import REFUSALS, first_line
from geollava.common.malloc import keep_freed_memory
from geollava.common.readable import storable

# Read when they are imported: no bars and warnings but ours, no statistics with requests.
LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
INTERRUPTED = 130  # what shells say of a process that SIGINT ended


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; an error is one line on the standard error, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    write_utf8()
    keep_freed_memory()
    # What they log of a damaged file, the error says; and fonts are nobody's concern.
    for library in ("PIL", "rasterio", "matplotlib"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        sys.exit(run(arguments))
    except BrokenPipeError:
        # Whoever reads has read enough. Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except REFUSALS as error:
        fail(first_line(error, arguments), 2)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # the Abort of older releases of typer
            fail("interrupted", INTERRUPTED)
        usage = getattr(error, "format_message", None)  # typer's own errors have one
        if usage is not None:
            text = usage().replace(": Value error, ", ": ")  # as pydantic begins it
            fail(text or "no command given", 2)
        if os.environ.get("GEOLLAVA_DEBUG"):
            raise
        line = f"{type(error).__name__}: {first_line(error, arguments)}"
        fail(f"{line} (GEOLLAVA_DEBUG=1 shows where)", 1)


def run(arguments: list[str]) -> int | None:
    """The command's exit code. ImportError naming the extra where only torch is installed."""
    if MISSING_EXTRA is not None:
        raise ImportError(MISSING_EXTRA)
    from geollava.commands.app import app  # late: it needs the extra

    code: int | None = app(arguments, standalone_mode=False)
    if code == INTERRUPTED:  # typer has caught it
        raise KeyboardInterrupt
    sys.stdout.flush()
    return code


def write_utf8() -> None:
    """Windows takes another encoding for a pipe or a file, in which not every answer is written."""
    if sys.platform == "win32":
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8")


def fail(message: str, code: int) -> NoReturn:
    """Plain, so that no terminal is too narrow for it."""
    print(f"error: {storable(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
