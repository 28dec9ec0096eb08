"""The one logger: `logging.getLogger("tokenprune")`."""

from __future__ import annotations

import logging

logger = logging.getLogger("tokenprune")


def refuse(strict: bool, error: Exception) -> None:
    """Raises the error; where a user has asked for `strict=False`, warns with the same text."""
    if strict:
        raise error
    logger.warning("%s", error)
