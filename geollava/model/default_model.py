"""The model that answers when none is named: the small one that is shipped.

Its card, with what it was trained on, its scores and its limits, is `small_model/README.md`.
"""

from __future__ import annotations

import os
from pathlib import Path

DEMONSTRATION = (
    "this is the demonstration model, for scenes that `geollava scenes` draws; its answers about "
    "real images mean nothing. A released model answers with --model initiacms/GeoLLaVA-8K"
)


def default_checkpoint() -> Path:
    """The folder of the default checkpoint."""
    return Path(__file__).parents[1] / "small_model"


def is_default(model: str | os.PathLike[str]) -> bool:
    """Whether a folder or hub name means the default checkpoint."""
    return Path(model).resolve() == default_checkpoint().resolve()
