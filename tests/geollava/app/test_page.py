"""A scene is opened, seen, asked about and downloaded; everyone sees their own."""

from __future__ import annotations

import gzip
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from geollava.answering.session import Session
from geollava.app.limits import Limits
from geollava.app.opening import EXAMPLES
from geollava.app.side import LEFT_OUT
from geollava.model.checkpoint import resolve_folder
from geollava.model.default_model import DEMONSTRATION
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor
from tests.geollava.app.conftest import png, served
from tests.geollava.conftest import noise


def roots_of(browser, seen, side="a"):
    """[rows, cols] as the page draws them."""
    reply = browser.send("GET", f"/api/layers/{side}")
    assert reply.headers["content-encoding"] == "gzip"
    return np.frombuffer(gzip.decompress(reply.body), "<i4").reshape(seen["grid"])


def test_what_the_page_begins_with(server):
    state = server.browser().begin()
    assert state["notes"] == [DEMONSTRATION]
    assert len(state["questions"]) == 8
    assert state["begin"] == {"method": "background_anchored", "num_keep": 24}
    assert "divprune" in state["methods"]["crop"]
    assert "fastv" in state["methods"]["question"]
    assert state["examples"] == list(EXAMPLES)
    assert state["files"] == []
    assert state["scene"] is None


def test_an_upload_is_shown_seen_asked_about_and_downloaded(browser, default_pair):
    image = noise(1008, 672)  # fills its canvas
    scene = browser.upload(png(image), "land.png").json
    assert (scene["name"], scene["size"], scene["levels"]) == ("land.png", [1008, 672], 3)
    tile = browser.send("GET", f"/tiles/{scene['key']}/0/3/1.jpg")
    assert tile.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(tile.body)).size == (1008 - 768, 256)

    events = browser.send("POST", "/api/see", {"method": "divprune", "num_keep": 10}).events
    crops = [event for event in events if event.get("stage") == "crops"]
    seen = events[-1]["seen"]
    assert crops[-1]["done"] == crops[-1]["total"] == seen["crops"][0] * seen["crops"][1]
    assert (seen["method"], seen["num_keep"]) == ("divprune", 10)
    assert seen["tokens_after"] == 10 * crops[-1]["total"] == seen["kept"]
    assert seen["kept"] + seen["merged"] + seen["left_out"] == seen["tokens_before"]
    assert set(seen["seconds"]) == {"crop", "encode"}
    assert seen["peak_memory_mib"] > 100

    asked = browser.send("POST", "/api/ask", {"question": "What kind of vehicle is purple?"}).events
    answer = asked[-1]["answer"]
    assert "".join(event.get("text", "") for event in asked).strip() == answer["text"] != ""
    session = Session.of(*default_pair)
    session.reduce("divprune", 10)
    expected = session.see(image).ask("What kind of vehicle is purple?", max_new_tokens=8)
    assert answer["text"] == expected.text
    assert set(answer["seconds"]) == {"prefill", "answer"}

    drawn = browser.send("GET", "/api/download/a/overlay.png")
    assert Image.open(io.BytesIO(drawn.body)).width > 1008
    features = browser.send("GET", "/api/download/a/tokens.geojson")
    assert "attachment" in features.headers["content-disposition"]
    assert len(json.loads(features.body)["features"]) == seen["kept"]


def test_layers_are_the_tokens_that_the_session_keeps(browser, default_pair):
    image = noise(700, 700)
    browser.upload(png(image))
    seen = browser.see()["seen"]
    roots = roots_of(browser, seen).ravel()
    (tokens,) = Session.of(*default_pair).see(image).encode()
    kept = np.zeros((tokens.canvas.crops, 576), dtype=bool)
    for crop, (slots, valid) in enumerate(
        zip(tokens.kept.keep_indices, tokens.kept.valid, strict=True)
    ):
        kept[crop, slots[valid].numpy()] = True
    assert np.array_equal(tokens.map.over_canvas(kept).ravel(), roots == np.arange(roots.size))
    counted = np.bincount(roots[roots != LEFT_OUT], minlength=roots.size)
    assert sorted(counted[counted > 0]) == sorted(tokens.kept.counts[tokens.kept.valid].tolist())
    left, _, width, _ = seen["box"]
    assert left <= 0
    assert left + width >= 700


def test_another_budget_and_another_method_side_by_side(browser):
    browser.upload(png(noise(400, 400)))
    first = browser.see(num_keep=24)["seen"]
    assert "answer" in browser.ask("What is purple?")
    second = browser.see(num_keep=4)["seen"]
    assert (first["num_keep"], second["num_keep"]) == (24, 4)
    assert second["kept"] < first["kept"]
    other = browser.see(side="b", method="uniform", num_keep=4)["seen"]
    assert not np.array_equal(roots_of(browser, second), roots_of(browser, other, "b"))
    for side in "ab":
        assert "answer" in browser.ask("Is it moving?", side=side)
    assert "answer" in browser.ask("Is it moving?", side="b")


def test_a_method_that_needs_the_question(browser):
    browser.upload(png(noise(400, 400)))
    assert browser.see(method="fastv", num_keep=6)["seen"]["method"] == "fastv"
    answer = browser.ask("What is purple?")["answer"]
    assert answer["tokens_after"] < answer["tokens_before"] // 24


