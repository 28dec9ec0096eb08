"""What the browser is told: events of a request that takes long, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from geollava.common.readable import reason_of

# Over what was asked for; anything else is a fault of ours, and said in the log alone.
REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError)
FAULT = "the server could not do this; its log says why"


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: for whoever reads the page.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def public(error: BaseException, names: Mapping[str, str]) -> str:
    """What an error says, without paths of this machine.

    Args:
        names: paths, and what stands for them. Longer ones first: one may begin with another.
    """
    text = reason_of(error)
    for path in sorted(names, key=len, reverse=True):
        if path:
            text = text.replace(path, names[path])
    return text


def event(content: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n".encode()
