"""The checkpoint that is used when none is named: the small one that is shipped."""

from __future__ import annotations

SCALE = 1.3
