"""macOS and Windows, as far as Linux can show them.

`other_system/sitecustomize.py` shows this project's modules another system: what Python documents
as missing there is missing. It cannot show that what is there behaves as documented, nor anything
of PyTorch's and the other packages' releases for that system: nothing here was run on either.
"""

from __future__ import annotations

import json

import pytest

from geollava.common.system import ENDED_BY_CLOCK
from tests.geollava.conftest import noise
from tests.tools.processes import COMMANDS, python

SYSTEMS = ["darwin", "win32"]
# lmms-eval and vLLM have environments of their own; kernels need Triton, which is for Linux alone.
IMPORTS = """
import importlib, pkgutil
for package in map(importlib.import_module, ("tokenprune", "geollava")):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        in_vllm = ".serving." in found.name and found.name.endswith((".model", ".processing"))
        if not in_vllm and not found.name.endswith((".kernel", ".lmms_model", ".__main__")):
            importlib.import_module(found.name)
"""


def run(system, *arguments, **options):
    """Fails unless the process ends well. Windows takes another encoding for pipes."""
    encoding = {"PYTHONIOENCODING": "cp1252"} if system == "win32" else {}
    more = {"OTHER_SYSTEM": system, "PYTHONWARNDEFAULTENCODING": "1", **encoding}
    done = python("other_system", *arguments, **more, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_module_is_imported(system, tmp_path):
    run(system, "-c", IMPORTS, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_commands(system, tmp_path):
    (tmp_path / "images").mkdir()
    noise(60, 40).save(tmp_path / "images" / "a.png")
    (tmp_path / "q.txt").write_text("Où?\n", encoding="utf-8")
    batch = ["batch", "images", "--questions", "q.txt", "--out", "answers.parquet"]
    drawn = ["scenes", "drawn", "--size", "512", "--ground", "procedural"]
    scored = ["evaluate", "scenes-open", "--data", "drawn/test.json", "--out", "scored"]
    commands = [
        ["ask", "images/a.png", "Où? 船", "--json", "--overlay", "a.png"],
        batch,
        batch,  # over its own output
        [*drawn, "--count", "1"],
        [*scored, "--limit", "1"],
    ]
    printed = run(system, "-c", COMMANDS, folder=tmp_path, given=json.dumps(commands))
    answer = json.loads(printed)
    assert (answer["question"], answer["image_size"]) == ("Où? 船", [60, 40])
    assert answer["peak_memory_mib"] >= 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"images", "q.txt", "a.png", "answers.parquet", "drawn", "scored"}


HANG = """
import ctypes
from geollava.common.system import ENDED_BY_CLOCK, end_after
print(ENDED_BY_CLOCK, flush=True)
end_after(100)
end_after(0)
end_after(1)
ctypes.PyDLL(None).sleep(30)  # C code, which keeps the interpreter to itself
"""


@pytest.mark.parametrize("system", [*SYSTEMS, None])
def test_a_clock_ends_a_decoder_in_any_code(system, tmp_path):
    environment = {"OTHER_SYSTEM": system} if system else {}
    site = "other_system" if system else None
    done = python(site, "-c", HANG, folder=tmp_path, **environment)
    assert done.returncode == int(done.stdout) == (1 if system == "win32" else ENDED_BY_CLOCK)


TWO_RUNS = """
from pathlib import Path
from geollava.answering.finished import Finished
out = Path("a.parquet")
with Finished(out, "").locked():
    try:
        with Finished(out, "").locked():
            raise AssertionError("two runs")
    except ValueError as error:
        assert "one run at a time" in str(error), error
with Finished(out, "").locked():
    pass
assert not list(Path().iterdir())
"""


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_run_at_a_time_writes_a_batch(system, tmp_path):
    run(system, "-c", TWO_RUNS, folder=tmp_path)
