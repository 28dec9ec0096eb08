"""What a decoding step costs under `tokenprune.apply`, beside the model as it is.

Both steps attend to the same number of columns: the cache of the shortened prompt, and a plain copy
of its keys and values, in a twin of the model that shares its weights, to which nothing is applied.
The model is that of `apply_prefill.py`, with four rows. Steps are taken in turn, and the ratio's
interval is a bootstrap over pairs.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.progress import track

import tokenprune
from benchmarks import results
from benchmarks.apply_prefill import IMAGE, build
from tokenprune.hosts.compat import Call, cache_of

ROWS, METHODS, RATIO = 4, ("divprune", "fastv"), 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.device)
    name = results.device_name(options.device, options.threads)
    rows = [row_of(method, *measure(model, method, options.pairs), name) for method in METHODS]
    console = Console()
    for row in rows:
        low, high = row["ratio_95"]
        console.print(
            f"{row['impl']}: {row['seconds']['apply'] * 1e3:.2f} ms against "
            f"{row['seconds']['plain'] * 1e3:.2f}, ratio {row['ratio']:.4f} [{low:.4f}, {high:.4f}]"
        )
    console.print(f"written to {results.upsert(rows, name)}")


@torch.no_grad()
def measure(model: Any, method: str, pairs: int) -> tuple[list[float], list[float], int]:
    """Seconds of steps under `apply`, and of the plain model; and the columns of the cache."""
    ids = torch.tensor([[1, *[IMAGE] * 2304, *range(5, 37)]] * ROWS, device=model.device)
    pixels = torch.randn(ROWS, 3, 672, 672, device=model.device, dtype=model.dtype)
    token = torch.full((ROWS, 1), 7, device=model.device)
    cache_name = Call.of(model.forward).cache_name
    with tokenprune.apply(model, method, keep_ratio=RATIO):
        given = {"input_ids": ids, "pixel_values": pixels, "logits_to_keep": 1}
        short = cache_of(model(**given, use_cache=True))
    plain = plain_copy(short)
    length = ids.shape[1]

    places = torch.full((ROWS, 1), length, device=model.device)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict(), assign=True)

    def step(of: Any, cache: Any) -> torch.Tensor:
        output = of(input_ids=token, position_ids=places, **{cache_name: cache})
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return output.logits

    seconds: tuple[list[float], list[float]] = ([], [])
    with tokenprune.apply(model, method, keep_ratio=RATIO):
        for pair in track(range(-5, pairs), description=method, transient=True):
            logits: dict[int, torch.Tensor] = {}
            for which in (0, 1) if pair % 2 else (1, 0):
                cache = (short, plain)[which]
                start = time.perf_counter()
                logits[which] = step((model, twin)[which], cache)
                taken = time.perf_counter() - start
                cache.crop(-1)
                if pair >= 0:
                    seconds[which].append(taken)
            torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    return *seconds, short.layers[-1].keys.shape[2]


def plain_copy(cache: Any) -> Any:
    import transformers

    plain = transformers.DynamicCache()
    for number, layer in enumerate(cache.layers):
        plain.update(layer.keys.clone(), layer.values.clone(), number)
    return plain


def row_of(
    method: str, reduced: list[float], plain: list[float], columns: int, device: str
) -> dict[str, Any]:
    draw = random.Random(0)
    pairs = list(zip(reduced, plain, strict=True))

    def ratio(chosen: list[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in chosen) / statistics.median(b for _, b in chosen)

    drawn = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {
        "op": "apply_decode",
        "impl": method,
        "shape": [ROWS, columns],
        "dtype": "float32" if device.startswith("cpu") else "bfloat16",
        "device": device,
        "torch": torch.__version__,
        "triton": None,
        "seconds": {
            "apply": round(statistics.median(reduced), 5),
            "plain": round(statistics.median(plain), 5),
        },
        "pairs": len(pairs),
        "ratio": round(ratio(pairs), 4),
        "ratio_95": [round(drawn[49], 4), round(drawn[1949], 4)],
    }


if __name__ == "__main__":
    main()
