"""PyPI's `tokenprune` is another project of the same import name: beside it nothing is sure."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

OTHER = "tokenprune"  # ours is the distribution tokenprune-vlm


def refuse_namesake() -> None:
    """Raises ImportError where the other distribution is installed.

    Both write the folder `tokenprune`, so the one installed later overwrites files of the other,
    and removing either takes files of both.
    """
    try:
        other = distribution(OTHER)
    except PackageNotFoundError:
        return
    raise ImportError(
        f"PyPI's unrelated package {OTHER} {other.version} is installed beside tokenprune-vlm, and "
        f"both are imported as {OTHER}. Remove both, then install the one: pip uninstall "
        f"{OTHER} tokenprune-vlm; pip install tokenprune-vlm"
    )
