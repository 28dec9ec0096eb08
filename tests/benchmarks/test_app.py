"""The benchmark of the web page, on a scene so small that only its row matters."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import app, results


@pytest.mark.slow
def test_the_row(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(app, "in_new_process", lambda call, *rest: call(*rest))
    monkeypatch.setattr(sys, "argv", ["script", "--side", "600", "--users", "2"])
    app.main()
    (path,) = tmp_path.glob("*/*.jsonl")
    (row,) = results.read(path)
    assert (row["impl"], row["shape"]) == ("2 users, 2 asking", [600, 600])
    assert row["memory_mib"] > 200  # torch alone takes that
    assert min(row[name] for name in row if name.startswith(("first_view", "tile_p95"))) > 0


def test_memory_is_that_of_a_process_and_its_children():
    hold = "import sys; held = bytearray(b'x' * 2**26); print(flush=True); sys.stdin.read()"
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {hold!r}], stdin=-1, stdout=-1)
child.stdout.readline()
print(flush=True)
sys.stdin.read()
child.communicate()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        process.stdout.readline()
        assert 64 < app.memory_mib(process.pid) < 200
        process.stdin.close()
