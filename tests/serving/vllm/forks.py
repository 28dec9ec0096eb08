"""vLLM is slow to import, and an engine is hard to take down: one import, one fork per case."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any


def in_fork(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What `function` returns in a process of its own.

    Raises:
        AssertionError: what it raised there, as text.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            outcome = True, function(*arguments, **options)
        except BaseException:
            outcome = False, traceback.format_exc()
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(child, 0)
    if not raw:
        raise AssertionError(f"the process ended with status {status}")
    passed, value = pickle.loads(raw)
    if not passed:
        raise AssertionError(value)
    return value
