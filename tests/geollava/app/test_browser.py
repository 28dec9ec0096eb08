"""The page in headless Chromium: what a person does, with a mouse, by keyboard, on a small screen.

`make test-browser` runs these. Their screenshots lie in `browser-shots/`, to be looked at.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.geollava.app.conftest import served
from tests.geollava.conftest import noise

sync_api = pytest.importorskip("playwright.sync_api")
axe_core = pytest.importorskip("axe_playwright_python")
expect = sync_api.expect

SHOTS = Path(__file__).resolve().parents[3] / "browser-shots"
AXE = (Path(axe_core.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WIDTHS = (1280, 375)
PATIENCE = 120_000  # milliseconds: machines may be slow, and nothing is timed here
QUESTION = "What kind of vehicle is purple?"


@pytest.fixture(scope="module")
def chromium():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.fail("these tests need Chromium: install it, or name it in CHROMIUM")
    SHOTS.mkdir(exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        # As root there is no sandbox; the page is our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request, chromium, server):
    """The page at a width, just loaded; it must say nothing in the console, and load nothing from
    elsewhere."""
    yield from opened(chromium, server, request.param)


@pytest.fixture
def wide(chromium, server):
    yield from opened(chromium, server, WIDTHS[0])


def opened(chromium, server, width):
    said, asked = [], []
    page = chromium.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda one: asked.append(one.url))
    page.goto(f"http://127.0.0.1:{server.port}")
    status(page, "Choose an image, or open an example.")
    yield page
    page.context.close()
    # What the server refuses, the page says itself.
    assert [line for line in said if "Failed to load resource" not in line] == []
    assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{server.port}"}


def status(page, text):
    expect(page.locator("#status")).to_have_text(text)


def open_example(page, name="drawn scene 1"):
    page.select_option("#listed", f"example:{name}")
    page.click("#take")
    status(page, re.compile(f"^{name}: .* pixels$"))


def see(page):
    page.click("#reduce button")
    status(page, "This is what stays.")


def ask(page, question=QUESTION):
    page.fill("#question", question)
    page.click("#ask button")
    status(page, "Answered.")


def picture(page, side="a"):
    """What a stage shows as PNG, when all its tiles are there and nothing moves any more."""
    stage, before = f'.view[data-side="{side}"] .stage', ""
    while True:
        page.wait_for_selector(f'{stage}[aria-busy="false"]')
        now = page.locator(f"{stage} canvas").evaluate("one => one.toDataURL()")
        if now == before:
            return base64.b64decode(now.partition(",")[2])
        before = now
        page.wait_for_timeout(300)


def shot(page, name):
    width = page.viewport_size["width"]
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=SHOTS / f"{name}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def documented(page):
    """The picture of the documentation, `docs/app.png`: cars on farmland, under two methods."""
    page.uncheck('#layers [value="crops"]')
    stage = page.locator('.view[data-side="a"] .stage')
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.1})
    page.mouse.wheel(0, -400)
    page.evaluate("window.scrollTo(0, 0)")
    picture(page)
    path = SHOTS / f"picture-{page.viewport_size['width']}.png"
    page.screenshot(path=path)
    with Image.open(path) as whole:
        small = whole.convert("RGB").quantize(256)  # a quarter of the bytes
    small.save(path, optimize=True)


def check_accessible(page):
    """axe finds nothing of level A or AA."""
    page.evaluate(AXE)
    rules = {"runOnly": {"type": "tag", "values": LEVELS}}
    found = page.evaluate("rules => axe.run(document, rules)", rules)
    assert len(found["passes"]) > 15
    faults = {one["id"]: [node["html"] for node in one["nodes"]] for one in found["violations"]}
    assert faults == {}, json.dumps(faults, indent=1)


def test_upload_see_ask_and_another_budget(page, tmp_path):
    noise(1000, 700).save(tmp_path / "land.png")
    page.set_input_files("#file", tmp_path / "land.png")
    status(page, "land.png: 1,000 × 700 pixels")
    plain = picture(page)
    see(page)
    kept = picture(page)
    assert kept != plain
    rows = page.locator('fieldset[data-side="a"] dl')
    expect(rows).to_contain_text("(24 times fewer)")
    expect(rows).to_contain_text("encode")
    page.fill('fieldset[data-side="a"] [name="num_keep"]', "4")
    see(page)
    expect(rows).to_contain_text("(144 times fewer)")
    assert picture(page) != kept
    ask(page)
    expect(page.locator(".turn .asked")).to_have_text(QUESTION)
    expect(page.locator(".turn .reply")).not_to_be_empty()
    expect(page.locator(".turn .took")).to_contain_text("prefill")
    shot(page, "upload")


def test_an_example_compared_and_downloaded(page, tmp_path):
    shot(page, "begin")
    check_accessible(page)
    expect(page.locator("#notes")).to_contain_text("demonstration model")
    open_example(page)
    page.locator("#known button").nth(2).click()
    page.click("#ask button")  # what is not seen yet is seen first
    status(page, "Answered.")
    expect(page.locator(".turn .asked")).to_have_text(QUESTION)
    shot(page, "asked")
    page.check("#compare")
    page.select_option('fieldset[data-side="b"] [name="method"]', "divprune")
    see(page)
    assert picture(page, "a") != picture(page, "b")
    expect(page.locator("figcaption").nth(1)).to_have_text("B: divprune, 24 per crop")
    ask(page, "Something burns in this image. On which land use?")
    expect(page.locator(".turn").last.locator(".reply")).to_have_count(2)
    page.check('#layers [value="crops"]')
    shot(page, "compare")
    documented(page)
    check_accessible(page)
    for name, begin in (("overlay.png", b"\x89PNG"), ("tokens.geojson", b'{"type": "Fea')):
        with page.expect_download() as download:
            page.locator(f'fieldset[data-side="b"] a[data-file="{name}"]').click()
        assert download.value.suggested_filename == f"b-{name}"
        download.value.save_as(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_layers_and_zoom_change_the_picture(wide):
    open_example(wide)
    see(wide)
    shown = [picture(wide)]
    for name in ("merged", "crops", "kept"):
        wide.locator(f'#layers [value="{name}"]').click()
        shown.append(picture(wide))
    wide.click('[data-zoom="in"]')
    wide.click('[data-zoom="in"]')
    shown.append(picture(wide))
    stage = wide.locator('.view[data-side="a"] .stage')
    stage.hover()
    wide.mouse.wheel(0, -600)
    shown.append(picture(wide))
    shot(wide, "near")
    wide.mouse.down()
    wide.mouse.move(400, 400)
    wide.mouse.up()
    shown.append(picture(wide))
    assert len(set(shown)) == len(shown)
    wide.click('[data-zoom="fit"]')
    assert picture(wide) == shown[3]


def test_all_by_keyboard(wide):
    press = wide.keyboard.press

    def tab_to(selector):
        for _ in range(60):
            press("Tab")
            if wide.evaluate("one => document.activeElement.matches(one)", selector):
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#file")
    tab_to("#listed")
    tab_to("#take")
    press("Enter")
    status(wide, re.compile("^drawn scene 1: "))
    tab_to('.view[data-side="a"] .stage')
    plain = picture(wide)
    for key in ("+", "+", "ArrowRight"):
        press(key)
    assert picture(wide) != plain
    press("0")
    assert picture(wide) == plain
    tab_to('#layers [value="merged"]')
    press("Space")
    tab_to('[name="slider"]')
    press("ArrowLeft")
    expect(wide.locator('fieldset[data-side="a"] [name="num_keep"]')).to_have_value("23")
    tab_to("#reduce button")
    press("Enter")
    status(wide, "This is what stays.")
    tab_to("#question")
    wide.keyboard.type(QUESTION)
    press("Enter")
    status(wide, "Answered.")
    tab_to("#known button")
    press("Enter")
    expect(wide.locator("#question")).to_be_focused()


def test_what_goes_wrong_is_said_and_the_scene_stays(page, tmp_path):
    open_example(page)
    (tmp_path / "notes.png").write_text("not an image")
    page.set_input_files("#file", tmp_path / "notes.png")
    error = page.locator("#error")
    expect(error).to_contain_text("notes.png must be an image")
    page.fill('fieldset[data-side="a"] [name="num_keep"]', "5")
    see(page)
    expect(error).to_be_empty()
    page.select_option('fieldset[data-side="a"] [name="method"]', "none")
    ask(page)
    page.set_input_files("#file", tmp_path / "notes.png")
    expect(error).not_to_be_empty()
    shot(page, "error")
    check_accessible(page)
    page.reload()
    status(page, "drawn scene 1 is open.")
    page.click("#close")
    expect(page.locator("#status")).to_contain_text("its files removed")
    expect(page.locator("#close")).to_be_hidden()


def test_a_scene_is_drawn_where_it_lies(wide, tmp_path):
    """Quarters of four colors, seen whole and from near, have them in their places."""
    image = Image.new("RGB", (2000, 2000))
    colors = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 220, 40)]
    for place, color in enumerate(colors):
        left, top = place % 2 * 1000, place // 2 * 1000
        image.paste(color, (left, top, left + 1000, top + 1000))
    image.save(tmp_path / "four.png")
    wide.set_input_files("#file", tmp_path / "four.png")
    status(wide, "four.png: 2,000 × 2,000 pixels")
    for _ in range(2):
        (tmp_path / "shown.png").write_bytes(picture(wide))
        with Image.open(tmp_path / "shown.png") as shown:
            middle = shown.width // 2, shown.height // 2
            for place, color in enumerate(colors):
                across, down = (-40, 40)[place % 2], (-40, 40)[place // 2]
                found = shown.convert("RGB").getpixel((middle[0] + across, middle[1] + down))
                assert max(abs(a - b) for a, b in zip(found, color, strict=True)) < 12
        for _ in range(3):
            wide.click('[data-zoom="in"]')


def test_a_password_is_asked(chromium, default_pair):
    with served(default_pair, password="open sesame") as running:
        page = chromium.new_page(viewport={"width": 375, "height": 800})
        page.goto(f"http://127.0.0.1:{running.port}")
        check_accessible(page)
        page.fill("#password", "guess")
        page.keyboard.press("Enter")
        expect(page.locator("#error")).to_have_text("this is not the password")
        shot(page, "password")
        page.fill("#password", "open sesame")
        page.keyboard.press("Enter")
        status(page, "Choose an image, or open an example.")
        page.context.close()
