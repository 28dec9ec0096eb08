"""Reads what the parent names, a line each, and says how it ended: the process that may die."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF


def outcome(target: str, path: Path) -> dict[str, object]:
    from tests.fuzz.commands import MisbehavedError
    from tests.fuzz.targets import REFUSALS, TARGETS

    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            TARGETS[target].read(path)
        kind, text = "read", said.getvalue()
    except REFUSALS as error:
        kind, text = "refused", f"{type(error).__name__}: {error}"
    except MisbehavedError as error:
        kind, text = "misbehaved", str(error)
    except BaseException:
        kind, text = "traceback", traceback.format_exc()
    if "Traceback (most recent call last)" in said.getvalue():
        kind, text = "traceback", said.getvalue()
    return {"kind": kind, "text": text[-4000:], "peak_mib": peak_mib()}


def peak_mib() -> int:
    """Of this process, its decoders that have ended, and those that wait for the next file."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    for thread in Path("/proc/self/task").glob("*/children"):  # there is none but on Linux
        for child in thread.read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            peaks += [int(kib) for kib in re.findall(r"VmHWM:\s*(\d+) kB", status)]
    return max(peaks) // 2**10


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GEOLLAVA_DEBUG"] = "1"  # what would be exit code 1 says where
    import torch

    # Before the first reading, so that their memory is not the reading's.
    import geollava.commands.main  # noqa: F401
    import tokenprune  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for line in sys.stdin:
        target, folder, path = json.loads(line)
        os.chdir(folder)
        print(json.dumps(outcome(target, Path(path))), file=answers, flush=True)


if __name__ == "__main__":
    main()
