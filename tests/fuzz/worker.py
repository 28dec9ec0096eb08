"""Reads what the parent names, a line each, and says how it ended: the process that may die."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


def outcome(target: str, path: Path) -> dict[str, object]:
    from tests.fuzz.targets import REFUSALS, TARGETS

    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            TARGETS[target].read(path)
        kind, text = "read", said.getvalue()
    except REFUSALS as error:
        kind, text = "refused", f"{type(error).__name__}: {error}"
    except BaseException:
        kind, text = "traceback", traceback.format_exc()
    if "Traceback (most recent call last)" in said.getvalue():
        kind, text = "traceback", said.getvalue()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
    return {"kind": kind, "text": text[-4000:], "peak_mib": peak}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    # Before the first reading, so that their memory is not the reading's.
    import geollava.cli  # noqa: F401
    import tokenprune  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for line in sys.stdin:
        target, path = json.loads(line)
        print(json.dumps(outcome(target, Path(path))), file=answers, flush=True)


if __name__ == "__main__":
    main()
