"""Files that crash, hang or mislead a decoder, or want too much memory: each is one line."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geollava import imagery
from tests.geollava.conftest import noise

HOSTILE = Path(__file__).resolve().parents[4] / "shared" / "hostile"
FILES = {
    "segfault_samples_per_pixel.tif": "cannot be read: ",  # crashes with several threads alone
    "hang_ihdr_length_0.jp2": "decoder did not finish in 3 seconds",
    "damaged_geokeys.tif": "cannot be read: ",
}


@pytest.fixture(scope="session")
def hostile() -> Path:
    """The folder of hostile files beside the checkout."""
    pytest.importorskip("rasterio")
    if not HOSTILE.is_dir():
        pytest.skip(f"no hostile files at {HOSTILE}")
    return HOSTILE


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("geollava.imagery.worker.SECONDS", 3)


def read(path):
    with imagery.open_scene(path) as scene:
        imagery.resized(scene, (28, 28))


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_errors_of_one_line(name, hostile, impatient):
    with pytest.raises(ValueError, match=FILES[name]) as error:
        read(hostile / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def hostile_batch(hostile, complete_checkpoint, tmp_path, run):
    """Runs a batch over four hostile files and three good ones -> {name: row}."""
    parquet = pytest.importorskip("pyarrow.parquet")
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for name in (*FILES, "damaged_rows.parquet"):
        shutil.copy(hostile / name, scenes)
    for name in ("a.png", "j.png", "z.png"):
        noise(60, 40).save(scenes / name)
    (tmp_path / "questions.txt").write_text("What?\n")

    def hostile_batch(*options):
        command = ["batch", scenes, "--questions", tmp_path / "questions.txt", "--max-new-tokens"]
        out = scenes / "out.parquet"
        code, _, err = run(*command, 2, "--out", out, "--model", complete_checkpoint, *options)
        assert code == 0, err
        assert "7 rows in" in err
        assert "4 of them with an error" in err
        rows = parquet.read_table(out).to_pylist()
        return {Path(row["scene"]).name: row for row in rows}

    return hostile_batch


def check_hostile(rows):
    good = ["a.png", "j.png", "z.png"]
    assert sorted(rows) == sorted([*FILES, "damaged_rows.parquet", *good])
    assert [name for name, row in rows.items() if row["error"] is None] == good
    assert all(isinstance(rows[name]["answer"], str) for name in good)
    for name in set(rows) - set(good):
        assert name in rows[name]["error"]
        assert "\n" not in rows[name]["error"]
    assert "that geollava reads (.jpg, " in rows["damaged_rows.parquet"]["error"]
    assert "cannot be read: " in rows["damaged_geokeys.tif"]["error"]
    assert "cannot be read: " in rows["segfault_samples_per_pixel.tif"]["error"]
    assert "decoder did not finish in" in rows["hang_ihdr_length_0.jp2"]["error"]


def test_a_batch_goes_on_after_hostile_files(hostile_batch, impatient):
    check_hostile(hostile_batch())
    check_hostile(hostile_batch())  # its own output among them now


@pytest.mark.slow
def test_a_batch_on_ray_goes_on_after_hostile_files(hostile_batch):
    pytest.importorskip("ray")
    check_hostile(hostile_batch("--engine", "ray"))


def tiff_with(tag: int, kind: int, value: int, folder: Path) -> Path:
    """An uncompressed gray TIFF of 16 x 16 pixels with one more tag."""
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, 16), (279, 4, 256), (tag, kind, value)]
    entries = b"".join(struct.pack("<HHII", name, kind, 1, value) for name, kind, value in tags)
    path = folder / "tagged.tif"
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + 256) + bytes(range(256)) + directory)
    return path


def test_an_xmp_tag_that_is_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"tagged\.tif cannot be decoded: ") as error:
        read(tiff_with(700, 4, 7, tmp_path))
    assert "\n" not in str(error.value)
    read(tiff_with(305, 4, 7, tmp_path))


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x/" * 5000 + ".jpg"])
def test_names_that_are_too_long(name, tmp_path):
    with pytest.raises(ValueError, match="cannot be read: File name too long"):
        imagery.open_scene(tmp_path / name)


def test_a_decoder_that_dies_between_two_rows(tmp_path):
    noise(60, 40).save(tmp_path / "image.png")
    with imagery.open_scene(tmp_path / "image.png") as scene:
        scene.read_rows(0, 20, 1)
        scene._worker._process.kill()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"image\.png cannot be read: its decoder"):
                scene.read_rows(20, 40, 1)
    with imagery.open_scene(tmp_path / "image.png") as scene:  # by another
        assert scene.read_rows(0, 40, 1).shape == (40, 60, 3)


def test_a_relative_name_in_another_folder(tmp_path, monkeypatch):
    """...than the one that the decoder was started in."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        noise(60, 40).save(f"{name}.png")
        assert imagery.read_image(f"{name}.png").size == (60, 40)