def test_an_example_is_drawn_with_its_questions(browser):
    scene = browser.send("POST", "/api/scene", {"example": "drawn scene 1"}).json
    assert scene["size"] == [1344, 1344]
    assert "What kind of vehicle is purple?" in scene["questions"]


def test_a_scene_with_a_place_on_the_earth(browser, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    options = {"driver": "GTiff", "width": 300, "height": 300, "count": 3, "dtype": "uint8"}
    options |= {"crs": "EPSG:4326", "transform": rasterio.Affine(0.001, 0, 9, 0, -0.001, 48)}
    with rasterio.open(tmp_path / "placed.tif", "w", **options) as file:
        file.write(np.asarray(noise(300, 300)).transpose(2, 0, 1))
    assert browser.upload((tmp_path / "placed.tif").read_bytes(), "placed.tif").json[
        "georeferenced"
    ]
    browser.see()
    features = browser.send("GET", "/api/download/a/tokens.geojson").json["features"]
    ((x, y), *_) = features[0]["geometry"]["coordinates"][0]
    assert 9 <= x <= 9.3
    assert 47.7 <= y <= 48


def test_what_cannot_be_done_is_one_line(browser):
    assert browser.see() == {"error": "open a scene first"}
    browser.upload(png(noise(400, 400)))
    assert browser.ask("What?") == {"error": "see the scene first"}
    assert browser.send("GET", "/api/layers/a").status == 409
    assert "method must be one of" in browser.see(method="best")["error"]
    assert browser.see(num_keep=577)["error"].startswith("num_keep must be")
    assert browser.see(num_keep="all")["error"] == "num_keep must be a whole number, got 'all'"
    assert browser.see(side="c")["error"] == "side must be one of a, b, got 'c'"
    assert "seen" in browser.see()
    assert browser.ask(" ")["error"] == "the question must say something, it is empty"
    assert "at most 2,000 characters" in browser.ask("x" * 2001)["error"]
    assert browser.send("POST", "/api/see", b"[]").json["error"].startswith("the request must be")
    assert browser.send("POST", "/api/see", b"{").status == 400
    key = browser.send("GET", "/api/state").json["scene"]["key"]
    for place in (f"{key}/0/9/0", f"{key}/9/0/0", "else/0/0/0"):
        assert browser.send("GET", f"/tiles/{place}.jpg").status == 404


def test_a_fault_of_ours_is_told_by_the_log_alone(browser, server, monkeypatch, caplog):
    def fail(*images, **options):
        raise RuntimeError("all of /etc")

    browser.upload(png(noise(400, 400)))
    monkeypatch.setattr(server.page.session, "see", fail)
    assert browser.see() == {"error": "the server could not do this; its log says why"}
    assert "all of /etc" in caplog.text
    monkeypatch.undo()
    assert "seen" in browser.see()


@pytest.fixture(scope="module")
def guessing_pair(guessing_checkpoint):
    folder = resolve_folder(str(guessing_checkpoint))
    model = GeoLlavaForConditionalGeneration.from_pretrained(folder).eval()
    return model, GeoLlavaProcessor.from_pretrained(folder)


def test_ten_users_at_once_get_their_own_answers(guessing_pair):
    images = [noise(340, 340, seed) for seed in range(10)]
    questions = [f"What is it, number {seed}?" for seed in range(10)]
    session = Session.of(*guessing_pair)
    expected = [
        session.see(image).ask(question, max_new_tokens=8).text
        for image, question in zip(images, questions, strict=True)
    ]
    assert len(set(expected)) > 1
    found = [None] * 10

    def use(place):
        browser = running.browser()
        browser.begin()
        browser.upload(png(images[place]), f"{place}.png")
        browser.see()
        found[place] = browser.ask(questions[place])["answer"]["text"]

    with served(guessing_pair, name="guesser") as running:
        users = [threading.Thread(target=use, args=(place,)) for place in range(10)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert found == expected


def test_a_full_desk_and_a_second_request_are_told_so(default_pair):
    with served(default_pair, Limits(waiting=1)) as running:
        first, second = running.browser(), running.browser()
        for browser in (first, second):
            browser.begin()
            browser.upload(png(noise(400, 400)))
        body = {"method": "uniform", "num_keep": 4}
        running.page.desk._thread.submit(threading.Event().wait, 1)
        with first.open("POST", "/api/see", body) as stream:
            stream.readline()
            assert second.send("POST", "/api/see", body).status == 503
            assert first.send("POST", "/api/see", body).status == 409
            assert b'"seen"' in stream.read()
        assert "seen" in second.see()


def test_a_browser_that_goes_away_frees_the_model(default_pair):
    with served(default_pair) as running:
        browser = running.browser()
        browser.begin()
        browser.send("POST", "/api/scene", {"example": "drawn scene 3"})
        with browser.open("POST", "/api/see", {"method": "uniform", "num_keep": 4}) as stream:
            while b"crops" not in stream.readline():
                pass
        answer = browser.ask("What?")
        while answer == {"error": "the request before is still at work"}:
            answer = browser.ask("What?")
        assert answer == {"error": "see the scene first"}  # it was not seen to its end
        assert "seen" in browser.see(method="uniform", num_keep=4)
