"""Makes the virtual environment that `make` uses and installs the project into it.

pip installs what `constraints.txt` locks, which uv makes. uv does not install: it reads none of
pip's configuration, so it misses the mirrors, certificates and folders of wheels that a machine has
for pip, and with `--torch-backend=cpu` it asks PyTorch's own server alone.

Where Linux has no NVIDIA GPU it takes the CPU build of PyTorch: the CUDA build brings gigabytes of
libraries that such a machine cannot use. On macOS and Windows the registry has CPU builds only.
Windows is written for and untested; it has no make, so run this file there. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def has_nvidia_gpu() -> bool:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    listing = subprocess.run([smi, "--list-gpus"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def takes_cpu_torch() -> bool:
    """Whether the registry's own build of PyTorch is not the one for this machine."""
    return sys.platform == "linux" and not has_nvidia_gpu()


def pinned_torch() -> str:
    match = re.search(r"^torch==(\S+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{LOCK.name} must pin torch==VERSION")
    return match.group(1)


def scripts_of(environment: Path) -> Path:
    """Where a virtual environment has its Python and its commands."""
    return environment.absolute() / ("Scripts" if os.name == "nt" else "bin")


def python_of(environment: Path) -> Path:
    return scripts_of(environment) / ("python.exe" if os.name == "nt" else "python")


def make_environment(environment: Path) -> Path:
    """Its Python; makes the environment where it is missing."""
    python = python_of(environment)
    if not python.exists():
        if find_spec("ensurepip") is None:
            raise SystemExit("this Python has no ensurepip; on Debian and Ubuntu: python3-venv")
        venv.create(environment, with_pip=True)
    return python


def pip(python: Path, *arguments: str, quiet: bool = False) -> bool:
    """Whether pip could install it. Errors are shown, unless `quiet`; warnings are not.

    Nothing is compiled beforehand: Python does so at the first import, most files have none.
    `-I` keeps what lies in the current folder from being taken for an installed package.
    """
    command = [str(python), "-I", "-m", "pip", "install", "-qq", "--no-compile"]
    command += ["--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=quiet, check=False).returncode == 0


def install_cpu_torch(python: Path) -> None:
    requirement = f"torch=={pinned_torch()}+cpu"
    locked = ("-c", str(LOCK), requirement)
    # First where pip already looks (a mirror or a folder of wheels), then where PyTorch keeps it.
    if pip(python, *locked, quiet=True):
        return
    if pip(python, "--retries", "1", "--extra-index-url", CPU_INDEX, *locked, quiet=True):
        return
    print("The CPU build was not reached; the registry's own build is several GB.", flush=True)


def install(environment: Path, *what: str) -> bool:
    """Whether a virtual environment, made where it is missing, now has this in locked versions."""
    python = make_environment(environment)
    if takes_cpu_torch():
        install_cpu_torch(python)
    return pip(python, "-c", str(LOCK), *what)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extra", default="dev", help="which extra of pyproject.toml to install")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036  # whoever runs this may have any
        raise SystemExit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    build = "the CPU build: no NVIDIA GPU found" if takes_cpu_torch() else "the registry's build"
    print(f"Installing the extra {options.extra} into {options.venv}; PyTorch {pinned_torch()},")
    print(f"{build}. It takes one to five minutes, pip is silent meanwhile.", flush=True)
    if not install(options.venv, "-e", f"{ROOT}[{options.extra}]"):
        raise SystemExit("the installation failed; pip's message is above")


if __name__ == "__main__":
    main()
