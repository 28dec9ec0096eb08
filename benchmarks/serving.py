"""A vLLM server with fewer visual tokens beside the same server with all of them.

    python benchmarks/serving.py    # some 12 minutes; docs/tokenprune/serving.md
    python benchmarks/serving.py --size tiny --out trial    # to try the script

Needs vLLM. Both servers run the same random Qwen2.5-VL, large enough that reading the prompt takes
most of the time. In each round both are asked the same requests, one server after the other, and
who comes first changes from round to round, so that a noisy minute hits both alike. Each request
has a picture of its own: nothing comes from a cache. Rows are requests a second and the time to the
first token, medians over rounds, with 1, 8 and 32 requests in flight. A ratio is the median of the
rounds' own ratios; its lower bound is the lowest of them.

A run that was stopped goes on with the rounds that are missing.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results
from tests.serving.vllm import checkpoints
from tests.serving.vllm.engine import picture
from tests.serving.vllm.server import Server
from tokenprune.budget import Budget

THREADS = 2
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
        },
        "side": 784,
        "requests": {1: 4, 8: 16, 32: 32},  # in flight: in a round
        "new_tokens": 4,
    },
    "tiny": {
        "text": {},
        "side": 224,
        "requests": {1: 1, 8: 8, 32: 32},
        "new_tokens": 4,
    },
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(THREADS),
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
NAMES = "whole", "pruned"  # the servers
PIXELS = 28  # each side of what becomes a visual token

Round = dict[str, float]  # requests_per_second, and first_token_ms: the median of its requests


# -- requests -------------------------------------------------------------------------------------


def visual_tokens(size: dict[str, Any]) -> int:
    """Of a whole picture."""
    return int(size["side"] // PIXELS) ** 2


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
            "return_token_ids": True,  # a token may have no text
        }
    ).encode()


def bodies_of(size: dict[str, Any]) -> Iterator[bytes]:
    """No picture twice."""
    seed = 0
    while True:
        yield body_of(picture(seed, size["side"], size["side"]), size["new_tokens"])
        seed += 1


def tokens_of(server: Server, body: bytes) -> Iterator[int]:
    """The tokens of a reply as they come.

    Raises:
        urllib.error.HTTPError: the request was refused.
    """
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            event = line.removeprefix(b"data: ").strip()
            if event.startswith(b"{"):
                for choice in json.loads(event)["choices"]:
                    yield from choice.get("token_ids") or ()


def first_token_s(server: Server, body: bytes) -> float:
    """Sends a request and reads its reply to the end.

    Raises:
        RuntimeError: the reply has not as many tokens as were asked for.
    """
    start = time.perf_counter()
    times = [time.perf_counter() - start for _ in tokens_of(server, body)]
    expected = json.loads(body)["max_tokens"]
    if len(times) != expected:
        raise RuntimeError(f"a reply must have {expected} tokens, got {len(times)}")
    return times[0]


def ask(server: Server, bodies: list[bytes], in_flight: int) -> Round:
    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        firsts = list(pool.map(lambda body: first_token_s(server, body), bodies))
    seconds = time.perf_counter() - start
    return {
        "requests_per_second": len(bodies) / seconds,
        "first_token_ms": 1e3 * statistics.median(firsts),
    }


# -- what a server counts -------------------------------------------------------------------------


def metric(server: Server, pattern: str) -> float:
    """The number that a pattern finds among the server's metrics.

    Raises:
        RuntimeError: it finds none.
    """
    with urllib.request.urlopen(f"{server.url}/metrics") as reply:
        found = re.search(pattern, reply.read().decode(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{server.url}/metrics has nothing like {pattern}")
    return float(found[1])


def counted(server: Server, body: bytes) -> dict[str, int]:
    """What one request takes: tokens of its prompt, blocks of the KV cache while it runs."""
    tokens, usage = (
        r"^vllm:prompt_tokens_total\{.*\} (\S+)$",
        r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$",
    )
    before = metric(server, tokens)
    largest = max(metric(server, usage) for _ in tokens_of(server, body))
    blocks = (
        metric(server, r'^vllm:cache_config_info\{.*num_gpu_blocks="(\d+)"') - 1
    )  # one is vLLM's
    return {
        "prompt_tokens": round(metric(server, tokens) - before),
        "kv_blocks": round(largest * blocks),
    }


def check_takes(takes: dict[str, dict[str, int]], size: dict[str, Any], keep_ratio: float) -> None:
    """
    Raises:
        RuntimeError: the servers did not read what they should have.
    """
    whole = visual_tokens(size)
    gone = whole - Budget(keep_ratio=keep_ratio).kept_of(whole)
    found = takes["whole"]["prompt_tokens"] - takes["pruned"]["prompt_tokens"]
    if found != gone:
        raise RuntimeError(f"a prompt must be {gone} tokens shorter, it is {found} shorter")


# -- rounds ---------------------------------------------------------------------------------------


class Rounds:
    """The rounds of a run, in a file from which a stopped run goes on.

    Args:
        about: what they were measured on; a file about anything else is not gone on with.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.rounds: list[dict[str, Any]] = kept["rounds"] if kept.get("about") == about else []

    def of(self, in_flight: int) -> list[dict[str, Any]]:
        return [one for one in self.rounds if one["in_flight"] == in_flight]

    def add(self, in_flight: int, of_servers: dict[str, Round]) -> None:
        self.rounds.append({"in_flight": in_flight, **of_servers})
        self.path.parent.mkdir(exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"about": self.about, "rounds": self.rounds}))
        partial.replace(self.path)


