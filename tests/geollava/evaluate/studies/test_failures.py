"""The page of failures: the surest wrong replies, escaped, with pictures inside."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

RED = (255, 45, 85)


class Page(HTMLParser):
    """Tags with their attributes, and the text without them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_page(run, questions, guessing_checkpoint, tmp_path):
    rows = json.loads(questions.read_text())[:16]
    for row in rows:
        row["image"] = [str(questions.parent / row["image"][0])]
        row["multi-choice options"][0] += "<img src=x onerror=alert(1)>"
        row["question"] = f"<script>{row['index']}</script> {row['question']} in [10, 20, 200, 220]"
        row["index"] = f"<b>{row['index']}</b>"
    (tmp_path / "d.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    assert run("evaluate", "failures", out)[0] == 2
    options = ("--model", guessing_checkpoint, "--max-new-tokens", 1, "--out", out)
    assert run("evaluate", "xlrs", "--data", tmp_path / "d.json", *options)[0] == 0
    code, _, err = run("evaluate", "failures", out, "--count", 5)
    assert code == 0, err

    text = (out / "failures.html").read_text()
    page = Page(text)
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert "onerror=alert(1)" in page.text
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    wrong = [line for line in lines if not line["credit"]]
    assert len(wrong) > 5
    assert f"{len(wrong)} of 16 replies are not right" in page.text
    surest = sorted(wrong, key=lambda line: -line["confidence"])[:5]
    shown = [int(number) for number in re.findall(r"<script>(\d+)</script>", page.text)]
    assert [lines[row]["confidence"] for row in shown] == [line["confidence"] for line in surest]
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 2 * 5  # the whole, and what the box holds
    assert not re.search(r"https?://|url\(", text)
    for source in sources:
        head, _, body = source.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))), float)
        assert picture.shape[1] <= 760
        assert (np.abs(picture - RED).sum(2) < 120).sum() > 200  # the box is drawn

    rows[0]["answer"] = "Z"
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert "had other rows" in run("evaluate", "failures", out)[2]
