"""The benchmark of serving, beside a server that streams and counts as vLLM does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from benchmarks import serving

METRICS = """\
vllm:cache_config_info{block_size="32",num_gpu_blocks="101"} 1.0
vllm:prompt_tokens_total{engine="0"} %d
vllm:kv_cache_usage_perc{engine="0"} %f
"""


class Answers(BaseHTTPRequestHandler):
    """Three tokens a reply, the first without text; 94 tokens a prompt, 4 of 100 blocks."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.server.prompt_tokens += 94
        self.server.usage = 0.04
        for text, ids in [("", None), ("", [3]), ("ab", [4, 5])]:
            choice = {"delta": {"content": text}, "token_ids": ids}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def do_GET(self):
        text = METRICS % (self.server.prompt_tokens, self.server.usage)
        self.server.usage = 0.0
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    http.prompt_tokens, http.usage = 500, 0.0
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_address[1]}")
    http.shutdown()
    http.server_close()


def body(new_tokens):
    return json.dumps({"max_tokens": new_tokens}).encode()


def test_a_reply_is_read_to_its_end(server):
    assert list(serving.tokens_of(server, body(3))) == [3, 4, 5]
    assert serving.ask(server, [body(3)] * 4, 2)["requests_per_second"] > 0
    with pytest.raises(RuntimeError, match="a reply must have 4 tokens, got 3"):
        serving.first_token_s(server, body(4))


def test_what_one_request_takes(server):
    assert serving.counted(server, body(3)) == {"prompt_tokens": 94, "kv_blocks": 4}
    with pytest.raises(RuntimeError, match="has nothing like vllm:other"):
        serving.metric(server, "vllm:other (.*)")


SIZE = {"side": 224, "requests": {1: 1, 8: 2}, "new_tokens": 3}
TAKES = {
    "whole": {"prompt_tokens": 90, "kv_blocks": 4},
    "pruned": {"prompt_tokens": 42, "kv_blocks": 2},
}
ABOUT = {"method": "divprune", "keep_ratio": 0.25, "vllm": "0.32.0"}


@pytest.fixture
def asked(monkeypatch):
    """(server, in flight) of each call. The pruned server is faster by 2, 3, 4 ..."""
    calls = []

    def ask(server, bodies, in_flight):
        number = sum(call == (server, in_flight) for call in calls)
        calls.append((server, in_flight))
        if len(calls) == ask.stops_at:
            raise KeyboardInterrupt
        per_second = 1.0 if server == "whole" else 2.0 + number
        return {"requests_per_second": per_second, "first_token_ms": 5.0}

    ask.stops_at = None
    monkeypatch.setattr(serving, "ask", ask)
    monkeypatch.setattr(serving, "counted", lambda server, body: TAKES[server])
    return calls, ask


def test_both_are_asked_in_turn_and_a_stopped_run_goes_on(asked, tmp_path):
    calls, ask = asked
    servers = {name: name for name in serving.NAMES}
    path, about = tmp_path / "new" / "rounds.json", ABOUT
    ask.stops_at = 2 + 6 + 3  # warm-up, three rounds, a round and a half
    with pytest.raises(KeyboardInterrupt):
        serving.measure(servers, SIZE, serving.Rounds(path, about), 3)
    order = ["whole", "pruned", "pruned", "whole", "whole", "pruned"]
    assert calls[2:] == [(name, 1) for name in order] + [(name, 8) for name in order[:3]]
    ask.stops_at = None
    calls.clear()
    serving.measure(servers, SIZE, serving.Rounds(path, about), 3)
    assert calls[2:] == [(name, 8) for name in order[2:]]
    assert len(serving.Rounds(path, about).rounds) == 6
    assert serving.Rounds(path, ABOUT | {"vllm": "0.33.0"}).rounds == []


def test_rows(asked, tmp_path):
    rounds = serving.Rounds(tmp_path / "rounds.json", ABOUT)
    takes = serving.measure({name: name for name in serving.NAMES}, SIZE, rounds, 3)
    rows = serving.rows_of(rounds, takes, SIZE)
    assert [(row["impl"], row["shape"], row["kv_blocks"]) for row in rows] == [
        ("whole", [64, 1], 4),
        ("divprune 0.25", [64, 1], 2),
        ("whole", [64, 8], 4),
        ("divprune 0.25", [64, 8], 2),
    ]
    assert [row["times_faster"] for row in rows] == [[1, 1, 1], [2, 3, 4]] * 2
    assert rows[1]["requests_per_second"] == 3
    assert rows[1]["vllm"] == "0.32.0"


def test_servers_that_do_not_read_what_they_should(asked, tmp_path, monkeypatch):
    rounds = serving.Rounds(tmp_path / "rounds.json", ABOUT)
    monkeypatch.setattr(serving, "counted", lambda server, body: TAKES["whole"])
    with pytest.raises(RuntimeError, match="must be 48 tokens shorter, it is 0 shorter"):
        serving.measure({name: name for name in serving.NAMES}, SIZE, rounds, 3)
    assert rounds.rounds == []
