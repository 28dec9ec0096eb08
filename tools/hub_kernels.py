"""Lays the operators out as a kernel repository, as Hugging Face `kernels` loads them.

    python tools/hub_kernels.py --out DIR

Then, without this package, `kernels.get_local_kernel(Path("DIR"))` gives a module with the
functions of `tokenprune.ops`, and so does `kernels.get_kernel` once DIR is uploaded. It holds

    build.toml, torch-ext/tokenprune/   the source, as kernel-builder takes it
    build/torch-universal/              the build: Python and Triton, nothing compiled beforehand

In both, imports are relative and the operators lie in a namespace of the build's own, so that
several builds can be loaded into one process. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tokenprune"
NAME = "tokenprune"
VERSION = 0  # of the kernels' interface; 0 may still change
LICENSE = "Apache-2.0"
ARCHITECTURES = ("8.0", "9.0+PTX")  # those of `launch_configs/`; newer ones take the last
OPERATOR_NAME = re.compile(r'"tokenprune::(\w+)"')

BUILD = f"""[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = ["cpu", "cuda"]

[torch-noarch]
"""
NAMESPACE = '''"""Where this build's operators are registered."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
'''
# Older releases of `kernels` look for a folder of the kernel's name, and load it by itself.
BY_NAME = '''"""The same as the folder above."""

import importlib.util
import sys
from pathlib import Path

kernel = sys.modules.get("{id}")
if kernel is None:
    spec = importlib.util.spec_from_file_location("{id}", Path(__file__).parents[1] / "__init__.py")
    kernel = sys.modules["{id}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
__all__ = kernel.__all__
globals().update({{name: getattr(kernel, name) for name in __all__}})
'''


def sources() -> dict[str, str]:
    """Path in the kernel's package -> text: the operators and `tokens.py`, localized."""
    found = {"tokens.py": PACKAGE / "tokens.py"}
    for path in sorted((PACKAGE / "ops").rglob("*")):
        if path.suffix in (".py", ".json"):
            found[path.relative_to(PACKAGE / "ops").as_posix()] = path
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    return {
        name: localized(text, name) if name.endswith(".py") else text
        for name, text in texts.items()
    }


def localized(text: str, name: str) -> str:
    """A module's text with relative imports, and with operators in the build's namespace.

    Raises:
        ValueError: it imports something of tokenprune that does not belong to the kernels.
    """
    up = "." * len(PurePosixPath(name).parts)
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            if module.split(".")[0] != "tokenprune":
                continue
            inside = re.fullmatch(r"tokenprune\.(?:ops\.)?((?<=ops\.)[\w.]+|tokens)", module)
            if inside is None or isinstance(node, ast.Import):
                raise ValueError(f"{name} imports {module}: expected tokenprune.ops.* or .tokens")
            line = node.lineno - 1
            lines[line] = lines[line].replace(f"from {module} ", f"from {up}{inside[1]} ", 1)
    text = "".join(lines)
    if OPERATOR_NAME.search(text):
        text = OPERATOR_NAME.sub(r'add_op_namespace_prefix("\1")', text)
        start = text.index("import torch\n")
        text = f"{text[:start]}from {up}_ops import add_op_namespace_prefix\n{text[start:]}"
    return text


def identifier(files: Mapping[str, str]) -> str:
    """A module name that no other content has."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode())
    return f"_{NAME}_{digest.hexdigest()[:12]}"


def build(files: Mapping[str, str]) -> dict[str, str]:
    """Path in the build -> text: the package, its namespace and what `kernels` reads of it."""
    kernel = identifier(files)
    built = dict(files)
    built["_ops.py"] = NAMESPACE.format(id=kernel)
    built[f"{NAME}/__init__.py"] = BY_NAME.format(id=kernel)
    digests = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in sorted(built.items())
    }
    about = {
        "name": NAME,
        "id": kernel,
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": "cuda", "archs": list(ARCHITECTURES)},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    built["metadata.json"] = json.dumps(about, indent=2) + "\n"
    return built


def write(out: Path) -> None:
    """Writes the repository. Raises FileExistsError where `out` holds something."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} must be empty or not exist")
    files = sources()
    tree = {"build.toml": BUILD, "LICENSE": (ROOT / "LICENSE").read_text(encoding="utf-8")}
    tree |= {f"torch-ext/{NAME}/{name}": text for name, text in files.items()}
    tree |= {f"build/torch-universal/{name}": text for name, text in build(files).items()}
    for name, text in tree.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder to make")
    out = parser.parse_args().out
    try:
        write(out)
    except (FileExistsError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"written to {out}")


if __name__ == "__main__":
    main()
