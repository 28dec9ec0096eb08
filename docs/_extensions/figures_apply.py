"""Figures of `tokenprune.apply`: rows of `benchmarks/apply_prefill.py` and `apply_decode.py`."""

from __future__ import annotations

from typing import Any

from figures import TWO_THREADS, figure, measured, percent, row, rows, seconds, table, times

WHOLE = 2304  # visual tokens of the prompt


def prefill(method: str, kept: int) -> dict[str, Any]:
    return row(TWO_THREADS, op="apply_prefill", impl=method, shape=[1, WHOLE, kept])


@figure
def prefill_whole() -> str:
    return seconds(prefill("divprune", WHOLE // 4)["seconds"]["whole"])


@figure
def prefill_quarter() -> str:
    return seconds(prefill("divprune", WHOLE // 4)["seconds"]["reduced"])


@figure
def prefill_quarter_faster() -> str:
    taken = prefill("divprune", WHOLE // 4)["seconds"]
    return times(taken["whole"] / taken["reduced"])


@figure
def prefill_quarter_cache() -> str:
    return percent(prefill("divprune", WHOLE // 4)["cache_of_whole"], 0)


@measured
def apply_prefill() -> str:
    """Every method and budget beside the whole model in the same run."""
    body = []
    for found in rows(TWO_THREADS):
        if found["op"] != "apply_prefill":
            continue
        taken = found["seconds"]
        body.append(
            (
                f"`{found['impl']}`",
                f"{found['shape'][2]:,}",
                seconds(taken["whole"]),
                seconds(taken["reduced"]),
                times(taken["whole"] / taken["reduced"]),
                percent(found["cache_of_whole"], 0),
                percent(found["share_reducing"]),
            )
        )
    heads = ("method", "kept", "whole", "reduced", "faster", "KV cache", "spent reducing")
    return table(heads, body)


@measured
def apply_decode() -> str:
    body = []
    for found in rows(TWO_THREADS):
        if found["op"] == "apply_decode":
            low, high = (percent(edge - 1) for edge in found["ratio_95"])
            slower = percent(found["ratio"] - 1)
            body.append((f"`{found['impl']}`", slower, f"{low} to {high}", found["pairs"]))
    return table(("method", "a step takes longer by", "95 % interval", "pairs of steps"), body)
