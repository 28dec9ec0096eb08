"""Figures of vLLM with fewer visual tokens: rows of `benchmarks/serving.py`."""

from __future__ import annotations

from typing import Any

from figures import TWO_THREADS, figure, measured, milliseconds, row, rows, table, times

SERVING = f"serving/{TWO_THREADS}"
METHOD = "divprune 0.25"
IN_FLIGHT = 8


def served(impl: str) -> dict[str, Any]:
    (shape,) = {tuple(found["shape"]) for found in rows(SERVING) if found["shape"][1] == IN_FLIGHT}
    return row(SERVING, impl=impl, shape=list(shape))


def a_second(found: dict[str, Any]) -> str:
    return f"{found['requests_per_second']:.2f} requests a second"


@figure
def serving_whole() -> str:
    return a_second(served("whole"))


@figure
def serving_quarter() -> str:
    return a_second(served(METHOD))


@figure
def serving_faster() -> str:
    return times(served(METHOD)["times_faster"][1])


@figure
def serving_tokens() -> str:
    return f"{served(METHOD)['shape'][0]:,}"


@figure
def serving_blocks() -> str:
    return f"{served(METHOD)['kv_blocks']} of {served('whole')['kv_blocks']}"


@measured
def serving() -> str:
    """Both servers in the same rounds, at each number of requests in flight."""
    body = [
        (
            found["shape"][1],
            "all tokens" if found["impl"] == "whole" else f"`{found['impl']}`",
            f"{found['requests_per_second']:.2f}",
            "" if found["impl"] == "whole" else " / ".join(map(times, found["times_faster"])),
            milliseconds(found["first_token_ms"]),
            f"{found['prompt_tokens']:,}",
            found["kv_blocks"],
        )
        for found in rows(SERVING)
    ]
    heads = (
        "in flight",
        "server",
        "requests a second",
        "faster: lowest / median / highest round",
        "first token",
        "prompt tokens",
        "KV blocks of a request",
    )
    return table(heads, body)
