"""What goes wrong, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from geollava.common.readable import one_line

# Over what was asked for: of wrong input, not of a program that is wrong.
REFUSALS = (ValueError, TypeError, NotImplementedError, OSError, ImportError)


def first_line(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """What an error says, or its type where it says nothing.

    Args:
        arguments: of the command line, which may hold line breaks.
    """
    text = str(error)
    for argument in arguments:
        text = text.replace(argument, one_line(argument)) if argument else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
