"""The web page under load: the first view of a large scene, its tiles, and the memory of ten users.

    python benchmarks/app.py                       # 8,192 px, ten users
    python benchmarks/app.py --side 2048 --users 2 # to try it

`geollava app` runs as it is shipped; the users are threads that ask it as a browser does. Memory is
that of the server with its decoders, pages that they share counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image

from benchmarks import results
from benchmarks.imagery import make_scene
from benchmarks.measure import in_new_process

STAGE = (820, 450)  # pixels of the screen in which a scene is shown first
TILES = 300  # that one user asks for
QUESTION = "What kind of vehicle is purple?"


class User:
    """A browser, as far as the server sees it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.headers = {"Origin": f"http://127.0.0.1:{port}"}
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/")
        cookie = connection.getresponse().headers["set-cookie"]
        self.headers["Cookie"] = cookie.split(";")[0]
        self.headers["X-GeoLLaVA-Token"] = json.loads(self.send("GET", "/api/state"))["token"]

    def send(self, method: str, path: str, body: Any = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        if reply.status != 200 or b'{"error":' in content:
            raise SystemExit(f"{method} {path}: {reply.status} {content!r}")
        return content

    def open(self, name: str) -> float:
        """Seconds until the first view of a scene can be drawn."""
        start = time.perf_counter()
        self.scene = json.loads(self.send("POST", "/api/scene", {"file": name}))
        shown = min(STAGE[axis] / self.scene["size"][axis] for axis in (0, 1))
        level = 0
        while shown * 2 ** (level + 1) <= 1 and level < self.scene["levels"] - 1:
            level += 1
        places = [(level, col, row) for col, row in self.tiles_of(level)]
        with ThreadPoolExecutor(6) as pool:  # as many as the page asks for at once
            list(pool.map(self.tile, places))
        return time.perf_counter() - start

    def tiles_of(self, level: int) -> list[tuple[int, int]]:
        step = self.scene["tile"] * 2**level
        cols, rows = (-(-side // step) for side in self.scene["size"])
        return [(col, row) for row in range(rows) for col in range(cols)]

    def tile(self, place: tuple[int, int, int]) -> float:
        """Seconds that a tile takes."""
        start = time.perf_counter()
        self.send("GET", f"/tiles/{self.scene['key']}/{'/'.join(map(str, place))}.jpg")
        return time.perf_counter() - start

    def wander(self, seed: int, count: int) -> list[float]:
        """Seconds of tiles of all levels, as somebody who looks around asks for them."""
        chosen = random.Random(seed)
        taken = []
        for _ in range(count):
            level = chosen.randrange(self.scene["levels"])
            taken.append(self.tile((level, *chosen.choice(self.tiles_of(level)))))
        return taken

    def ask(self) -> None:
        self.send("POST", "/api/see", {"method": "background_anchored", "num_keep": 24})
        self.send("POST", "/api/ask", {"question": QUESTION})


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, int]]:
    """(process, port) of a server of the folder's scenes."""
    command = [sys.executable, "-m", "geollava", "app", "--port", "0", "--folder", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = re.search(r":(\d+) ", process.stderr.readline())
        assert port is not None
        yield process.pid, int(port[1])
    finally:
        process.terminate()
        process.communicate()


def memory_mib(process: int) -> float:
    """Of a process and all that it started; what they share is counted once."""
    total, waiting = 0, [str(process)]
    while waiting:
        folder = Path("/proc", waiting.pop())
        try:
            shares = re.search(r"^Pss: +(\d+)", (folder / "smaps_rollup").read_text(), re.M)
            total += int(shares[1]) if shares else 0
            for task in (folder / "task").iterdir():
                waiting += (task / "children").read_text().split()
        except OSError:  # it has ended
            continue
    return total / 1024


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def measure(folder: Path, users: int, asking: int) -> dict[str, Any]:
    """Everything, of scenes `jpeg.jpg` and `tiff.tif` of a folder."""
    found: dict[str, Any] = {}

    def note(name: str, value: float) -> None:
        found[name] = value
        print(f"{name}: {value}", flush=True)

    note("load_before", round(os.getloadavg()[0], 1))  # what else the machine does
    with serving(folder) as (process, port):
        peak, done = [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.5):
                peak[0] = max(peak[0], memory_mib(process))

        first = User(port)
        for name in ("jpeg.jpg", "tiff.tif"):
            opened = [first.open(name) for _ in range(3)]
            note(f"first_view_seconds_{name[:4]}", round(statistics.median(opened), 2))
            alone = first.wander(0, TILES)
            note(f"tile_p95_ms_{name[:4]}", round(1e3 * p95(alone), 1))
        watching = threading.Thread(target=watch)
        watching.start()
        everyone = [first, *(User(port) for _ in range(users - 1))]
        with ThreadPoolExecutor(users) as pool:
            list(pool.map(lambda user: user.open("jpeg.jpg"), everyone))
            taken = list(pool.map(lambda user: user.wander(id(user), 30), everyone))
            together = [seconds for each in taken for seconds in each]
            note("tile_p95_ms_together", round(1e3 * p95(together), 1))
            list(pool.map(User.ask, everyone[:asking]))
        done.set()
        watching.join()
        note("memory_mib", round(peak[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=8192, help="of the scenes, in pixels")
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--asking", type=int, default=10, help="of them, who ask too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_new_process(make_scene, folder / "jpeg.jpg", options.side)
        in_new_process(make_tiff, folder)
        found = measure(folder, options.users, options.asking)
    device = results.device_name("cpu", torch.get_num_threads())
    row = {
        "op": "web page",
        "impl": f"{options.users} users, {min(options.users, options.asking)} asking",
        "shape": [options.side, options.side],
        "dtype": "auto",
        "device": device,
        "torch": torch.__version__,
        "triton": None,
        **found,
    }
    results.upsert([row], device, results.FOLDER / "app")


def make_tiff(folder: Path) -> None:
    """`jpeg.jpg` of the folder as a tiled TIFF, deflated, which GDAL reads."""
    import numpy as np
    import rasterio

    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(folder / "jpeg.jpg")).transpose(2, 0, 1)
    _, height, width = pixels.shape
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.3, 0, 5e5, 0, -0.3, 5e6)}
    size = {"width": width, "height": height, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / "tiff.tif", "w", driver="GTiff", **size, **tiles, **place) as file:
        file.write(pixels)


if __name__ == "__main__":
    main()
