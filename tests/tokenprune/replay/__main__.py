"""`python -m tests.tokenprune.replay FILE...`; exit code 1 where any differs, 2 for bad files."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors import SafetensorError

from . import Recorded, verdict
from .forms import FORMS


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: python -m tests.tokenprune.replay FILE...", file=sys.stderr)
        return 2
    differs = False
    for path in map(Path, paths):
        try:
            recorded = Recorded.read(path)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            print(f"{path} holds no recorded case: {error!r}", file=sys.stderr)
            return 2
        form = FORMS.get(recorded.method)
        said = "differs, no method here has this form"
        if form is not None:
            said = verdict(recorded, form)
        differs |= said != "equal"
        print(f"{recorded.name}: {said}")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
