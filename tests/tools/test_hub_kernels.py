"""The operators as a kernel repository: what lies in it, and that it runs without this package."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenprune import ops

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import hub_kernels  # noqa: E402

# As Hugging Face `kernels` imports a build: from its path, under the id of its metadata.
LOAD = """
import importlib.util, json, sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tokenprune":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch

def load(folder, name=None):
    path = Path(folder, "build", "torch-universal")
    name = name or json.loads((path / "metadata.json").read_text())["id"]
    path = path if not name.startswith("by_name") else path / "tokenprune"
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def registered():
    return {one.split("::")[0] for one in torch._C._dispatch_get_all_op_names()}

"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    hub_kernels.write(folder)
    return folder


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-IBc", LOAD + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def identity(folder):
    return json.loads((folder / "build/torch-universal/metadata.json").read_text())["id"]


def test_runs_without_this_package(repository, tmp_path):
    features = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    torch.save(features, tmp_path / "features.pt")
    script = """
folder, work = map(Path, sys.argv[1:])
kernels, features = load(folder), torch.load(work / "features.pt")
assert kernels.__name__ in registered() and "tokenprune" not in registered()
kept = [
    kernels.coverage_select(features, 6, features[..., 0].sigmoid(), impl=impl)
    for impl in ("reference", "triton")
]
roots = kernels.background_merge(features[..., :9].contiguous(), (4, 5), impl="triton")
torch.save([*(one.keep_indices for one in kept), roots], work / "results.pt")
same = load(folder, "by_name")  # as older releases find it
assert {name: getattr(same, name) for name in kernels.__all__} == {
    name: getattr(kernels, name) for name in same.__all__
}
assert "tokenprune" not in sys.modules
print(*kernels.__all__)
"""
    assert run(script, repository, tmp_path).split() == list(ops.__all__)
    reference, triton, roots = torch.load(tmp_path / "results.pt")
    expected = ops.coverage_select(features, 6, features[..., 0].sigmoid())
    assert torch.equal(reference, expected.keep_indices)
    assert torch.equal(triton, expected.keep_indices)
    assert torch.equal(roots, ops.background_merge(features[..., :9], (4, 5)))


def test_two_builds_live_side_by_side(repository, tmp_path, monkeypatch):
    plain = hub_kernels.sources()
    changed = plain | {"tokens.py": plain["tokens.py"] + "\nCHANGED = True\n"}
    monkeypatch.setattr(hub_kernels, "sources", lambda: changed)
    hub_kernels.write(tmp_path / "other")
    script = """
one, other = map(load, sys.argv[1:])
assert {one.__name__, other.__name__} <= registered()
features = torch.randn(1, 9, 8)
kept = [kernels.dpp_select(features, 3, impl="triton").keep_indices for kernels in (one, other)]
assert torch.equal(*kept)
print(one.__name__, other.__name__)
"""
    names = run(script, repository, tmp_path / "other").split()
    assert names == [identity(repository), identity(tmp_path / "other")]
    assert len(set(names)) == 2


def test_the_same_sources_give_the_same_build(repository, tmp_path):
    hub_kernels.write(tmp_path / "again")
    for path in repository.rglob("*"):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(repository)
            assert again.read_bytes() == path.read_bytes(), path


def test_metadata_says_what_lies_there(repository):
    build = repository / "build" / "torch-universal"
    about = json.loads((build / "metadata.json").read_text())
    assert {"id", "name", "version", "license", "backend", "digest"} <= set(about)
    assert re.fullmatch(r"[A-Za-z_]\w*", about["id"])
    digests = {
        path.relative_to(build).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in build.rglob("*")
        if path.is_file() and path.name != "metadata.json"
    }
    assert about["digest"] == {"algorithm": "sha256", "files": digests}
    source = repository / "torch-ext" / "tokenprune"
    made = {"_ops.py", "tokenprune/__init__.py"}  # which kernel-builder makes itself
    assert {path.relative_to(source).as_posix() for path in source.rglob("*.*")} == {
        name for name in digests if name not in made
    }


def test_imports_are_relative_or_of_python_and_torch(repository):
    for path in repository.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            known = {"torch", "triton", *sys.stdlib_module_names}
            assert {module.split(".")[0] for module in modules} <= known, path


@pytest.mark.parametrize("line", ["from tokenprune.hosts import apply", "import tokenprune.ops"])
def test_what_does_not_belong_to_kernels_is_refused(line):
    with pytest.raises(ValueError, match=r"greedy/op\.py imports tokenprune"):
        hub_kernels.localized(line + "\n", "greedy/op.py")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    command = [sys.executable, ROOT / "tools" / "hub_kernels.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (1, ["mine.txt"])
    assert "must be empty or not exist" in done.stderr
