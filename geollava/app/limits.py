"""How much of everything the page gives to those who look at it."""

from __future__ import annotations

from dataclasses import dataclass

BODY_BYTES = 64 * 1024  # of a request that is no upload
QUESTION_CHARACTERS = 2000


@dataclass(frozen=True)
class Limits:
    """What one server holds, and what one request may ask.

    Attributes:
        upload_bytes: of a file that is sent.
        pixels: of a scene; its tiles take 4 bytes of disk for each.
        viewers: browsers at a time; the one that did nothing for the longest goes first.
        idle_seconds: after which a viewer goes, and its files.
        waiting: requests that wait for the model.
    """

    upload_bytes: int = 512 * 2**20
    pixels: int = 2**28  # 16,384 x 16,384
    viewers: int = 16
    idle_seconds: float = 1800
    waiting: int = 16
