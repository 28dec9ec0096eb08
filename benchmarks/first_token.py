"""A JPEG file to the first answer token: ours beside the published flow, with the same weights.

    python benchmarks/first_token.py --device cuda               # ViT-L/14-336 + Qwen2-7B, bfloat16
    python benchmarks/first_token.py --size small --side 2048    # to try it on a CPU

Weights are random: what they say means nothing, what they cost is what released ones cost. Each
flow has a process of its own and a first run that does not count. Rows appear only where both flows
gave the same logits in float32 on a small model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import measure, results
from benchmarks.baselines import published_crops, published_flow
from benchmarks.imagery import make_scene
from benchmarks.measure import in_new_process
from geollava import GeoLlavaConfig, GeoLlavaForConditionalGeneration, GeoLlavaImageProcessor
from geollava.answering.encoding import encode_scene
from geollava.imagery import open_scene

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
        },
        "image_token_id": 510,
        "video_token_id": 511,
    },
}
TOLERANCE = 1e-3  # largest difference of logits in float32


class Images:
    """All of a processor that encoding asks for."""

    def __init__(self, config: GeoLlavaConfig) -> None:
        self.image_processor = GeoLlavaImageProcessor.from_config(config)


def build(size: str, device: str, dtype: torch.dtype) -> GeoLlavaForConditionalGeneration:
    """A model with random weights, made on the device itself."""
    config = GeoLlavaConfig(**SIZES[size], strict=False)
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return GeoLlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)


def prompt(device: torch.device) -> tuple[Tensor, Tensor]:
    """As many ids before and after the image as a question of the benchmark has."""
    ids = torch.arange(3, 173, device=device) % 500
    return ids[:20], ids[20:]


class Clock:
    """Seconds between calls of `lap`, the device's work included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name], self.start = now - self.start, now


def ours(model: GeoLlavaForConditionalGeneration, path: Path) -> tuple[Tensor, dict[str, float]]:
    clock = Clock()
    scene = open_scene(path)
    scene.read_image(0, 1, 1)  # a picture is decoded as a whole
    clock.lap("decode")
    tokens = encode_scene(model, Images(model.config), scene)  # type: ignore[arg-type]
    clock.lap("crop and encode")
    before, after = prompt(model.device)
    count = tokens.kept.keep_indices.numel()
    marks = before.new_full((count,), model.config.image_token_id)
    ids = torch.cat([before, marks, after])[None]
    with torch.inference_mode():
        features = model.project(tokens.kept.features)
        logits = model(ids, image_features=features, use_cache=True, logits_to_keep=1).logits
    clock.lap("answer")
    return logits[0, -1].float(), clock.seconds


def published(
    model: GeoLlavaForConditionalGeneration, path: Path
) -> tuple[Tensor, dict[str, float]]:
    clock = Clock()
    image = published_crops.decode(path)
    clock.lap("decode")
    crops = published_crops.crops_of(image)
    clock.lap("crop")
    kept = published_flow.kept_tokens(model, crops)
    clock.lap("encode")
    logits = published_flow.first_logits(model, *prompt(model.device), kept)
    clock.lap("answer")
    return logits, clock.seconds


FLOWS = {"ours": ours, "published": published}


def largest_difference(path: Path, device: str) -> float:
    """Of both flows' logits, with the same small model in float32."""
    model = build("small", device, torch.float32)
    return (ours(model, path)[0] - published(model, path)[0]).abs().max().item()


def run(flow: str, path: Path, size: str, device: str, repeats: int) -> list[dict[str, Any]]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = build(size, device, dtype)
    FLOWS[flow](model, path)
    rows = []
    for _ in range(repeats):
        row: dict[str, Any] = {}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            weights = torch.cuda.memory_allocated()
        row["seconds"] = FLOWS[flow](model, path)[1]
        if device == "cuda":
            row["device_memory_mib"] = (torch.cuda.max_memory_allocated() - weights) / 2**20
        rows.append(row)
    return rows


def measure_flow(
    flow: str, path: Path, side: int, size: str, device: str, repeats: int
) -> dict[str, Any]:
    """A row of results; `latency_ms` is without decoding."""
    runs = in_new_process(run, flow, path, size, device, repeats)
    after = [sum(row["seconds"].values()) - row["seconds"]["decode"] for row in runs]
    return {
        "op": "first token",
        "impl": flow,
        "shape": [side, side],
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "device": results.device_name(device, torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": None,
        "model": size,
        "latency_ms": measure.percentiles_ms(after * 2 if repeats == 1 else after),
        "seconds": {
            stage: round(statistics.median(row["seconds"][stage] for row in runs), 3)
            for stage in runs[0]["seconds"]
        },
        **{
            name: round(statistics.median(row[name] for row in runs))
            for name in ("device_memory_mib",)
            if name in runs[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--side", type=int, default=8192, help="of the image, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, gate = Path(folder) / "scene.jpg", Path(folder) / "small.jpg"
        in_new_process(make_scene, path, options.side)
        in_new_process(make_scene, gate, 1000)
        difference = in_new_process(largest_difference, gate, options.device)
        if difference > TOLERANCE:
            raise SystemExit(f"the flows disagree: logits differ by {difference:.3g}")
        arguments = (path, options.side, options.size, options.device, options.repeats)
        rows = [measure_flow(flow, *arguments) for flow in FLOWS]
    for row in rows:
        print(row["impl"], row["seconds"], row.get("device_memory_mib", ""), flush=True)
    fast, slow = (row["latency_ms"]["p50"] for row in rows)
    print(f"{slow / fast:.1f} times faster after decoding, logits differ by {difference:.2g}")
    path = results.upsert(rows, rows[0]["device"], results.FOLDER / "first_token")
    print(path)


if __name__ == "__main__":
    main()
