"""What a killed process leaves goes at the next run; what a living one writes stays."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from geollava.common.outputs import folder_written_whole, write_json, write_text, written_whole

WRITER = """
import sys, time
from pathlib import Path
from geollava.common import outputs
with getattr(outputs, sys.argv[1])(Path(sys.argv[2])) as partial:
    print(partial, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("function", [written_whole, folder_written_whole])
def test_leftovers_of_a_killed_process(function, tmp_path):
    target = tmp_path / "a.txt"
    arguments = [sys.executable, "-c", WRITER, function.__name__, str(target)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip().rpartition("/")[2]

    def write():
        with function(target) as partial:
            (partial / "x" if partial.is_dir() else partial).write_text("whole")

    write()
    assert {path.name for path in tmp_path.iterdir()} == {name, "a.txt"}
    process.send_signal(signal.SIGKILL)
    process.wait()
    if target.is_dir():
        (target / "x").unlink()
    (tmp_path / ".a.txt").touch()
    write()
    assert {path.name for path in tmp_path.iterdir()} == {".a.txt", "a.txt"}


def test_a_folder_that_holds_something_stays(tmp_path):
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="must be new or empty"), folder_written_whole(taken):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_texts_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "é\n")
    write_json(tmp_path / "a.json", {"é": [1]})
    write_json(tmp_path / "b.json", {"é": [1]}, indent=None)
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    assert (tmp_path / "a.json").read_bytes() == '{\n "é": [\n  1\n ]\n}\n'.encode()
    assert (tmp_path / "b.json").read_bytes() == '{"é": [1]}\n'.encode()


@pytest.mark.parametrize("function", [written_whole, folder_written_whole])
def test_an_error_leaves_nothing(function, tmp_path):
    with pytest.raises(ZeroDivisionError), function(tmp_path / "a.txt"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
