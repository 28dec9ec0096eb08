"""What users of other libraries write, and what it is called here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

# Shares of the tokens that stay, and that leave.
STAY = ("retention_ratio", "retain_ratio", "keep_rate", "retained_ratio")
LEAVE = (
    *("compression_ratio", "pruning_rate", "pruning_ratio", "prune_ratio", "drop_ratio"),
    *("reduction_ratio", "sparsity"),
)
NUMBER = ("num_tokens", "max_num_tokens", "visual_token_num", "retained_tokens", "num_retained")


def meant_by(word: str, value: Any) -> str | None:
    """What to write in place of another library's word, or None where it is not known."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if word in STAY:
        return f"keep_ratio={value}" if number and 0 < value <= 1 else "keep_ratio"
    if word in LEAVE:
        kept = f"keep_ratio={1 - value:g}" if number and 0 <= value < 1 else "keep_ratio"
        return f"{kept} ({word} is the share that leaves, keep_ratio the share that stays)"
    if word in NUMBER:
        return f"num_keep={value}" if number else "num_keep"
    return None


def suggestion(given: Mapping[str, Any], known: Iterable[str]) -> str:
    """For the end of a message: "; write keep_ratio=0.25 ...", or nothing."""
    meant = []
    for word, value in given.items():
        found = meant_by(word, value) or nearest(word, known)
        meant += [found] if found else []
    return f"; write {', '.join(meant)}" if meant else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelled most like it, or None where none is."""
    plain = {name.replace("_", ""): name for name in known}
    spelled = word.lower().translate({ord(mark): None for mark in "-_ "})
    found = difflib.get_close_matches(spelled, plain, n=1, cutoff=0.7)
    return plain[found[0]] if found else None
