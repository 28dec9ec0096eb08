"""vLLM's own HTTP server, started by `tokenprune serve`."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from .engine import picture
from .server import Server


def ours(**options):
    return {"mm_processor_kwargs": {"tokenprune": options}}


def said(answer):
    """(the reply's words, tokens of the prompt)"""
    status, reply = answer
    assert status == 200, reply
    return reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]


def serve(checkpoint, tmp_path, *arguments):
    folder = checkpoint("qwen2_5_vl")
    command = ["tokenprune.cli", "serve", str(folder), *arguments]
    return Server(tmp_path / "log", command)


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
            ({"mm_processor_kwargs": {"tokenprun": {}}}, "must be inside tokenprune, as in"),
            ({"mm_processor_kwargs": {"keep_ratio": 0.5}}, "must be inside tokenprune, as in"),
        ]:
            status, reply = server.ask(image, **extra)
            assert status == 400, reply
            message = reply["error"]["message"]
            assert expected in message
            assert "\n" not in message  # one message, no traceback
        status, reply = server.ask(image)  # the server goes on
        assert (status, reply["usage"]["prompt_tokens"]) == (200, lengths["quarter"])
        # Text alone, also among images; options have nothing to say of it.
        of_image, of_text = said((status, reply)), said(server.ask())
        assert of_text[1] < 40
        assert said(server.ask(**ours(keep_ratio=0.5))) == of_text
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(server.ask, [image, None] * 4))
        assert list(map(said, answers)) == [of_image, of_text] * 4


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
