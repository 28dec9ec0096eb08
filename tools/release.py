"""Builds source distribution and wheel, checks both, and installs the wheel where it must run.

The wheel is built from the source distribution, not from the checkout. It is installed into two
clean environments, with PyTorch alone and with the extra hf, where nothing may warn. Only then do
both files appear in the output folder. Exit code 1 where something does not hold.

    python tools/release.py --out dist

Needs build and twine (extra dev).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from install import ROOT, install, scripts_of

NAME = "tokenprune_vlm"
PACKAGES = ("tokenprune/", "geollava/")
IN_SOURCE = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")
TROUBLE = re.compile(r"warn|deprecat|traceback|\berror\b", re.IGNORECASE)
REDUCE = """
import tokenprune  # before torch, which warns where NumPy is missing
import torch
features = torch.randn(2, 64, 32)
tokens = tokenprune.VisionTokens(features, grid_size=(8, 8))
assert tokenprune.get_method("divprune").reduce(tokens, 16).features.shape == (2, 16, 32)
assert tokenprune.ops.max_min_select(features, 16).features.shape == (2, 16, 32)
"""
IMPORTS = """
import sys, tokenprune
assert "site-packages" in tokenprune.__file__, tokenprune.__file__
assert "transformers" not in sys.modules
import geollava
assert "transformers" not in sys.modules
"""


class ReleaseError(Exception):
    """What does not hold, in words."""


# -- what is built ---------------------------------------------------------------------------------


def checkout_files() -> list[str]:
    """What belongs to the project: what git has, and what it would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def build(files: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """(source distribution, wheel), built of a copy: leftovers of other builds stay out of it."""
    for name in files:
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    out = folder / "dist"
    run([sys.executable, "-m", "build", "--outdir", out, folder / "source"], may_say=True)
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def contents(distribution: Path) -> list[str]:
    """Names of files; in a source distribution below its one folder."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as archive:
            return sorted(name for name in archive.namelist() if not name.endswith("/"))
    with tarfile.open(distribution) as archive:
        return sorted(m.name.partition("/")[2] for m in archive.getmembers() if m.isfile())


def check_contents(kind: str, found: Sequence[str], files: Sequence[str], version: str) -> None:
    """Every file of the two packages, what describes them, and nothing else.

    Args:
        kind: "wheel" or "sdist".
        files: what the checkout has.
    """
    expected = {name for name in files if name.startswith(PACKAGES)}
    if kind == "wheel":
        info = f"{NAME}-{version}.dist-info/"
        expected.add(f"{info}licenses/LICENSE")
    else:
        info = f"{NAME}.egg-info/"
        expected.update(IN_SOURCE)
    missing = sorted(expected - set(found))
    more = [name for name in found if name not in expected and not name.startswith(info)]
    more = [name for name in more if kind == "wheel" or name not in ("MANIFEST.in", "setup.cfg")]
    if missing or more:
        lists = {"lacks": missing, "has beside what it should": more}
        raise ReleaseError(
            "\n".join(
                f"the {kind} {what}: {', '.join(names)}" for what, names in lists.items() if names
            )
        )


def version_of_checkout() -> str:
    """The version; a tag of this commit, the changelog and the citation must name the same."""
    found = re.search(r'__version__ = "([^"]+)"', read("tokenprune/version.py"))
    if found is None:
        raise ReleaseError("tokenprune/version.py must hold __version__")
    version = found.group(1)
    check_version(version, read("CHANGELOG.md"), read("CITATION.cff"), tags_here())
    return version


def check_version(version: str, changelog: str, citation: str, tags: Sequence[str]) -> None:
    dated = re.search(
        rf"^## {re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)$", changelog, re.MULTILINE
    )
    if dated is None:
        raise ReleaseError(f"CHANGELOG.md must have a section '## {version} (YYYY-MM-DD)'")
    for line in (f"version: {version}", f"date-released: {dated.group(1)}"):
        if line not in citation.replace('"', "").replace("'", "").splitlines():
            raise ReleaseError(f"CITATION.cff must say '{line}', as CHANGELOG.md does")
    if wrong := [tag for tag in tags if tag != f"v{version}"]:
        raise ReleaseError(f"the tag here is {', '.join(wrong)}, the version is {version}")


def tags_here() -> list[str]:
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- where it must run -----------------------------------------------------------------------------


def run(command: Sequence[str | Path], *, folder: Path | None = None, may_say: bool = False) -> str:
    """What a command printed. Every warning of Python is an error in it, and no hub is asked.

    Args:
        may_say: the standard error may hold text that is no warning; else it must be empty.

    Raises:
        ReleaseError: another exit code than 0, or a standard error that is not as it should be.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if folder is not None:
        env["PYTHONWARNINGS"] = "error"
    words = list(map(str, command))
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    shown = f"$ {' '.join(words)}\n{done.stdout}{done.stderr}"
    if done.returncode != 0:
        raise ReleaseError(f"{shown}exit code {done.returncode}")
    if TROUBLE.search(done.stderr) or (done.stderr and not may_say):
        raise ReleaseError(f"{shown}the standard error must hold no warning")
    return done.stdout


def environment(folder: Path, wheel: Path, extra: str) -> Path:
    """The folder of the commands of a clean environment that has the wheel."""
    if not install(folder, f"{wheel}{extra}"):
        raise ReleaseError(f"pip could not install {wheel.name}{extra}; its message is above")
    return scripts_of(folder)


def with_torch_alone(folder: Path, wheel: Path, version: str) -> None:
    scripts = environment(folder / "torch-alone", wheel, "")
    python = scripts / "python"
    run([python, "-c", "import tokenprune"], folder=folder)
    run([python, "-c", IMPORTS], folder=folder)
    run([python, "-c", REDUCE], folder=folder)
    expect(version, run([scripts / "tokenprune", "--version"], folder=folder))
    expect("divprune", run([scripts / "tokenprune", "methods"], folder=folder))


def with_hf(folder: Path, wheel: Path, version: str) -> None:
    scripts = environment(folder / "hf", wheel, "[hf]")
    work = folder / "work"
    work.mkdir()
    run([scripts / "python", "-c", IMPORTS], folder=folder)
    expect(version, run([scripts / "geollava", "--version"], folder=folder))
    snippet = [scripts / "python", ROOT / "tools" / "readme_snippet.py", work]
    expect("tokens", run(snippet, folder=folder))
    draw = ["scenes", work, "--count", "1", "--size", "1344", "--ground", "procedural"]
    run([scripts / "geollava", *draw], folder=folder, may_say=True)
    image = next(path for path in work.rglob("*") if path.suffix in (".jpg", ".png"))
    ask = [scripts / "geollava", "ask", image, "What is the land use around the helipad?"]
    if not run(ask, folder=folder, may_say=True).strip():
        raise ReleaseError("geollava ask answered nothing")


def expect(words: str, text: str) -> None:
    if words not in text:
        raise ReleaseError(f"{words!r} must be in what was printed, got:\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:4.0f} s  {text}", flush=True)

    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files, version = checkout_files(), version_of_checkout()
            distributions = build(files, folder)
            for kind, one in zip(("sdist", "wheel"), distributions, strict=True):
                found = contents(one)
                check_contents(kind, found, files, version)
                say(f"{one.name}: {len(found)} files, {one.stat().st_size / 2**20:.1f} MiB")
            run([sys.executable, "-m", "twine", "check", "--strict", *distributions])
            say("twine check --strict passed")
            checks = {"PyTorch alone": with_torch_alone, "the extra hf": with_hf}
            with ThreadPoolExecutor(2) as pool:
                running = {
                    what: pool.submit(check, folder, distributions[1], version)
                    for what, check in checks.items()
                }
                for what, result in running.items():
                    result.result()
                    say(f"the wheel runs with {what}, and nothing warns")
            options.out.mkdir(parents=True, exist_ok=True)
            for one in distributions:
                shutil.copyfile(one, options.out / one.name)
                say(f"{options.out / one.name}")
    except ReleaseError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
