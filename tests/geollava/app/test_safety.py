"""Other sites, wrong passwords, hostile files, too much of anything: refused, and nothing left."""

from __future__ import annotations

import io
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from geollava.app.guard import TOKEN_HEADER, is_loopback
from geollava.app.limits import Limits
from tests.geollava.app.conftest import Browser, png, served
from tests.geollava.conftest import noise

HOSTILE = Path(__file__).resolve().parents[4] / "shared" / "hostile"
CHANGES = [
    ("POST", "/api/scene?name=a.png"),
    ("DELETE", "/api/scene"),
    ("POST", "/api/see"),
    ("POST", "/api/ask"),
]
READS = ["/api/state", "/api/layers/a", "/api/download/a/overlay.png", "/tiles/x/0/0/0.jpg"]


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_what_changes_anything_must_come_from_the_page(browser, method, path):
    def status(**headers):
        return browser.send(method, path, b"{}", **headers).status

    token = {TOKEN_HEADER.replace("-", "_"): ""}
    assert status(origin="http://elsewhere.example") == 403
    assert status(origin="null") == 403
    assert status(origin="") == 403
    assert status(origin=f"http://localhost:{browser.port}") == 403  # another host than it asks
    assert status(sec_fetch_site="same-site") == 403
    assert status(**token) == 403
    assert status(cookie="geollava=guessed") == 401
    assert status() not in (401, 403)


@pytest.mark.parametrize("path", READS)
def test_reads_need_a_viewer_and_no_other_site(browser, path):
    assert browser.send("GET", path, cookie="").status == 401
    assert browser.send("GET", path, sec_fetch_site="cross-site").status == 403
    assert browser.send("GET", path).status in (200, 409)


def test_a_link_from_elsewhere_opens_the_page(browser):
    away = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert browser.send("GET", "/", **away).status == 200


@pytest.mark.parametrize(
    "host", ["elsewhere.example", "elsewhere.example:80", "", "[::1", "0.0.0.0"]
)
def test_another_host_name_is_refused(server, host):
    assert server.browser(host=host or " ").send("GET", "/").status in (400, 403)


def test_other_names_of_this_machine_are_not(server):
    for host in (f"localhost:{server.port}", f"[::1]:{server.port}", f"127.0.0.1:{server.port}"):
        assert server.browser(host=host).send("GET", "/").status == 200


def test_addresses_of_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "elsewhere.example", "")))


