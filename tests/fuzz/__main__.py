"""Mutated files for the public readers: `python -m tests.fuzz --seconds 90`, or for hours.

Nothing may crash, hang for 20 seconds, take more memory than is stated, or end in a traceback. What
does is kept in a folder and ends the run with exit code 1; `--replay FILE --target NAME` reads it
again.
"""

from __future__ import annotations

import argparse
import json
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

from tests.fuzz.targets import TARGETS

TIME_LIMIT = 20.0  # seconds for one input
MEMORY_LIMIT = 2048  # MiB of a worker, libraries included; files here have at most 4 megapixels
NUMBERS = [b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"]
WORDS = [b"null", b"[]", b"{}", b"-1", b"1e999", b'"x"', b"\n", b"%", b"&a [*a]", b"../", b"NaN"]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, numbers, words, pieces cut, doubled or moved."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not out:
            return bytes(out)
        # Headers decide most: half of the changes are at the beginning.
        at = draw.randrange(min(len(out), 512) if draw.random() < 0.5 else len(out))
        kind = draw.randrange(6)
        size = draw.choice([1, 2, 4, 16, 200])
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            number = draw.choice(NUMBERS)
            out[at : at + len(number)] = number
        elif kind == 2:
            out[at:at] = draw.choice(WORDS)
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = out[at : at + size]
        else:
            del out[draw.choice([at, len(out) // 2, len(out) - 1]) :]
    return bytes(out)


class Worker:
    """A process that reads; a new one where the last died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def read(self, target: str, path: Path) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, "-m", "tests.fuzz.worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([target, str(path)]) + "\n")
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


def fuzz(names: list[str], seconds: float, inputs: int, seed: int, findings: Path) -> Counter[str]:
    draw, worker, counts = random.Random(seed), Worker(), Counter[str]()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        seeds = {}
        for name in names:
            folder = Path(scratch) / "seeds" / name
            folder.mkdir(parents=True)
            seeds[name] = TARGETS[name].seeds(folder)
        while time.monotonic() < end and counts.total() < inputs:
            name = draw.choice(names)
            source = draw.choice(seeds[name])
            place = Path(scratch) / "now" / name
            if not place.exists():
                shutil.copytree(source.parent, place)
            path = place / source.name
            path.write_bytes(mutate(source.read_bytes(), draw))
            result = worker.read(name, path)
            counts[result["kind"]] += 1
            if result["kind"] not in ("read", "refused"):
                findings.mkdir(parents=True, exist_ok=True)
                kept = findings / f"{name}-{result['kind']}-{counts.total()}{path.suffix}"
                shutil.copy(path, kept)
                kept.with_name(kept.name + ".txt").write_text(result["text"])
                last = result["text"].strip().splitlines()[-1]
                print(f"{name}: {result['kind']}: {last}  ({kept})", flush=True)
            shutil.copy(source, path)
        worker.stop()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="read this file once, as the target does")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.replay is not None:
        TARGETS[names[0]].read(options.replay)
        return
    counts = fuzz(names, options.seconds, options.inputs, options.seed, options.findings)
    print(f"{counts.total()} inputs: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(0 if set(counts) <= {"read", "refused"} else 1)


if __name__ == "__main__":
    main()
