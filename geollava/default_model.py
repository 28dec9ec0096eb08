"""The model that answers when none is named: the small one that is shipped.

Its card, with what it was trained on, its scores and its limits, is `small_model/README.md`.
"""

from __future__ import annotations

from pathlib import Path


def default_checkpoint() -> Path:
    """The folder of the default checkpoint."""
    return Path(__file__).parent / "small_model"
