"""Prefill with and without `tokenprune.apply`: seconds, KV cache, and the reduction's own share.

A random LLaVA with 2,304 visual tokens and a language model of 160 M parameters, on this machine;
`--device cuda` takes one of 1.8 B.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokenprune
from benchmarks import results
from benchmarks.measure import interleaved_seconds
from tokenprune import Report
from tokenprune.hosts.compat import cache_of

IMAGE = 100
METHODS = ("random", "spatial_pool", "fastervlm", "divprune")
RATIOS = (0.5, 0.25, 0.1)


def build(device: str) -> Any:
    import transformers

    width, layers = (2048, 24) if device == "cuda" else (1024, 12)
    text = transformers.Qwen2Config(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=4,
    )
    tower = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=672,
        patch_size=14,
    )
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return transformers.LlavaForConditionalGeneration(config).eval().to(device, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    prefill = Prefill(build(options.device))
    name = results.device_name(options.device, options.threads)
    rows = [
        row
        for method in track(METHODS, description="prefill", transient=True)
        for row in measure(prefill, method, options.repeats, name)
    ]
    table = Table(title=f"prefill of 2,304 visual tokens on {name}")
    for heading in ("method", "kept", "seconds", "of whole", "cache of whole", "reducing"):
        table.add_column(heading, justify="right")
    for row in rows:
        whole, reduced = row["seconds"]["whole"], row["seconds"]["reduced"]
        table.add_row(
            row["impl"],
            f"{row['shape'][2]:,}",
            f"{reduced:.2f}",
            f"{reduced / whole:.2f}",
            f"{row['cache_of_whole']:.2f}",
            f"{row['share_reducing']:.1%}",
        )
    console = Console()
    console.print(table)
    console.print(f"written to {results.upsert(rows, name)}")


class Prefill:
    """One prompt with one large image."""

    def __init__(self, model: Any) -> None:
        self.model = model
        ids = torch.tensor([[1, *[IMAGE] * 2304, *range(5, 37)]], device=model.device)
        pixels = torch.randn(1, 3, 672, 672, device=model.device, dtype=model.dtype)
        self.inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels,
        }
        self.length = ids.shape[1]

    @torch.no_grad()
    def whole(self) -> int:
        """Bytes of the KV cache."""
        cache = cache_of(self.model(**self.inputs, use_cache=True, logits_to_keep=1))
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values))

    def reduced(self, method: str, ratio: float) -> tuple[int, Report]:
        with tokenprune.apply(self.model, method, keep_ratio=ratio) as handle:
            return self.whole(), handle.report()


def measure(prefill: Prefill, method: str, repeats: int, device: str) -> list[dict[str, Any]]:
    outcomes: dict[float, list[tuple[int, Report]]] = {ratio: [] for ratio in RATIOS}

    def call(ratio: float) -> Callable[[], None]:
        return lambda: outcomes[ratio].append(prefill.reduced(method, ratio))

    calls = {str(ratio): call(ratio) for ratio in RATIOS}
    seconds = interleaved_seconds({"whole": prefill.whole, **calls}, repeats)
    whole, whole_cache = statistics.median(seconds["whole"]), prefill.whole()
    rows = []
    for ratio in RATIOS:
        cache, report = outcomes[ratio][-1]
        assert report.kv_cache_bytes_saved == whole_cache - cache
        reduced = statistics.median(seconds[str(ratio)])
        reducing = statistics.median(report.seconds_reducing for _, report in outcomes[ratio])
        (kept,) = report.tokens_after
        rows.append(
            {
                "op": "apply_prefill",
                "impl": method,
                "shape": [1, 2304, kept],
                "dtype": str(prefill.model.dtype).removeprefix("torch."),
                "device": device,
                "torch": torch.__version__,
                "triton": None,
                "seconds": {"whole": round(whole, 4), "reduced": round(reduced, 4)},
                "sequence_of_whole": round(1 - (2304 - kept) / prefill.length, 4),
                "cache_of_whole": round(cache / whole_cache, 4),
                "share_reducing": round(reducing / reduced, 4),
            }
        )
    return rows


if __name__ == "__main__":
    main()
