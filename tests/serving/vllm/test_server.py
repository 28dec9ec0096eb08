"""vLLM's own HTTP server, started by `tokenprune serve`."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from .engine import picture

WAIT_S = 600  # for a server on a busy machine
STARTS = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--block-size", "32"]


class Server:
    """A server of a checkpoint, on a port of its own."""

    def __init__(self, folder, log, arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [sys.executable, "-m", *arguments, *STARTS, "--max-num-seqs", "4"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
        # A server has its engine in a process of its own.
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)

    def __enter__(self):
        stop = time.monotonic() + WAIT_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            except OSError:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > stop:
                    self.__exit__()
                    raise AssertionError(self.log.read_text()[-4000:]) from None
                time.sleep(0.5)

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()

    def ask(self, image, **extra):
        """(status, the reply as JSON)."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        shown = {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
        content = [
            {"type": "image_url", "image_url": shown},
            {"type": "text", "text": "What is here?"},
        ]
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 8,
            "temperature": 0,
            **extra,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def ours(**options):
    return {"mm_processor_kwargs": {"tokenprune": options}}


def serve(checkpoint, tmp_path, *arguments):
    folder = checkpoint("qwen2_5_vl")
    command = ["tokenprune.cli", "serve", str(folder), *arguments]
    return Server(folder, tmp_path / "log", command)


QUARTER = ["--method", "divprune", "--keep-ratio", "0.25"]


def test_server(checkpoint, tmp_path):
    image = picture(5, 448, 448)  # 16 x 16 tokens
    with serve(checkpoint, tmp_path, *QUARTER, "--trust-request-mm-kwargs") as server:
        lengths = {}
        for name, extra in {
            "quarter": {},
            "whole": ours(keep_ratio=1.0),
            "ten": ours(num_keep=10),
        }.items():
            status, reply = server.ask(image, **extra)
            assert status == 200, reply
            lengths[name] = reply["usage"]["prompt_tokens"]
        assert lengths["whole"] - lengths["quarter"] == 192
        assert lengths["whole"] - lengths["ten"] == 246
        for extra, expected in [
            (ours(keep_ratio=0), "keep_ratio must be in (0, 1], got 0"),
            (ours(keep_ratio=2), "keep_ratio must be in (0, 1], got 2"),
            (ours(keep_ratio="a"), "keep_ratio must be a number"),
            (ours(method="divprune"), "a request's options must be among num_keep, keep_ratio"),
            (ours(retention_ratio=0.5), "write keep_ratio=0.5"),
            (ours(), "exactly one of num_keep and keep_ratio"),
            ({"mm_processor_kwargs": {"tokenprune": 3}}, "tokenprune must be an object, got 3"),
        ]:
            status, reply = server.ask(image, **extra)
            assert status == 400, reply
            assert expected in reply["error"]["message"]
        status, reply = server.ask(image)  # the server goes on
        assert (status, reply["usage"]["prompt_tokens"]) == (200, lengths["quarter"])


def test_a_server_that_does_not_allow_requests_options(checkpoint, tmp_path):
    with serve(checkpoint, tmp_path, *QUARTER) as server:
        image = picture(5, 448, 448)
        status, reply = server.ask(image, **ours(keep_ratio=0.5))
        assert status == 400
        assert "--trust-request-mm-kwargs" in reply["error"]["message"]
        assert server.ask(image)[0] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep-ratio", "2"], "keep_ratio must be in (0, 1], got 2.0"),
        (["--keep-ratio", "0.5", "--method", "divprone"], "did you mean 'divprune'"),
        (["--keep-ratio", "0.5", "--hf-overrides", "{}"], "--hf-overrides must be given to vLLM"),
    ],
)
def test_bad_options_end_the_command(checkpoint, tmp_path, arguments, message):
    command = [sys.executable, "-m", "tokenprune.cli", "serve", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