def measure(
    servers: dict[str, Server], size: dict[str, Any], rounds: Rounds, repeats: int
) -> dict[str, dict[str, int]]:
    """Adds the rounds that are missing. Returns what one request takes of each server."""
    bodies = bodies_of(size)
    for server in servers.values():  # the first ones do not count
        ask(server, [next(bodies) for _ in range(4)], 4)
    takes = {name: counted(server, next(bodies)) for name, server in servers.items()}
    check_takes(takes, size, rounds.about["keep_ratio"])
    for in_flight, requests in size["requests"].items():
        for number in range(len(rounds.of(in_flight)), repeats):
            same = [next(bodies) for _ in range(requests)]
            order = NAMES if number % 2 == 0 else NAMES[::-1]
            found = {name: ask(servers[name], same, in_flight) for name in order}
            rounds.add(in_flight, found)
            print(in_flight, "in flight:", json.dumps(found), flush=True)
    return takes


def rows_of(
    rounds: Rounds, takes: dict[str, dict[str, int]], size: dict[str, Any]
) -> list[dict[str, Any]]:
    about, rows = dict(rounds.about), []
    pruned = f"{about.pop('method')} {about.pop('keep_ratio')}"
    for in_flight in size["requests"]:
        of_all = rounds.of(in_flight)
        ratios = [
            one["pruned"]["requests_per_second"] / one["whole"]["requests_per_second"]
            for one in of_all
        ]
        for name in NAMES:
            faster = ratios if name == "pruned" else [1.0]
            rows.append(
                {
                    "op": "serve",
                    "impl": pruned if name == "pruned" else name,
                    "shape": [visual_tokens(size), in_flight],
                    "dtype": "float32",
                    **about,
                    "rounds": len(of_all),
                    **{
                        figure: statistics.median(one[name][figure] for one in of_all)
                        for figure in ("requests_per_second", "first_token_ms")
                    },
                    **takes[name],
                    "times_faster": [min(faster), statistics.median(faster), max(faster)],
                }
            )
    return rows


# -- the run --------------------------------------------------------------------------------------


def write_model(size: dict[str, Any], folder: Path) -> Path:
    """The tests' Qwen2.5-VL with another language model."""
    checkpoints.TEXT.update(size["text"])
    heads = checkpoints.TEXT["hidden_size"] // checkpoints.TEXT["num_attention_heads"] // 2
    checkpoints.MROPE["mrope_section"] = [heads - 2 * (heads * 3 // 8), *[heads * 3 // 8] * 2]
    checkpoints.PIXELS["max_pixels"] = size["side"] ** 2
    checkpoints.MERGING["out_hidden_size"] = checkpoints.TEXT["hidden_size"]
    return checkpoints.write("qwen2_5_vl", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "serving", help="folder")
    options = parser.parse_args()
    import torch
    import transformers
    import vllm

    size = SIZES[options.size]
    device = results.device_name("cpu", THREADS)
    about = {
        "method": options.method,
        "keep_ratio": options.keep_ratio,
        "size": options.size,
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vllm": vllm.__version__,
    }
    rounds = Rounds(options.out / f"{device}.unfinished.json", about)
    os.environ |= ENVIRONMENT
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(size, Path(name) / "model")
        plain = ["vllm.entrypoints.openai.api_server", "--model", str(folder)]
        ours = ["tokenprune.cli", "serve", str(folder), "--method", options.method]
        ours += ["--keep-ratio", str(options.keep_ratio)]
        common = ["--max-num-batched-tokens", "4096", "--no-enable-prefix-caching"]
        with (
            Server(Path(name) / "whole", [*plain, *common], num_seqs=32) as whole,
            Server(Path(name) / "pruned", [*ours, *common], num_seqs=32) as pruned,
        ):
            servers = {"whole": whole, "pruned": pruned}
            takes = measure(servers, size, rounds, options.rounds)
    rows = rows_of(rounds, takes, size)
    print(results.upsert(rows, device, options.out))
    rounds.path.unlink()
    for row in rows:
        low, middle, _ = row["times_faster"]
        print(
            f"{row['shape'][1]:>2} in flight, {row['impl']}: {row['requests_per_second']:.2f} "
            f"requests/s, {middle:.2f} x (at least {low:.2f}), first token "
            f"{row['first_token_ms']:.0f} ms, {row['kv_blocks']} KV blocks a request"
        )


if __name__ == "__main__":
    main()