def test_every_reply_says_what_may_be_loaded(browser):
    for path in ("/", "/static/app.js", "/api/state", "/none", "/api/layers/a"):
        headers = browser.send("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    cookie = browser.send("GET", "/", cookie="").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_a_password(default_pair, monkeypatch):
    monkeypatch.setattr("geollava.app.guard.WRONG_PASSWORD_SECONDS", 0)
    with served(default_pair, local=False, password="open sesame") as running:
        browser = running.browser(host="scenes.example")
        reply = browser.send("GET", "/")
        assert (reply.status, reply.headers["location"]) == (303, "/login")
        assert browser.send("GET", "/login").status == 200
        assert browser.send("GET", "/api/state").status == 401
        assert browser.send("POST", "/login", b"open").status == 403
        assert browser.send("POST", "/login", b"open sesame", origin="http://a.b").status == 403
        assert browser.cookie == ""
        assert browser.send("POST", "/login", b"open sesame").status == 200
        assert browser.begin()["scene"] is None


def test_viewers_have_nothing_of_each_other(server):
    mine, other = server.browser(), server.browser()
    mine.begin(), other.begin()
    assert mine.cookie != other.cookie
    key = mine.upload(png(noise(300, 300))).json["key"]
    mine.see()
    assert mine.send("GET", f"/tiles/{key}/0/0/0.jpg").status == 200
    assert other.send("GET", f"/tiles/{key}/0/0/0.jpg").status == 409
    other.upload(png(noise(300, 300)))
    assert other.send("GET", f"/tiles/{key}/0/0/0.jpg").status == 404
    assert other.send("GET", "/api/layers/a").status == 409
    assert (
        other.send("POST", "/api/ask", b'{"question": "What?"}', x_geollava_token=mine.token).status
        == 403
    )


def test_too_much(default_pair):
    with served(default_pair, Limits(upload_bytes=20_000, pixels=100_000)) as running:
        browser = running.browser()
        browser.begin()
        reply = browser.upload(b"x" * 20_001)
        assert (reply.status, "at most 0 MiB" in reply.json["error"]) == (413, True)
        assert browser.send("POST", "/api/see", b" " * 70_000).status == 413
        small = io.BytesIO()
        Image.new("L", (400, 400)).save(small, "PNG")
        reply = browser.upload(small.getvalue(), "large.png")
        assert reply.status == 400
        assert reply.json["error"].startswith("large.png is 400 x 400 = 0 megapixels, more than")
        assert running.files == []


def test_files_go_with_their_scene_their_viewer_and_the_server(default_pair):
    with served(default_pair, Limits(viewers=2)) as running:
        folder = running.page.folder
        first = running.browser()
        first.begin()
        first.upload(png(noise(300, 300)))
        before = running.files
        assert {path.name for path in before} == {"upload", "tiles"}
        first.upload(png(noise(300, 300)))
        assert len(running.files) == 2
        assert not set(before) & set(running.files)
        first.send("DELETE", "/api/scene")
        assert running.files == []

        first.upload(png(noise(300, 300)))
        second, third = running.browser(), running.browser()
        second.begin()
        third.begin()  # takes the place of the second, which has no scene
        assert second.send("GET", "/api/state").status == 401
        assert first.send("GET", "/api/state").status == 200
        third.upload(png(noise(300, 300)))
        running.browser().begin()  # takes that of the first, which asked last longest ago
        assert first.send("GET", "/api/state").status == 401
        assert len(running.files) == 2

        for viewer in running.page.viewers._viewers.values():
            viewer.used -= 10_000
        running.page.viewers.remove_idle()
        assert len(running.page.viewers) == 0
        assert list(folder.iterdir()) == []
        third.cookie = ""
        third.begin()
        third.upload(png(noise(300, 300)))
    assert not folder.exists()


@pytest.fixture
def with_folder(default_pair, tmp_path):
    """A page with a folder of scenes -> it, and the folder."""
    root = tmp_path / "scenes"
    (root / "more").mkdir(parents=True)
    noise(300, 300).save(root / "more" / "a.png")
    noise(300, 300).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "notes.txt").write_text("nothing to see")
    with served(default_pair, root=root) as running:
        yield running, root


def test_a_folder_gives_its_scenes_and_nothing_else(with_folder):
    running, root = with_folder
    browser = running.browser()
    assert browser.begin()["files"] == ["link.png", "more/a.png"]
    assert browser.send("POST", "/api/scene", {"file": "more/a.png"}).json["name"] == "a.png"
    assert browser.see()["seen"]["kept"]
    bad = ["../secret.png", str(root.parent / "secret.png"), "link.png", "notes.txt", "more", ""]
    bad += ["more/../../secret.png", "a\0b.png", "x" * 5000, "~/a.png", "none.png"]
    for name in bad:
        reply = browser.send("POST", "/api/scene", {"file": name})
        assert (reply.status, reply.json["error"][:14]) == (404, "no such scene:"), name
    assert browser.send("GET", "/static/../server.py").status == 404
    assert browser.send("GET", "/static/%2e%2e/server.py").status == 404
    for reply in browser.replies:
        assert str(root.parent).encode() not in reply.body


def test_a_server_without_a_folder_opens_no_file(browser, tmp_path):
    noise(300, 300).save(tmp_path / "a.png")
    assert browser.send("POST", "/api/scene", {"file": str(tmp_path / "a.png")}).status == 404


