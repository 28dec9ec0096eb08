"""Runs the tests that depend on a package's release on other releases of it.

`tested_versions.json` lists them, oldest first, each with what else that release needs. An overlay
environment holds the other release alone and takes everything else from the project's own one.

    python tools/versions.py transformers            # every listed release
    python tools/versions.py transformers --ends     # the oldest and the newest listed
    python tools/versions.py transformers --newer    # what the registry has beyond them

`--newer` never fails: somebody else's release must not stop the work. It prints
`NEWER RELEASE BROKEN: ...` with the assumption that it breaks. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTED = json.loads((ROOT / "tools" / "tested_versions.json").read_text())
TESTS = {
    "transformers": [
        "tests/tokenprune/test_apply.py",
        "tests/tokenprune/test_deployment.py",
        "tests/tokenprune/test_families.py",
        "tests/tokenprune/test_recurrent.py",
        "tests/tokenprune/test_videos.py",
        "tests/tokenprune/test_pipelines.py",
        "tests/tokenprune/test_flash.py",
        "tests/tokenprune/test_layers.py",
        "tests/tokenprune/test_official.py",
        "tests/tokenprune/test_official_layers.py",
        "tests/tokenprune/test_before_projector.py",
        "tests/tokenprune/test_merging_tower.py",
        "tests/tokenprune/test_compat.py",
        "tests/tokenprune/test_verify.py",
        "tests/tokenprune/test_turns.py",
        "tests/tokenprune/test_threads.py",
        "tests/tokenprune/test_training.py",
        "tests/tokenprune/test_golden.py",
        "tests/geollava/model/test_model.py",
        "tests/geollava/model/test_published.py",
        "tests/geollava/answering/test_session.py",
        "tests/geollava/evaluate/test_evaluation.py",
        "tests/geollava/evaluate/models",
    ],
    "triton": ["tests/kernels"],
    "lmms-eval": [
        "tests/geollava/evaluate/models/test_lmms.py",
        "tests/geollava/evaluate/studies/test_protocols.py",
        "tests/geollava/evaluate/test_lmms_tasks.py",
    ],
}
ALONE = ("lmms-eval",)  # it asks for torchvision, which has no build beside CPU torch; we need none


def overlay(package: str, version: str, needs: list[str]) -> Path:
    """The Python of an environment that has this release, and all else from the one we run in."""
    folder = Path(sys.prefix) / "overlays" / f"{package}-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False)
        (packages,) = folder.glob("lib/python*/site-packages")
        ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        (packages / "_ours.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    command.append("--disable-pip-version-check")
    alone = ["--no-deps"] if package in ALONE else []
    for what in ([*alone, f"{package}=={version}"], needs):
        if what:
            subprocess.run(list(map(str, [*command, *what])), check=True)
    return python


def run_tests(python: Path, package: str) -> tuple[bool, str]:
    """(whether all passed, what was printed)."""
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *TESTS[package]],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout


def try_release(package: str, version: str, needs: list[str]) -> tuple[bool, str]:
    start = time.monotonic()
    print(f"{package} {version} ...", flush=True)
    passed, output = run_tests(overlay(package, version, needs), package)
    closing = output.strip().splitlines()[-1].strip("= ")
    seconds = time.monotonic() - start
    print(f"{package} {version}: {closing}, {seconds:.0f} s with installing", flush=True)
    return passed, output


def newest(package: str) -> str | None:
    """The newest release in the registry that is no pre-release; None where it is not reached."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    done = subprocess.run(
        [*command, "--disable-pip-version-check"], capture_output=True, text=True, check=False
    )
    found = re.search(r"Available versions: ([^,\s]+)", done.stdout)
    return found.group(1) if found else None


def is_newer(version: str, than: str) -> bool:
    numbers = [tuple(map(int, re.findall(r"\d+", one)[:3])) for one in (version, than)]
    return numbers[0] > numbers[1]


def what_broke(output: str) -> str:
    """The assumption that a release breaks, out of the tests' output; else what failed."""
    assumption = re.search(r"is not as tokenprune assumes: ([^\n]+)", output)
    if assumption:
        return assumption.group(1)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - ([^\n]+))?", output, re.MULTILINE)
    if not failed:
        return output.strip().splitlines()[-1] if output.strip() else "the tests did not start"
    (name, reason), more = failed[0], len(failed) - 1
    return f"{name}: {reason or 'failed'}" + (f", and {more} more" if more else "")


def try_newer(package: str) -> None:
    last = list(TESTED[package])[-1]
    version = newest(package)
    if version is None:
        print(f"{package}: the registry was not reached, no newer release is looked for")
    elif not is_newer(version, last):
        print(f"{package}: {last} is the newest release, and it is tested")
    else:
        try:
            passed, output = try_release(package, version, [])
        except subprocess.CalledProcessError as error:
            passed, output = False, f"ERROR installing - {error}"
        if not passed:
            print(f"NEWER RELEASE BROKEN: {package} {version}: {what_broke(output)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=TESTED)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--ends", action="store_true", help="the oldest and the newest listed")
    choice.add_argument("--newer", action="store_true", help="what is newer than those")
    options = parser.parse_args()
    if options.newer:
        try_newer(options.package)
        return
    versions = list(TESTED[options.package])
    broken = []
    for version in dict.fromkeys((versions[0], versions[-1])) if options.ends else versions:
        passed, output = try_release(options.package, version, TESTED[options.package][version])
        if not passed:
            print(output)
            broken.append(version)
    if broken:
        raise SystemExit(f"{options.package}: tests fail on {', '.join(broken)}")


if __name__ == "__main__":
    main()
