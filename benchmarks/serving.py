"""A vLLM server with fewer visual tokens beside the same server with all of them.

    python benchmarks/serving.py                     # needs vLLM: docs/tokenprune/serving.md
    python benchmarks/serving.py --size tiny         # to try the script

Both servers run the same random Qwen2.5-VL, large enough that reading the prompt takes most of the
time. They are asked in turn, the same requests, so that a noisy minute hits both alike. Each
request has a picture of its own: nothing comes from a cache. Rows are requests a second and the
median time to the first token with 1, 8 and 32 requests in flight; a ratio is the median over
rounds, with the lowest and the highest beside it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results
from tests.serving.vllm import checkpoints
from tests.serving.vllm.engine import picture
from tests.serving.vllm.server import Server

BLOCK = 32  # tokens in a block of the KV cache, the smallest on a CPU
IN_FLIGHT = 1, 8, 32
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
        },
        "side": 672,  # 576 visual tokens
        "requests": 32,
        "new_tokens": 8,
    },
    "tiny": {"text": {}, "side": 224, "requests": 4, "new_tokens": 2},
}


@dataclass(frozen=True)
class Round:
    """One server, asked once by so many at a time.

    Attributes:
        requests_per_second: of all requests.
        first_token_ms: their median.
    """

    requests_per_second: float
    first_token_ms: float


def body_of(image: Any, new_tokens: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is here?"},
    ]
    return json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    ).encode()


def first_token_s(server: Server, body: bytes) -> float:
    """Sends a request and reads its reply to the end."""
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    start, first = time.perf_counter(), 0.0
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - start
    return first


def ask(server: Server, bodies: list[bytes], in_flight: int) -> Round:
    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        firsts = list(pool.map(lambda body: first_token_s(server, body), bodies))
    seconds = time.perf_counter() - start
    return Round(len(bodies) / seconds, 1e3 * statistics.median(firsts))


def prompt_tokens(server: Server) -> float:
    """All that the server has read so far, as its metrics count."""
    with urllib.request.urlopen(f"{server.url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("vllm:prompt_tokens_total")
    )


def bodies_of(size: dict[str, Any]) -> Iterator[list[bytes]]:
    """Requests of one round after the other, no picture twice."""
    seed = 0
    while True:
        yield [
            body_of(picture(seed + number, size["side"], size["side"]), size["new_tokens"])
            for number in range(size["requests"])
        ]
        seed += size["requests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = SIZES[options.size]
    checkpoints.TEXT.update(size["text"])
    heads = checkpoints.TEXT["hidden_size"] // checkpoints.TEXT["num_attention_heads"] // 2
    checkpoints.MROPE["mrope_section"] = [heads - 2 * (heads * 3 // 8), *[heads * 3 // 8] * 2]
    checkpoints.MERGING["out_hidden_size"] = checkpoints.TEXT["hidden_size"]
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoints.write("qwen2_5_vl", Path(name) / "model")
        plain = ["vllm.entrypoints.openai.api_server", "--model", str(folder)]
        ours = ["tokenprune.cli", "serve", str(folder), "--method", options.method]
        ours += ["--keep-ratio", str(options.keep_ratio)]
        common = ["--max-num-batched-tokens", "4096", "--no-enable-prefix-caching"]
        with (
            Server(Path(name) / "whole", [*plain, *common], num_seqs=32) as whole,
            Server(Path(name) / "pruned", [*ours, *common], num_seqs=32) as pruned,
        ):
            rows = measured({"whole": whole, "pruned": pruned}, size, options)
    for row in rows:
        print(json.dumps(row))
    device = results.device_name("cpu", 2)
    if options.size != "tiny":
        print(results.upsert(rows, device, results.FOLDER / "serving"))


def measured(
    servers: dict[str, Server], size: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    import torch
    import vllm

    batches, rows = bodies_of(size), []
    for server in servers.values():
        ask(server, next(batches), 4)
    for in_flight in IN_FLIGHT:
        rounds: dict[str, list[Round]] = {name: [] for name in servers}
        before = {name: prompt_tokens(server) for name, server in servers.items()}
        for _ in range(options.rounds):
            bodies = next(batches)
            for name, server in servers.items():
                rounds[name].append(ask(server, bodies, in_flight))
        pairs = list(zip(rounds["whole"], rounds["pruned"], strict=True))
        ratios = [two.requests_per_second / one.requests_per_second for one, two in pairs]
        for name, server in servers.items():
            read = prompt_tokens(server) - before[name]
            tokens = read / (options.rounds * size["requests"])
            faster = ratios if name == "pruned" else [1.0]
            rows.append(
                {
                    "op": "serve",
                    "impl": name if name == "whole" else f"{options.method} {options.keep_ratio}",
                    "shape": [options.size, in_flight],
                    "dtype": "float32",
                    "device": results.device_name("cpu", 2),
                    "torch": torch.__version__,
                    "vllm": vllm.__version__,
                    "requests_per_second": statistics.median(
                        one.requests_per_second for one in rounds[name]
                    ),
                    "first_token_ms": statistics.median(one.first_token_ms for one in rounds[name]),
                    "prompt_tokens": tokens,
                    "kv_blocks": math.ceil((tokens + size["new_tokens"]) / BLOCK),
                    "times_faster": [min(faster), statistics.median(faster), max(faster)],
                }
            )
    return rows


if __name__ == "__main__":
    main()