def test_too_much_memory(tmp_path):
    """A decoder that asks for twice its limit."""
    Image.new("L", (64, 64)).save(tmp_path / "image.png")
    script = f"""
from geollava.common.system import limit_process
from geollava.imagery import worker
worker.MEMORY_BYTES = 1024**3
limit_process(worker.MEMORY_BYTES)
import numpy as np
class Greedy:
    def read_rows(self, top, bottom, factor):
        return np.ones(2**31, np.uint8)
server = worker.Server(-1)
server.path, server.scene = {str(tmp_path / "image.png")!r}, Greedy()
print(server.answer({{"do": "rows", "top": 0, "bottom": 1, "factor": 1}})["message"])
"""
    if sys.platform != "linux":
        pytest.skip("only Linux enforces the limit")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == f"{tmp_path / 'image.png'} needs more than 1 GiB to be decoded\n"


def test_a_scene_in_a_process_that_forks(tmp_path):
    """...whose child does not talk to its parent's decoders."""
    pixels = np.asarray(noise(60, 40))
    noise(60, 40).save(tmp_path / "image.png")
    imagery.read_image(tmp_path / "image.png")  # one decoder waits
    script = f"""
import os
from geollava import imagery
imagery.read_image({str(tmp_path / "image.png")!r})
child = os.fork()
for _ in range(20):
    imagery.read_image({str(tmp_path / "image.png")!r})
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
    assert np.array_equal(np.asarray(imagery.read_image(tmp_path / "image.png")), pixels)


# Not ru_maxrss: that of a process begins with what the process that started it had.
PEAKS = """
import sys
from pathlib import Path
from geollava import imagery
from geollava.training.validation import ImageSizes
from geollava.imagery.isolated import end_workers
def peak(process="self"):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
for path in sys.argv[2:]:
    before = peak()
    ImageSizes(decode=True).add([path], None)
    if sys.argv[1] in imagery.EXIF_MODES:
        with imagery.open_scene(path, exif=sys.argv[1]) as scene:
            imagery.resized(scene, (280, 280), "pillow")
    tasks = Path("/proc/self/task").iterdir()
    decoders = [number for task in tasks for number in (task / "children").read_text().split()]
    print(peak() - before, max(map(peak, decoders)))
    end_workers()
"""


def peak_bytes(what, *paths):
    """Of each image in turn: (of this process, beyond what it had, of the largest decoder)."""
    command = [sys.executable, "-c", PEAKS, what, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [tuple(map(int, line.split())) for line in result.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="counts peaks as Linux does")
@pytest.mark.parametrize("exif", ["stored", "applied"])
def test_one_and_a_half_times_the_decoded_image_is_the_most(exif, tmp_path):
    sideways = Image.Exif()
    sideways[274] = 6
    Image.new("RGBA", (64, 64)).save(tmp_path / "small.png")
    Image.new("RGBA", (4000, 4000)).save(tmp_path / "large.png", exif=sideways)
    paths = (tmp_path / "small.png", tmp_path / "large.png")
    (_, without), (here, there) = peak_bytes(exif, *paths)
    assert 4 * 4000 * 4000 < here + there - without < 1.5 * 4 * 4000 * 4000


@pytest.mark.skipif(sys.platform != "linux", reason="counts peaks as Linux does")
def test_a_turned_tiff_takes_no_more(tmp_path):
    pytest.importorskip("rasterio")
    for name, side in (("small.tif", 64), ("large.tif", 8000)):
        Image.new("RGB", (side, side)).save(tmp_path / name, tiffinfo={274: 6})
    paths = (tmp_path / "small.tif", tmp_path / "large.tif")
    (_, without), (here, there) = peak_bytes("applied", *paths)
    assert 3 * 8000 * 8000 < here + there - without < 1.5 * 4 * 8000 * 8000


FAULTS = """
import resource, sys
from geollava import imagery
from geollava.imagery.isolated import end_workers
with imagery.open_scene(sys.argv[1]) as scene:
    imagery.resized(scene, (280, 280), "pillow")
end_workers()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_rows_take_memory_that_was_theirs_before(tmp_path):
    """...else the page faults of a decoder take longer than the copies it makes."""
    faults = []
    for side in (64, 4000):
        Image.new("RGBA", (side, side)).save(tmp_path / "image.png")
        command = [sys.executable, "-c", FAULTS, str(tmp_path / "image.png")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        faults.append(int(result.stdout))
    assert faults[1] - faults[0] < 1.5 * 4 * 4000 * 4000 / resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="counts peaks as Linux does")
def test_a_sparse_raster_is_checked_in_little_memory(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "sparse.tif"
    options = {"driver": "GTiff", "tiled": True, "sparse_ok": True, "interleave": "pixel"}
    with rasterio.open(path, "w", width=300_000, height=2000, count=3, dtype="uint8", **options):
        pass
    assert os.stat(path).st_size < 500_000
    ((here, there),) = peak_bytes("check", path)
    assert here + there < 500 * 2**20
