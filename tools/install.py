"""Makes the virtual environment that `make` uses and installs the project into it.

Where there is no NVIDIA GPU it takes the CPU build of PyTorch: the CUDA build brings gigabytes of
libraries that such a machine cannot use. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def has_nvidia_gpu() -> bool:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    listing = subprocess.run([smi, "--list-gpus"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def pinned_torch() -> str:
    match = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit("constraints.txt must pin torch==VERSION")
    return match.group(1)


def pip(python: Path, *arguments: str, quiet: bool = False) -> bool:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=quiet, cwd=ROOT, check=False).returncode == 0


def install_cpu_torch(python: Path) -> None:
    requirement = f"torch=={pinned_torch()}+cpu"
    print(f"no NVIDIA GPU here: taking the CPU build, {requirement}", flush=True)
    # First where pip already looks (a mirror or a folder of wheels), then where PyTorch keeps it.
    if pip(python, "--quiet", requirement, quiet=True):
        return
    if pip(python, "--quiet", "--retries", "1", "--index-url", CPU_INDEX, requirement, quiet=True):
        return
    print("the CPU build could not be reached; the registry's own build follows", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extra", default="dev", help="which extra of pyproject.toml to install")
    options = parser.parse_args()
    python = options.venv.absolute() / "bin" / "python"
    if not python.exists():
        venv.create(options.venv, with_pip=True)
    if sys.platform == "linux" and not has_nvidia_gpu():
        install_cpu_torch(python)
    if not pip(python, "--quiet", "-c", "constraints.txt", "-e", f".[{options.extra}]"):
        raise SystemExit("the installation failed; pip's message is above")


if __name__ == "__main__":
    main()
