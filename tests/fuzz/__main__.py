"""Mutated files for readers and commands: `python -m tests.fuzz --seconds 90`, or for hours.

Nothing may crash, hang for 20 seconds, take more memory than is stated, end in a traceback, or with
an exit code other than 0 and 2. What does is kept in a folder and ends the run with exit code 1;
`--replay FOLDER --target NAME` reads it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS

TIME_LIMIT = 20.0  # seconds for one input
# MiB of a worker or its decoder, libraries included; files here have at most 4 megapixels.
MEMORY_LIMIT = 2048


class Worker:
    """A process that reads; a new one where the last died."""

    def __init__(self, cache: Path) -> None:
        self.environment = os.environ | {"HF_DATASETS_CACHE": str(cache)}
        self.process: subprocess.Popen[str] | None = None

    def read(self, target: str, folder: Path, path: Path) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, "-m", "tests.fuzz.worker"]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=self.environment,
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([target, str(folder), str(path)]) + "\n")
        start, limit = time.monotonic(), TIME_LIMIT + 60 * (not getattr(self, "warm", False))
        while time.monotonic() - start < limit:
            if select.select([process.stdout], [], [], 0.5)[0]:
                line = process.stdout.readline()
                if not line:
                    self.stop()
                    return {"kind": "crash", "text": f"exit {process.returncode}"}
                self.warm = True
                answer: dict[str, Any] = json.loads(line)
                if answer["peak_mib"] > MEMORY_LIMIT:
                    self.stop()
                    answer |= {"kind": "memory", "text": f"{answer['peak_mib']} MiB"}
                return answer
        self.stop()
        return {"kind": "hang", "text": f"over {TIME_LIMIT:.0f} s"}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process, self.warm = None, False


def fuzz(
    names: list[str], seconds: float, inputs: int, seed: int, findings: Path
) -> tuple[Counter[str], Counter[str]]:
    """(how inputs ended, how many each target had)."""
    draw, counts, per_target = random.Random(seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        worker = Worker(Path(scratch) / "cache")
        seeds = {name: seeded(name, Path(scratch) / name) for name in names}
        weights = [TARGETS[name].weight for name in names]
        end = time.monotonic() + seconds
        while time.monotonic() < end and counts.total() < inputs:
            [name] = draw.choices(names, weights)
            folder, (path, good) = Path(scratch) / name, draw.choice(seeds[name])
            path.write_bytes(mutate(path.name, good, draw))
            result = worker.read(name, folder, path)
            counts[result["kind"]] += 1
            per_target[name] += 1
            if result["kind"] not in ("read", "refused"):
                place = findings / f"{name}-{result['kind']}-{counts.total()}"
                kept = place / path.relative_to(folder)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept)
                place.with_name(place.name + ".txt").write_text(result["text"])
                last = result["text"].strip().splitlines()[-1]
                print(f"{name}: {result['kind']}: {last}  ({kept})", flush=True)
            path.write_bytes(good)
        worker.stop()
    return counts, per_target


def seeded(name: str, folder: Path) -> list[tuple[Path, bytes]]:
    folder.mkdir()
    return [(path, path.read_bytes()) for path in TARGETS[name].seeds(folder)]


def replay(name: str, kept: Path) -> None:
    """Reads a finding again, among the seeds that it lay among."""
    [file] = [path.relative_to(kept) for path in kept.rglob("*") if path.is_file()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        seeded(name, folder)
        shutil.copy(kept / file, folder / file)
        os.chdir(folder)
        TARGETS[name].read(folder / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="a folder of findings: read its file once")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.replay is not None:
        replay(names[0], options.replay.resolve())
        return
    counts, per_target = fuzz(
        names, options.seconds, options.inputs, options.seed, options.findings
    )
    print("inputs of " + ", ".join(f"{name} {per_target[name]:,}" for name in names))
    ends = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    print(f"{counts.total():,} inputs: {ends}")
    sys.exit(0 if set(counts) <= {"read", "refused"} else 1)


if __name__ == "__main__":
    main()
