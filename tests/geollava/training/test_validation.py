"""Training data: what is wrong with it is said, and nothing is put in its place."""

from __future__ import annotations

import json

import pytest

from geollava.model.processing import GeoLlavaImageProcessor
from geollava.training.rows import TrainingRow, Turn
from geollava.training.validation import KINDS, check_files, load_checked
from tests.geollava.conftest import noise

CHOICES = "How many ships?\n(A) none\n(B) three\n(C) nine"


def row(name="0", image=("a.png",), question="<image>\nWhat is here?", answer="A harbor.", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": list(image), "conversations": turns} | more


@pytest.fixture
def write(tmp_path):
    """Writes rows and two good images -> the data file."""
    noise(120, 80).save(tmp_path / "a.png")
    noise(60, 90).save(tmp_path / "b.jpg")

    def write(*rows):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(rows))
        return path

    return write


GOOD = [
    row("1"),
    row("2", ["a.png", "b.jpg"], "<image>\n<image>\nCompare."),
    row("3", [], "What is a harbor?"),
    row("4", question="<image>\nWhat is in [10, 20, 120, 80]?"),
    row("5", question="<image>\nAnd in (0.5, 3), (9, 10)?"),
    row("6", ["a.png", "b.jpg"], "<image><image>\nWhat is in [[10, 20, 50, 90]]?"),  # of the second
    *(
        row(f"7{answer}", question=f"<image>\n{CHOICES}", answer=answer)
        for answer in ("A", "(B)", "B.", "(C) nine", "nine", "A, C", "AC", "A B")
    ),
    {"id": 8, "image": "a.png", "conversations": row()["conversations"]},  # one path, a number
]

BAD = {
    "cut": (row("cut", ["cut.png"]), "image", "cannot be decoded"),
    "lost": (row("lost", ["lost.png"]), "image", "does not exist"),
    "text": (row("text", ["data.json"]), "image", "must be an image"),
    "no mark": (row("x", question="What is here?"), "marks", "got 0 for 1 images"),
    "two marks": (row("x", question="<image><image> What?"), "marks", "got 2 for 1 images"),
    "mark in answer": (row("x", answer="<image>"), "marks", "an answer must not hold"),
    "thousandths": (
        row("x", question="<image>\nWhat is in [100, 200, 900, 950]?"),
        "box",
        "[100, 200, 900, 950] lies outside the image of 120 x 80 pixels; it would fit as "
        "thousandths of the sides",
    ),
    "swapped": (row("x", answer="In (10, 90), (70, 110)."), "box", "pixels as y1, x1, y2, x2"),
    "width and height": (row("x", answer="[90, 50, 30, 20]"), "box", "x, y, width, height"),
    "nowhere": (row("x", answer="[-5, 2, 90000, 3]"), "box", "it fits no system"),
    "letter": (row("x", question=f"<image>\n{CHOICES}", answer="D"), "answer", "options A, B, C"),
    "words": (row("x", question=f"<image>\n{CHOICES}", answer="many"), "answer", "'many'"),
    "no object": ("words", "form", "must be an object, got str"),
    "no id": ({"image": []}, "form", "id must be"),
    "no turns": ({"id": "x", "image": []}, "form", "conversations must be a list"),
    "odd turn": (
        {"id": "x", "conversations": [{"from": "human", "value": "Hi"}]},
        "form",
        "must end with an answer",
    ),
    "order": (
        {"id": "x", "conversations": row()["conversations"][::-1]},
        "form",
        "conversations[0].from must be human, got 'gpt'",
    ),
    "empty": (row("x", answer=" "), "form", "conversations[1].value must say something"),
    "number as path": (row("x", [3]), "form", "image must be a list of paths, got [3]"),
}


def test_good_data(run, write):
    code, out, err = run("validate", write(*GOOD), "--json")
    assert (code, err) == (0, ""), out
    assert json.loads(out) == {
        "rows": len(GOOD),
        "bad_rows": 0,
        "counts": dict.fromkeys(KINDS, 0),
        "problems": [],
    }
    assert "problems: none" in run("validate", write(*GOOD))[1]


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(run, write, case, tmp_path):
    bad, kind, message = BAD[case]
    path = write(*GOOD, bad)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-5000])
    code, out, _ = run("validate", path, "--json")
    assert code == 2
    (problem,) = json.loads(out)["problems"]
    assert (problem["kind"], problem["row"], problem["file"]) == (kind, len(GOOD), str(path))
    assert message in problem["message"]


def test_duplicates_and_the_table(run, write):
    code, out, _ = run("validate", write(row("same"), row("other"), row("same")))
    assert code == 2
    assert "3 rows, problems: 1 duplicate id" in out
    assert "row 0 of" in " ".join(out.split())


def test_names_of_two_lines_stay_one_line_of_the_table(run, write):
    path = write(row("a\nb", ["no\r\nwhere\u2028.png"]))
    code, out, _ = run("validate", path)
    assert code == 2
    header, line, counts = out.split("\n")[:3]
    assert (header.split()[0], counts) == ("file", "1 rows, problems: 1 image")
    assert r"a\nb" in line
    assert r"no\r\nwhere\u2028.png does not exist" in line
    (problem,) = check_files([path], select_canvas=lambda *size: size)[0].problems
    assert len(str(problem).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "line 1 column 3"),
        ("{}", "must hold a JSON list of rows, got dict"),
        ("[]", "got an empty list"),
        ("\xff", "readable JSON"),
    ],
)
def test_files_that_are_no_data(run, tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content.encode("latin-1"))
    code, out, err = run("validate", path)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def load(path, **options):
    canvas = GeoLlavaImageProcessor().select_canvas
    options = {"on_bad_rows": "refuse", "decode": True} | options
    return load_checked([path], None, select_canvas=canvas, **options)


def test_rows_come_as_they_are(write, tmp_path):
    path = write(*GOOD)
    _, checked = load(path)
    assert [row.id for row, _ in checked][:3] == ["1", "2", "3"]
    assert [row.number for row, _ in checked] == list(range(len(GOOD)))
    assert checked[0].row == TrainingRow(
        file=str(path),
        number=0,
        id="1",
        images=(str(tmp_path / "a.png"),),
        turns=(Turn("<image>\nWhat is here?", "A harbor."),),
    )
    assert checked[1].row.images == (str(tmp_path / "a.png"), str(tmp_path / "b.jpg"))
    assert checked[1].sizes == ((120, 80), (60, 90))
    with pytest.raises(AttributeError):
        checked[0].row.id = "2"


def test_a_file_is_parsed_once(write, monkeypatch):
    path, parsed, parse = write(*GOOD), [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or parse(text))
    assert len(load(path)[1]) == len(GOOD)
    assert parsed.count(path.read_text()) == 1  # other texts are the image decoders'


def test_bad_rows_are_refused_or_left_out_never_replaced(write):
    path = write(row("1"), row("2", ["lost.png"]), row("3"), row("3"))
    with pytest.raises(ValueError, match=r"row 1 \(id 2\): .*lost.png does not exist .and 1 more"):
        load(path)
    report, checked = load(path, on_bad_rows="skip")
    assert [row.id for row, _ in checked] == ["1", "3"]
    assert len(report.problems) == 2
    with pytest.raises(ValueError, match="every row of the data is bad"):
        load(write(row("2", ["lost.png"])), on_bad_rows="skip")


def test_a_changed_file_is_read_again(write):
    assert load(write(row("1")))[1][0].row.id == "1"
    assert load(write(row("2")))[1][0].row.id == "2"
