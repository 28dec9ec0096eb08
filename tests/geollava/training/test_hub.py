"""The result of a run uploaded to a hub: a local stand-in that speaks as much of it as it takes."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest

from geollava import GeoLlavaForConditionalGeneration


@pytest.fixture
def hub(monkeypatch):
    """Requests that came, and the files that were committed, by name."""
    files, made = {}, []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def reply(self, content, status=200):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            known = "refused" not in self.path
            self.reply({"id": "someone/scenes", "sha": "0" * 40}, 200 if known else 404)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.path == "/api/repos/create":
                made.append(json.loads(body))
                if made[-1]["name"] == "refused":
                    self.reply({"error": "not yours"}, 403)
                else:
                    self.reply({"url": f"{endpoint}/someone/scenes"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                self.reply(
                    {
                        "files": [
                            {"path": name, "uploadMode": "regular", "shouldIgnore": False}
                            for name in names
                        ]
                    }
                )
            elif "/commit/" in self.path:
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        files[value["path"]] = base64.b64decode(value["content"])
                self.reply(
                    {"commitUrl": f"{endpoint}/someone/scenes/commit/1", "commitOid": "1" * 40}
                )
            else:
                self.reply({"error": self.path}, 404)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made, files
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_result_is_uploaded_only_where_that_is_asked_for(write, run, tmp_path, hub):
    made, files = hub
    assert run("train", write(max_steps=1, output="kept"))[0] == 0
    assert (made, files) == ([], {})

    code, _, err = run("train", write(max_steps=1, push_to_hub="someone/scenes"))
    assert code == 0, err
    (repo,) = made
    assert (repo["name"], repo["organization"]) == ("scenes", "someone")
    # Releases of huggingface_hub say it in either way.
    assert repo.get("private") is True or repo.get("visibility") == "private"
    written = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert files == written
    (tmp_path / "back").mkdir()
    for name, content in files.items():
        (tmp_path / "back" / name).write_bytes(content)
    GeoLlavaForConditionalGeneration.from_pretrained(tmp_path / "back")


def test_a_hub_that_refuses_is_named(write, run, tmp_path, hub):
    code, _, err = run("train", write(max_steps=1, push_to_hub="someone/refused"))
    assert (code, "push_to_hub: someone/refused cannot be uploaded to" in err) == (2, True)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    code, _, err = run("train", write(push_to_hub="no-owner"))
    assert (code, "push_to_hub: string should match pattern" in err) == (2, True)