def malformed(count):
    """Files that are broken in all kinds of ways, most of them images that were changed."""
    random_of = random.Random(0)
    whole = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        written = io.BytesIO()
        noise(80, 60).save(written, kind)
        whole.append(written.getvalue())
    yield from (b"", b"\0", b"<VRTDataset/>", b"II*\0", b"GIF89a", b"%PDF-1.7", b"<svg/>")
    for number in range(count - 7):
        content = bytearray(whole[number % len(whole)])
        if number % 3 == 0:
            del content[random_of.randrange(8, len(content) // 2) :]
        else:
            for _ in range(8):
                content[random_of.randrange(min(len(content), 200))] = random_of.randrange(256)
        yield bytes(content)


def test_malformed_uploads_neither_stop_the_server_nor_leave_files(default_pair):
    with served(default_pair) as running:
        browser = running.browser()
        browser.begin()
        statuses = []
        for number, content in enumerate(malformed(100)):
            reply = browser.upload(content, f"{number}.png")
            statuses.append(reply.status)
            if reply.status == 200:  # what was changed did not matter
                browser.send("DELETE", "/api/scene")
            else:
                assert "\n" not in reply.json["error"]
                assert f"{number}.png" in reply.json["error"]
        assert set(statuses) <= {200, 400}
        assert statuses.count(400) > 60
        assert running.files == []
        for reply in browser.replies:
            assert str(running.page.folder).encode() not in reply.body
            assert b"/upload" not in reply.body
        assert browser.upload(png(noise(300, 300))).status == 200


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="no hostile files beside the checkout")
def test_hostile_files_end_their_upload_alone(default_pair, monkeypatch):
    pytest.importorskip("rasterio")
    monkeypatch.setattr("geollava.imagery.worker.SECONDS", 3)
    files = sorted(HOSTILE.iterdir())
    assert len(files) == 4
    with served(default_pair) as running:
        browser = running.browser()
        browser.begin()
        for path in files:
            reply = browser.upload(path.read_bytes(), path.name)
            assert reply.status == 400
            assert reply.json["error"].startswith(path.name)
            assert str(running.page.folder) not in reply.json["error"]
        assert running.files == []
        assert browser.upload(png(noise(300, 300))).status == 200


def test_uploads_without_a_length_and_uploads_that_stop_leave_nothing(default_pair):
    with served(default_pair, Limits(upload_bytes=20_000)) as running:
        browser = running.browser()
        browser.begin()
        head = (
            f"POST /api/scene?name=a.png HTTP/1.1\r\nHost: {browser.host}\r\n"
            f"Origin: http://{browser.host}\r\nCookie: {browser.cookie}\r\n"
            f"{TOKEN_HEADER}: {browser.token}\r\n"
        )
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 2 * chunk)
            assert b" 413 " in connection.recv(100)
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(f"{head}Content-Length: 5000\r\n\r\nonly this".encode())
            while not running.files:
                time.sleep(0.01)
        while running.files:  # until the server has seen that it is gone
            time.sleep(0.01)
        assert browser.upload(png(noise(60, 40))).status == 200


COMMAND = [sys.executable, "-m", "geollava", "app", "--port", "0"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_cleans_up_when_it_ends(how, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        COMMAND,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "", "TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)},
    )
    line = process.stderr.readline()
    assert line.startswith("http://127.0.0.1:")
    browser = Browser(int(line.split(":")[2].split()[0]))
    for _ in range(100):  # it listens before it serves
        try:
            browser.begin()
            break
        except ConnectionError:
            time.sleep(0.1)
    assert browser.upload(png(noise(300, 300))).status == 200
    assert list(temporary.rglob("tiles"))
    process.send_signal(how)
    _, rest = process.communicate(timeout=60)
    assert "Traceback" not in rest
    assert [path for path in temporary.iterdir() if path.name.startswith("geollava")] == []


def test_the_command_refuses(run, tmp_path):
    code, _, err = run("app", "--folder", tmp_path / "none")
    assert (code, err.startswith("error: --folder must be a folder")) == (2, True)
    code, _, err = run("app", "--host", "999.1.1.1")
    assert code == 2
    assert err.count("\n") == 1
    code, _, err = run("app", "--port", 65536)
    assert (code, err) == (2, "error: --port must be 0 to 65535, got 65536\n")
