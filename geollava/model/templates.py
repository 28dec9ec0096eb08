"""Chat templates come with checkpoints: the sandbox of Jinja bounds what they reach, this how long
they run. Loops in loops and macros that call themselves would go on for years.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 10.0
COMPILED_BY_JINJA = "<template>"


@contextmanager
def bounded_templates() -> Iterator[None]:
    """Ends what templates do in the block, in this thread, after `SECONDS` from their first line.

    One operation alone, such as a power of large numbers, is not interrupted.

    Raises:
        ValueError: a template takes longer.
    """
    until: float | None = None

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal until
        if frame.f_code.co_filename != COMPILED_BY_JINJA:
            return None
        if until is None:
            until = time.monotonic() + SECONDS
        if time.monotonic() > until:
            raise ValueError(f"a template must be rendered in {SECONDS:g} seconds, it was not")
        return watch

    before = sys.gettrace()  # a debugger, or a measurement of coverage
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
