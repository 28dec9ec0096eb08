"""vLLM's HTTP server in a process of its own."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAIT_S = 600  # for a server on a busy machine
STARTS = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--block-size", "32"]


class Server:
    """A server on a port of its own.

    Args:
        log: where it writes what it prints.
        arguments: of `python -m`.
        num_seqs: most requests in flight.
    """

    def __init__(self, log: Path, arguments: Sequence[str], num_seqs: int = 4) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [sys.executable, "-m", *arguments, *STARTS, "--max-num-seqs", str(num_seqs)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
        # A server has its engine in a process of its own.
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)

    def __enter__(self) -> Server:
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

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()

    def ask(self, image: Any = None, **extra: Any) -> tuple[int, Any]:
        """(status, the reply as JSON)."""
        content: list[dict[str, Any]] = [{"type": "text", "text": "What is here?"}]
        if image is not None:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            shown = {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
            content.insert(0, {"type": "image_url", "image_url": shown})
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
