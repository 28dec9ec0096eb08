"""A page that is served in a thread, and browsers without a window that ask it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from geollava.answering.session import Session
from geollava.answering.settings import Settings
from geollava.app.guard import TOKEN_HEADER
from geollava.app.limits import Limits
from geollava.app.server import Page, listen, make_app


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.body.decode().split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line]


@dataclass
class Browser:
    """One browser: it keeps its cookie and its token, and sends what browsers send."""

    port: int
    host: str = ""
    cookie: str = ""
    token: str = ""
    replies: list[Reply] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = self.host or f"127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """`body` is bytes, or an object that becomes JSON; headers with _ for -."""
        with self.open(method, path, body, **headers) as response:
            found = {name.lower(): value for name, value in response.getheaders()}
            reply = Reply(response.status, found, response.read())
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].split(";")[0]
        self.replies.append(reply)
        return reply

    @contextmanager
    def open(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> Iterator[HTTPResponse]:
        own = {"host": self.host, "cookie": self.cookie}
        if method not in ("GET", "HEAD"):
            own |= {"origin": f"http://{self.host}", TOKEN_HEADER: self.token}
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, content, {k: v for k, v in own.items() if v})
            yield connection.getresponse()
        finally:
            connection.close()

    def begin(self) -> Any:
        """Opens the page -> what it begins with."""
        assert self.send("GET", "/").status == 200
        state = self.send("GET", "/api/state").json
        self.token = state["token"]
        return state

    def upload(self, content: bytes, name: str = "scene.png") -> Reply:
        return self.send("POST", f"/api/scene?name={name}", content)

    def see(self, **chosen: Any) -> Any:
        """What is kept of the scene, or the error."""
        return self.last("/api/see", {"method": "background_anchored", "num_keep": 24} | chosen)

    def ask(self, question: str, **chosen: Any) -> Any:
        return self.last("/api/ask", {"question": question} | chosen)

    def last(self, path: str, body: Any) -> Any:
        reply = self.send("POST", path, body)
        return reply.events[-1] if reply.status == 200 else reply.json


@dataclass
class Served:
    """A page that is served."""

    page: Page
    port: int

    def browser(self, **options: Any) -> Browser:
        return Browser(self.port, **options)

    @property
    def files(self) -> list[Path]:
        """All that lies in the page's folder, but for the viewers' own empty folders."""
        return [path for path in self.page.folder.rglob("*") if path.is_file()]


@contextmanager
def served(
    pair: Any, limits: Limits | None = None, local: bool = True, **options: Any
) -> Iterator[Served]:
    settings = Settings(max_new_tokens=options.pop("max_new_tokens", 8))
    session = Session.of(*pair, name=options.pop("name", Settings.model))
    page = Page(session, settings, limits or Limits(), **options)
    with listen("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(make_app(page, local), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Served(page, sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def server(default_pair) -> Iterator[Served]:
    """One page for a whole file of tests; each takes browsers of its own."""
    with served(default_pair) as running:
        yield running


@pytest.fixture
def browser(server) -> Browser:
    """A browser that has opened the page."""
    found = server.browser()
    found.begin()
    return found


def png(image: Any) -> bytes:
    written = BytesIO()
    image.save(written, "PNG")
    return written.getvalue()
