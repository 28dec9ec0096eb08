"""Names from the file system as text: they may hold line breaks, and bytes that are no UTF-8."""

from __future__ import annotations

import unicodedata


def storable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot write, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """The text with control characters and line breaks as escapes too, for a message."""
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in storable(text)
    )
